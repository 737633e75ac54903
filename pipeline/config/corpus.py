"""Section `corpus`: utterances, splits, noise."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class Noise(Section):
    """Babble of training speakers, or a folder of noise, mixed at a signal-to-noise ratio over the whole utterance."""

    folder: str | None = None
    """A folder of audio files to take the noise from, each split its own part; null speaks babble."""
    talkers: Annotated[int, Field(ge=1)] = 6
    """How many voices speak at once."""
    train_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training utterances that are noisy; each has one ratio, drawn from `train_snrs`."""
    train_snrs: tuple[float, ...] = ()
    """In dB."""
    validation_snrs: tuple[float, ...] = ()
    """In dB; each adds a noisy copy of the whole split. 0 is a real value."""
    test_snrs: tuple[float, ...] = ()
    """In dB; each adds a noisy copy of the whole split."""


class Counts(Section):
    """A number for each split."""

    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


class Synthetic(Section):
    """The corpus that is made on the spot: sentences, spoken by espeak-ng, with a mouth drawn from the phonemes."""

    sentences: str | None = None
    """A text file with a sentence a line; null takes the GRID grammar."""
    voices: Counts = Counts(train=14, validation=2, test=4)
    """Voices of each split; no voice is in two."""
    utterances: Counts = Counts(train=1100, validation=100, test=200)
    """Utterances of each split, without their noisy copies."""


class HeldOut(Section):
    """What is taken out of training where a corpus has no such split of its own."""

    validation: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least; whole speakers are taken until there are so many."""
    test: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least. LRS2, LRS3 and auto_avsr trees have a test split, and GRID has keys of its own."""
    by: Literal["speaker", "text"] = "speaker"
    """speaker: no speaker is in two splits. text: no text is, for a folder of few speakers."""


class LRS(Section):
    """LRS2 and LRS3 in their original trees."""

    pretrain: bool = False
    """Whether training takes the clips of `pretrain` too, cut between words into pieces."""
    piece_seconds: Annotated[float, Field(ge=1)] = 16.0
    """The longest piece."""


class AutoAVSR(Section):
    """Label files of an auto_avsr tree, by their name in `labels` or as a path; null finds the one of the split."""

    train: str | None = None
    validation: str | None = None
    """Where there is none, speakers of the training labels are held out."""
    test: str | None = None


class Grid(Section):
    """GRID, which has no official split."""

    split: Literal["disjoint", "overlapped"] = "disjoint"
    """disjoint: test speakers are in no other split. overlapped: each speaker is in all."""
    test_speakers: tuple[Annotated[str, Field(pattern=r"^s[1-9][0-9]?$")], ...] = ("s1", "s2", "s20", "s22")
    """Of the disjoint split."""
    test_sentences: Annotated[int, Field(ge=1)] = 255
    """Of each speaker, in the overlapped split."""


CorpusKind = Literal["synthetic", "lrs3", "lrs2", "auto_avsr", "grid", "folder"]


class Corpus(Section):
    """Stage `prepare`."""

    kind: CorpusKind
    root: str | None = None
    """Where the corpus lies: a folder, or, for kind `folder`, a CSV file; null for the synthetic one."""
    out: str = "data/corpus"
    seed: int = 0
    video: bool = True
    """Whether videos are taken; false makes a corpus of audio alone, without looking for mouths."""
    face_detector: str = "data/weights/face-detector"
    """The folder of its weights (a source with format tflite); used where a video is not a mouth region already."""
    longest_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Recorded utterances that last longer are left out."""
    held_out: HeldOut = HeldOut()
    synthetic: Synthetic = Synthetic()
    lrs: LRS = LRS()
    auto_avsr: AutoAVSR = AutoAVSR()
    grid: Grid = Grid()
    noise: Noise = Noise()
