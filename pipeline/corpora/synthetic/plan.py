"""What the synthetic corpus will hold: who says what, in which noise.

Everything is drawn from `corpus.seed` and a name (`appearance` and a speaker, `speech` and an utterance), never from
what was made before. So an utterance is the same whichever process makes it, in whatever order.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.common.files import canonical
from pipeline.config import Corpus
from pipeline.corpora.manifest import SPLITS
from pipeline.corpora.synthetic.sentences import Sentence, draw, file_sentences, grid_sentences
from pipeline.corpora.synthetic.speech import choose_voices


@dataclass(frozen=True)
class Plan:
    """One utterance that is to be made, with its noisy copies."""

    id: str
    split: str
    speaker: str
    voice: str
    """espeak's name of accent and variant."""
    sentence: Sentence
    seed: int
    snr: float | None
    """Of the utterance itself, in dB; null for clean."""
    copies: tuple[float, ...]
    """Signal-to-noise ratios of its noisy copies."""

    @property
    def video(self) -> str:
        """Path of the mp4 in the corpus."""
        return f"{self.id}.mp4"

    @property
    def wavs(self) -> dict[str, float | None]:
        """The ratio of each wav, by the id of its line; its path is the id and `.wav`."""
        return {self.id: self.snr} | {f"{self.id}+{snr:g}dB": snr for snr in self.copies}

    @property
    def files(self) -> list[str]:
        """Paths of all its media."""
        return [self.video, *(f"{name}.wav" for name in self.wavs)]


def plan_corpus(corpus: Corpus) -> list[Plan]:
    """All utterances, in the order of the manifest.

    Raises:
        PipelineError: the text file of sentences is missing or empty, or more voices are asked for than there are.
    """
    settings, seed = corpus.synthetic, corpus.seed
    voices = choose_voices({split: getattr(settings.voices, split) for split in SPLITS}, generator("voices", seed))
    plans: list[Plan] = []
    first_speaker = 1
    for split in SPLITS:
        count = getattr(settings.utterances, split)
        drawn = draw(sentences(settings.sentences), count, generator("sentences", seed, split))
        ratios = _ratios(corpus, count) if split == "train" else [None] * count
        copies = {"train": (), "validation": corpus.noise.validation_snrs, "test": corpus.noise.test_snrs}[split]
        for index, sentence in enumerate(drawn):
            number, voice = divmod(index, len(voices[split]))
            speaker = f"s{first_speaker + voice:02d}"
            name = f"{split}/{speaker}/{number:04d}"
            plans.append(Plan(name, split, speaker, voices[split][voice], sentence, seed, ratios[index], copies))
        first_speaker += len(voices[split])
    return plans


def babble_splits(corpus: Corpus) -> list[str]:
    """Splits that have noisy utterances."""
    needed = {
        "train": corpus.noise.train_share > 0,
        "validation": bool(corpus.noise.validation_snrs),
        "test": bool(corpus.noise.test_snrs),
    }
    return [split for split in SPLITS if needed[split]]


def babble_file(split: str) -> str:
    """Path of a split's babble in the corpus."""
    return f"babble/{split}.wav"


def _ratios(corpus: Corpus, count: int) -> list[float | None]:
    """The ratio of each training utterance: `train_share` of them, drawn at random, are noisy."""
    random = generator("noise", corpus.seed)
    chosen = random.permutation(count)[: round(corpus.noise.train_share * count)]
    ratios: list[float | None] = [None] * count
    for index in chosen:
        ratios[index] = float(random.choice(corpus.noise.train_snrs))
    return ratios


def generator(*names: str | float) -> np.random.Generator:
    """The random numbers that belong to these names, and to no other."""
    return np.random.default_rng(list(hashlib.sha256(canonical(names).encode()).digest()))


def sentences(path: str | None) -> list[Sentence]:
    """All that can be said: the lines of the text file, or the GRID grammar where there is none."""
    return grid_sentences() if path is None else file_sentences(path)
