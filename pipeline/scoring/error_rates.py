"""Word and character error rates with counts, intervals and alignments, aligned by jiwer."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import PipelineError
from pipeline.common.normalisation import normalise
from pipeline.common.statistics import ratio_interval

if TYPE_CHECKING:
    import jiwer

Alignment = list["jiwer.AlignmentChunk"]


@dataclass(frozen=True)
class EditCounts:
    """Counts of edits between a reference and its hypothesis, in words or characters."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Words or characters in the reference."""
        return self.hits + self.substitutions + self.deletions


@dataclass(frozen=True)
class WordEdit:
    """One substituted, deleted or inserted word. The missing side of a deletion or insertion is None."""

    position: int
    """Number of reference words before it."""
    reference: str | None
    hypothesis: str | None

    def __str__(self) -> str:
        return f"{self.reference or '∅'} → {self.hypothesis or '∅'}"


@dataclass(frozen=True)
class ScoredUtterance:
    """One utterance: normalised texts and the edits between them, in words."""

    reference: str
    hypothesis: str
    counts: EditCounts
    edits: tuple[WordEdit, ...]

    def record(self) -> dict[str, Any]:
        """Its part of a line in `hypotheses.jsonl`: counts, and edits such as `blue → glue` as `changes`."""
        return asdict(self.counts) | {"words": self.counts.length, "changes": list(map(str, self.edits))}


@dataclass(frozen=True)
class ErrorRate:
    """Error rate of a corpus: errors / length, each summed over utterances."""

    value: float
    interval: tuple[float, float] | None
    """95%, over speakers or utterances (see `pipeline.common.statistics`); None if undefined."""
    counts: EditCounts

    def metrics(self, name: str) -> dict[str, float]:
        """`<name>`, and with an interval `<name>/low` and `<name>/high`."""
        low, high = self.interval or (None, None)
        values = {name: self.value, f"{name}/low": low, f"{name}/high": high}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Score:
    """Error rates of hypotheses."""

    wer: ErrorRate
    """Over words after `normalise`."""
    cer: ErrorRate
    """Over characters after `normalise`, including spaces."""
    wer_normalised: ErrorRate | None
    """Over words after Whisper's normaliser of English, as papers report; None if that leaves no reference a word."""
    utterances: tuple[ScoredUtterance, ...]
    """In the order of the input."""

    def metrics(self, condition: str) -> dict[str, float]:
        """All rates and intervals by name; `condition` includes the split: `test` (clean) or `test/snr_0`."""
        rates = {"wer": self.wer, "cer": self.cer, "wer_normalised": self.wer_normalised}
        return {k: v for name, rate in rates.items() if rate for k, v in rate.metrics(f"{name}/{condition}").items()}


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    bootstrap: int,
    speakers: Sequence[Hashable] | None = None,
) -> Score:
    """Score hypotheses against their references, one text each per utterance.

    An empty hypothesis counts as deletions only. An empty reference adds no words to the length, and each word of its
    hypothesis counts as an insertion.

    The 95% intervals are over `speakers`, one name for each utterance, if these are eight or more; else they come from
    `bootstrap` resamplings of the utterances. With `bootstrap` 0 there are none in either case.

    Raises:
        PipelineError: the references have no words, so there is no error rate.
        ValueError: the numbers of references and hypotheses differ.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses")
    pairs = [(normalise(r), normalise(h)) for r, h in zip(references, hypotheses, strict=True)]
    english = _english_normaliser()
    as_reported = [(english(r), english(h)) for r, h in zip(references, hypotheses, strict=True)]
    if not any(reference for reference, _ in pairs):
        raise PipelineError(
            "references", f"no word in {len(references)} references", "score utterances that have a transcript"
        )
    words, characters = _aligned(pairs, "words"), _aligned(pairs, "characters")
    return Score(
        wer=_rate(words, bootstrap, speakers),
        cer=_rate(characters, bootstrap, speakers),
        wer_normalised=_rate(_aligned(as_reported, "words"), bootstrap, speakers)
        if any(reference for reference, _ in as_reported)
        else None,
        utterances=tuple(
            ScoredUtterance(*pair, _counts(chunks), _edits(*pair, chunks))
            for pair, chunks in zip(pairs, words, strict=True)
        ),
    )


@functools.cache
def _english_normaliser() -> Callable[[str], str]:
    """Numbers as digits, contractions written out, fillers and remarks in brackets removed; without the table of
    British spellings, which belongs to a checkpoint."""
    # It loads transformers, which those who only read scores do not need.
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _aligned(pairs: Sequence[tuple[str, str]], units: Literal["words", "characters"]) -> list[Alignment]:
    """The alignment of each (reference, hypothesis)."""
    import jiwer

    align = jiwer.process_words if units == "words" else jiwer.process_characters
    references, hypotheses = zip(*pairs, strict=True)
    return align(list(references), list(hypotheses)).alignments


def _counts(chunks: Alignment) -> EditCounts:
    counts = dict.fromkeys(("substitute", "delete", "insert", "equal"), 0)
    for chunk in chunks:
        counts[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return EditCounts(counts["substitute"], counts["delete"], counts["insert"], counts["equal"])


def _edits(reference: str, hypothesis: str, chunks: Alignment) -> tuple[WordEdit, ...]:
    edits: list[WordEdit] = []
    for chunk in chunks:
        if chunk.type != "equal":
            before = reference.split()[chunk.ref_start_idx : chunk.ref_end_idx]
            after = hypothesis.split()[chunk.hyp_start_idx : chunk.hyp_end_idx]
            # Only substitutions have words on both sides, and then equally many.
            numbered = enumerate(zip_longest(before, after), chunk.ref_start_idx)
            edits += [WordEdit(min(number, chunk.ref_end_idx), *pair) for number, pair in numbered]
    return tuple(edits)


def _rate(alignments: Sequence[Alignment], bootstrap: int, speakers: Sequence[Hashable] | None) -> ErrorRate:
    counts = [_counts(chunks) for chunks in alignments]
    total = EditCounts(*(sum(getattr(each, field.name) for each in counts) for field in fields(EditCounts)))
    bounds = ratio_interval([each.errors for each in counts], [each.length for each in counts], bootstrap, 0, speakers)
    return ErrorRate(total.errors / total.length, bounds, total)
