"""The content of the synthetic corpus: sentences, voices and noise of each utterance.

Everything is drawn from `corpus.seed` and names (`appearance` and a speaker, `speech` and an utterance), so an
utterance does not depend on the process or the order in which it is generated.
"""

from dataclasses import dataclass

from pipeline.config import Corpus
from pipeline.corpora.noise.mixing import Mixture, noisy_copies
from pipeline.corpora.splits import SPLITS, random_generator
from pipeline.corpora.synthetic.sentences import Sentence, draw, sentences_of
from pipeline.corpora.synthetic.speech import choose_voices


@dataclass(frozen=True)
class Plan:
    """An utterance to generate, with its noisy copies."""

    id: str
    split: str
    speaker: str
    voice: str
    """Accent and variant, as espeak names them."""
    sentence: Sentence
    seed: int
    noise: Mixture | None
    """Of the utterance itself; None for clean."""
    copies: tuple[Mixture, ...]
    """Its noisy copies."""

    @property
    def video(self) -> str:
        """Path of the mp4 in the corpus."""
        return f"{self.id}.mp4"

    @property
    def wavs(self) -> dict[str, Mixture | None]:
        """How each wav is mixed, by the id of its line; the path is the id with `.wav`."""
        return {self.id: self.noise} | {copy.name(self.id): copy for copy in self.copies}


def plan_corpus(corpus: Corpus) -> list[Plan]:
    """Plan all utterances, in the order of the manifest. PipelineError if the file of sentences is missing or empty, or
    there are too few voices."""
    settings, seed = corpus.synthetic, corpus.seed
    counts = {split: getattr(settings.voices, split) for split in SPLITS}
    voices = choose_voices(counts, random_generator("voices", seed))
    plans: list[Plan] = []
    first_speaker = 1
    for split in SPLITS:
        count = getattr(settings.utterances, split)
        drawn = draw(sentences_of(settings.sentences), count, random_generator("sentences", seed, split))
        noises = _training_noise(corpus, count) if split == "train" else [None] * count
        for index, sentence in enumerate(drawn):
            number, voice = divmod(index, len(voices[split]))
            speaker = f"s{first_speaker + voice:02d}"
            name = f"{split}/{speaker}/{number:04d}"
            copies = noisy_copies(corpus, split, name)
            plans.append(Plan(name, split, speaker, voices[split][voice], sentence, seed, noises[index], copies))
        first_speaker += len(voices[split])
    return plans


def _training_noise(corpus: Corpus, count: int) -> list[Mixture | None]:
    """A random share `train_share` of the training utterances is noisy."""
    random = random_generator("noise", corpus.seed)
    chosen = random.permutation(count)[: round(corpus.noise.train_share * count)]
    noises: list[Mixture | None] = [None] * count
    for index in chosen:
        noises[index] = Mixture(float(random.choice(corpus.noise.train_snrs)))
    return noises
