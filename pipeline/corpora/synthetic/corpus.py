"""The synthetic corpus as a `Reader`."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.config import Section
from pipeline.config.section import wrong_value
from pipeline.corpora.noise.folder import noise_settings
from pipeline.corpora.prepared import MEDIA_FOLDERS
from pipeline.corpora.reader import FileInfo, Listing, PreparedClip, Reader
from pipeline.corpora.splits import SPLITS
from pipeline.corpora.synthetic.plan import Plan, plan_corpus
from pipeline.corpora.synthetic.sentences import READABLE

if TYPE_CHECKING:
    import numpy as np

FILE_BYTES = 90_000
"""Approximate maximum of a wav or an mp4 of two seconds."""


class SplitCounts(Section):
    """A number for each split."""

    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


class SyntheticCorpus(Reader):
    """Spoken sentences with a drawn mouth. After any change everything is generated again, which takes a minute."""

    requires_all = True
    has_root = False
    noise_seconds = 60

    class Settings(Section):
        """The generated corpus: sentences spoken by espeak-ng, with a mouth drawn from the phonemes."""

        sentences: str | None = None
        """A text file with a sentence per line; null takes the GRID grammar."""
        voices: SplitCounts = SplitCounts(train=14, validation=2, test=4)
        """Voices of each split; no voice is in two."""
        utterances: SplitCounts = SplitCounts(train=1100, validation=100, test=200)
        """Utterances of each split, without their noisy copies."""

        @model_validator(mode="after")
        def _at_least_one_of_each_voice(self) -> Self:
            for split in SPLITS:
                if (count := getattr(self.utterances, split)) < (voices := getattr(self.voices, split)):
                    raise wrong_value(f"at least the {voices} voices of that split", count, "utterances", split)
            return self

    def causes(self) -> dict[str, Any]:
        file, noise = self.corpus.synthetic.sentences, self.corpus.noise
        causes: dict[str, Any] = {
            "corpus": self.corpus.model_dump(mode="json", include={"kind", "seed", "synthetic", "noise"}),
            "sentences": _sha256(file) if file else None,
            "code": code_digest("pipeline.corpora.synthetic.utterance"),
            "espeak": version("espeakng-loader"),
        }
        if not self.corpus.video:
            # With video the key is left out, as in corpora prepared before it had an effect.
            causes["corpus"]["video"] = False
        if noise.folder is None:
            del causes["corpus"]["noise"]["folder"]
        else:
            causes["noise"] = noise_settings(noise.folder)
        return causes | {"digest": digest(causes)}

    def stale_media(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        return list(MEDIA_FOLDERS) if before.get("digest") != now["digest"] else []

    def listing(self) -> Listing:
        plans = plan_corpus(self.corpus)
        return Listing(plans, extra={"voices": {plan.speaker: plan.voice for plan in plans}})

    def estimated_bytes(self, clips: list[Plan]) -> int:
        return sum(self.corpus.video + len(plan.wavs) for plan in clips) * FILE_BYTES

    def babble(self, split: str, talkers: list[list[Path]]) -> "np.ndarray":
        # Its import is slow.
        from pipeline.corpora.synthetic.utterance import synthetic_babble

        return synthetic_babble(self.corpus, split)

    def prepare_clip(self, clip: Plan, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        from pipeline.corpora.synthetic.utterance import generate_utterance

        # An incomplete utterance is generated again as a whole: its media take less than a second.
        return PreparedClip(tuple(generate_utterance(clip, folder, self.corpus.video)))


def _sha256(file: str) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise PipelineError(file, f"cannot be read ({error.strerror})", READABLE) from None
