"""Section `corpus`: utterances, splits and noise."""

from collections.abc import Callable
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny, create_model

from pipeline.config.registry import CORPORA, require_known
from pipeline.config.section import Count, Section, Share, validate_section


class Noise(Section):
    """Babble of training speakers, or a folder of noise, mixed at a signal-to-noise ratio per utterance."""

    folder: str | None = None
    """Folder of audio files with noise, of which each split uses its own part; null uses babble."""
    talkers: Count = 6
    """Simultaneous voices of the babble."""
    train_share: Share = 0.0
    """Share of the training utterances with noise, each at a ratio drawn from `train_snrs`: exact in the synthetic
    corpus, the probability of each utterance in recorded ones."""
    train_copies: Annotated[int, Field(ge=0)] = 0
    """Noisy copies that are added to each training utterance, each at a ratio drawn from `train_snrs` and with noise
    of its own. For cached features these are the draws that a training has: n copies add n times the disk and the
    encoder's time of the audio, once for all trials. (`features.augmentation` draws anew at each step, at which
    encoders then run, too.)"""
    train_snrs: tuple[float, ...] = ()
    """Signal-to-noise ratios of training in dB."""
    validation_snrs: tuple[float, ...] = ()
    """Ratios in dB; each adds a noisy copy of the validation split. 0 dB is a ratio like any other."""
    test_snrs: tuple[float, ...] = ()
    """Ratios in dB; each adds a noisy copy of the test split."""


class HeldOut(Section):
    """Splits held out from training, for a corpus that does not define them."""

    validation: Count = 1200
    """Minimum number of utterances; speakers are added until it is reached. Not for LRS2, nor where a folder or a list
    has that split."""
    test: Count = 1200
    """Minimum number of utterances; for kind `folder` only. (The others define a test split, GRID by keys of its own.)
    """
    by: Literal["speaker", "text"] = "speaker"
    """speaker: whole speakers are held out. text: all utterances of a text are; for kind `folder`, with few speakers.
    (GRID with `split: overlapped` holds out texts, whatever stands here.)"""


class Corpus(Section):
    """Stage `prepare`."""

    kind: str
    """Kind of corpus; its own settings, if any, are a section below, documented at `Settings` in its file."""
    root: str | None = None
    """Folder of the recordings or, for kind `folder`, a CSV file; null for the synthetic corpus."""
    out: str = "data/corpus"
    """Folder of the prepared corpus."""
    seed: int = 0
    """Seed of the splits and the noise; in the synthetic corpus of everything: voices, sentences, faces."""
    video: bool = True
    """Whether videos are prepared; false prepares audio only: mouths are neither detected nor drawn."""
    face_detector: str = "data/weights/face-detector"
    """Folder of its weights (a source with format tflite), used for videos of faces, not for mouth regions."""
    longest_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Recorded utterances that are longer are skipped."""
    held_out: HeldOut = HeldOut()
    noise: Noise = Noise()

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any:
            """The settings of a kind."""

    def __reduce__(self) -> tuple[Callable[[Any], "Corpus"], tuple[Any]]:
        """Pickles as plain values: the class with the sections of all kinds is created anew in the other process."""
        return _read, (self.model_dump(mode="json"),)


@cache
def corpus_section() -> type[Corpus]:
    """The class of section `corpus` with the settings of all kinds."""
    sections: dict[str, Any] = {}
    for kind, place in CORPORA.items():
        reader = resolve_name(place)
        if settings := getattr(reader, "Settings", None):
            sections[getattr(reader, "section", kind)] = (settings, settings())
    return create_model("Corpus", __base__=Corpus, **sections)


def _read(given: Any) -> Corpus:
    if isinstance(given, dict) and "kind" in given:
        require_known(given["kind"], CORPORA, "kind")
    return given if isinstance(given, Corpus) else validate_section(corpus_section(), given)


CorpusSection = Annotated[SerializeAsAny[Corpus], PlainValidator(_read)]
