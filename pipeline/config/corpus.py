"""Section `corpus`: utterances, splits, noise."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny, create_model

from pipeline.common.kinds import resolve
from pipeline.config.kinds import CORPORA, known, validated
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


class HeldOut(Section):
    """What is taken out of training where a corpus has no such split of its own."""

    validation: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least; whole speakers are taken until there are so many."""
    test: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least. LRS2, LRS3 and auto_avsr trees have a test split, and GRID has keys of its own."""
    by: Literal["speaker", "text"] = "speaker"
    """speaker: no speaker is in two splits. text: no text is, for a folder of few speakers."""


class Corpus(Section):
    """Stage `prepare`."""

    kind: str
    """Each kind may have a section of settings beside these; see the `Settings` in its file."""
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
    noise: Noise = Noise()

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any:
            """The section of a kind."""

    def __reduce__(self) -> tuple[Callable[[Any], "Corpus"], tuple[Any]]:
        """For a process of its own: its class, which has the sections of all kinds, is made there again."""
        return _read, (self.model_dump(mode="json"),)


@cache
def corpus_section() -> type[Corpus]:
    """Section `corpus` with the sections of all kinds in it."""
    sections: dict[str, Any] = {}
    for kind, place in CORPORA.items():
        form = resolve(place)
        if settings := getattr(form, "Settings", None):
            sections[getattr(form, "section", kind)] = (settings, settings())
    return create_model("Corpus", __base__=Corpus, **sections)


def _read(given: Any) -> Corpus:
    if isinstance(given, dict) and "kind" in given:
        known(given["kind"], CORPORA, "kind")
    return given if isinstance(given, Corpus) else validated(corpus_section(), given)


CorpusSection = Annotated[SerializeAsAny[Corpus], PlainValidator(_read)]
