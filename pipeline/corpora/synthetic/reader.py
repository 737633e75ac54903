"""The synthetic corpus as stage `prepare` sees it."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.common.code import code_digest
from pipeline.common.files import digest, file_sha256
from pipeline.config import Corpus, Section
from pipeline.config.kinds import error
from pipeline.corpora.noise.folder import make_noise, noise_settings
from pipeline.corpora.reader import FileInfo, Listing, PreparedClip
from pipeline.corpora.synthetic.plan import SPLITS, Plan, plan_corpus

FILE_BYTES = 90_000
"""What a wav or an mp4 of some two seconds takes at most, more or less."""
NOISE_SECONDS = 60
"""No sentence takes longer."""


class Counts(Section):
    """A number for each split."""

    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


class Spoken:
    """Sentences that are spoken and drawn. Whatever changes, all is made again: it takes a minute."""

    complete = True
    has_root = False

    class Settings(Section):
        """The corpus that is made on the spot: sentences, spoken by espeak-ng, with a mouth drawn from the phonemes."""

        sentences: str | None = None
        """A text file with a sentence a line; null takes the GRID grammar."""
        voices: Counts = Counts(train=14, validation=2, test=4)
        """Voices of each split; no voice is in two."""
        utterances: Counts = Counts(train=1100, validation=100, test=200)
        """Utterances of each split, without their noisy copies."""

        @model_validator(mode="after")
        def _at_least_one_of_each_voice(self) -> Self:
            for split in SPLITS:
                if (count := getattr(self.utterances, split)) < (voices := getattr(self.voices, split)):
                    raise error(f"at least the {voices} voices of that split", count, "utterances", split)
            return self

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def settings(self) -> dict[str, Any]:
        """See `Reader.settings`."""
        file, noise = self.corpus.synthetic.sentences, self.corpus.noise
        causes: dict[str, Any] = {
            "corpus": self.corpus.model_dump(mode="json", include={"kind", "seed", "synthetic", "noise"}),
            "sentences": file_sha256(file) if file else None,
            "code": code_digest("pipeline.corpora.synthetic.utterance"),
            "espeak": version("espeakng-loader"),
        }
        if noise.folder is None:
            del causes["corpus"]["noise"]["folder"]
        else:
            causes["noise"] = noise_settings(noise.folder)
        return causes | {"digest": digest(causes)}

    def stale(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """See `Reader.stale`."""
        return ["babble", *SPLITS] if before.get("digest") != now["digest"] else []

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        plans = plan_corpus(self.corpus)
        return Listing(plans, extra={"voices": {plan.speaker: plan.voice for plan in plans}})

    def sources(self, clip: Plan) -> tuple[Path, ...]:
        """See `Reader.sources`."""
        return ()

    def room(self, clips: list[Plan]) -> int:
        """See `Reader.room`."""
        return sum(len(plan.files) for plan in clips) * FILE_BYTES

    def noise(self, split: str, clips: list[Plan]) -> None:
        """See `Reader.noise`."""

    def make_noise(self, split: str, recipe: None, folder: Path) -> None:
        """See `Reader.make_noise`."""
        # Heavy, and not needed by a run that has nothing to do.
        from pipeline.corpora.synthetic.utterance import make_babble

        if self.corpus.noise.folder is not None:
            make_noise(self.corpus.noise.folder, split, self.corpus.seed, NOISE_SECONDS, folder)
        make_babble(self.corpus, split, folder)

    def make(self, clip: Plan, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        """See `Reader.make`."""
        from pipeline.corpora.synthetic.utterance import make_utterance

        return PreparedClip(tuple(make_utterance(clip, folder)))
