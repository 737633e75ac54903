"""Word and character error rates with their counts, intervals and alignments (counted by jiwer)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import PipelineError
from pipeline.common.statistics import ratio_interval
from pipeline.scoring.normalisation import normalise, normalise_numbers

if TYPE_CHECKING:
    import jiwer

Alignment = list["jiwer.AlignmentChunk"]


@dataclass(frozen=True)
class Edits:
    """What it takes to turn a reference into its hypothesis, counted in words or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions


@dataclass(frozen=True)
class Change:
    """One word of the reference that came out differently. None stands where there is no word."""

    position: int
    """Words of the reference before it."""
    reference: str | None
    hypothesis: str | None

    def __str__(self) -> str:
        return f"{self.reference or '∅'} → {self.hypothesis or '∅'}"


@dataclass(frozen=True)
class ScoredUtterance:
    """The edits of one utterance, in words of the normalised texts."""

    reference: str
    hypothesis: str
    edits: Edits
    changes: tuple[Change, ...]

    def record(self) -> dict[str, Any]:
        """For a line of `hypotheses.jsonl`: counts, and the changes as people read them (`blue → glue`)."""
        return {
            "substitutions": self.edits.substitutions,
            "deletions": self.edits.deletions,
            "insertions": self.edits.insertions,
            "hits": self.edits.hits,
            "words": self.edits.length,
            "changes": [str(change) for change in self.changes],
        }


@dataclass(frozen=True)
class Rate:
    """An error rate over a corpus: errors / length, both summed over utterances."""

    value: float
    interval: tuple[float, float] | None
    """95%, over speakers or utterances (`pipeline.common.statistics`); None where there is none."""
    edits: Edits

    def metrics(self, name: str) -> dict[str, float]:
        """`<name>`, and `<name>/low` and `<name>/high` where there is an interval."""
        found = {name: self.value}
        if self.interval:
            found[f"{name}/low"], found[f"{name}/high"] = self.interval
        return found


@dataclass(frozen=True)
class Score:
    """How well hypotheses match references."""

    wer: Rate
    """Over words of `normalise`."""
    cer: Rate
    """Over characters of `normalise`, spaces included."""
    wer_normalised: Rate
    """Over words of `normalise_numbers`."""
    utterances: tuple[ScoredUtterance, ...]
    """In the order given."""

    def metrics(self, condition: str) -> dict[str, float]:
        """All rates and intervals by name; `condition` is such as `test` or `test/snr_0`."""
        found = self.wer.metrics(f"wer/{condition}") | self.cer.metrics(f"cer/{condition}")
        return found | self.wer_normalised.metrics(f"wer_normalised/{condition}")


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    bootstrap: int,
    seed: int = 0,
    speakers: Sequence[Hashable] | None = None,
) -> Score:
    """Score hypotheses against their references.

    An empty hypothesis is all deletions. An empty reference adds no words, and each word of its hypothesis is an
    insertion, which counts in the corpus; a corpus without any reference word has no error rate.

    Args:
        references: one text an utterance, as the corpus has it.
        hypotheses: one text an utterance, as the model wrote it.
        bootstrap: resamplings of the utterances for the 95% intervals; 0 asks for none.
        seed: of the resamplings.
        speakers: who speaks each utterance; None where it is not known.

    Raises:
        PipelineError: there is no reference word at all.
        ValueError: there are not as many hypotheses as references.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses")
    pairs = [(normalise(r), normalise(h)) for r, h in zip(references, hypotheses, strict=True)]
    numbered = [(normalise_numbers(r), normalise_numbers(h)) for r, h in zip(references, hypotheses, strict=True)]
    if not any(reference for reference, _ in pairs):
        raise PipelineError(
            "references", f"there is no word in {len(references)} references", "an error rate needs transcripts"
        )
    words, characters, numbers = _aligned(pairs, "words"), _aligned(pairs, "characters"), _aligned(numbered, "words")
    return Score(
        wer=_rate(words, bootstrap, seed, speakers),
        cer=_rate(characters, bootstrap, seed, speakers),
        wer_normalised=_rate(numbers, bootstrap, seed, speakers),
        utterances=tuple(
            ScoredUtterance(*pair, _edits(chunks), _changes(*pair, chunks))
            for pair, chunks in zip(pairs, words, strict=True)
        ),
    )


def _aligned(pairs: Sequence[tuple[str, str]], units: Literal["words", "characters"]) -> list[Alignment]:
    """jiwer's alignment of each (reference, hypothesis)."""
    import jiwer

    align = jiwer.process_words if units == "words" else jiwer.process_characters
    references, hypotheses = zip(*pairs, strict=True)
    return align(list(references), list(hypotheses)).alignments


def _edits(chunks: Alignment) -> Edits:
    counts = dict.fromkeys(("substitute", "delete", "insert", "equal"), 0)
    for chunk in chunks:
        counts[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return Edits(counts["substitute"], counts["delete"], counts["insert"], counts["equal"])


def _changes(reference: str, hypothesis: str, chunks: Alignment) -> tuple[Change, ...]:
    found: list[Change] = []
    for chunk in chunks:
        if chunk.type != "equal":
            lost = reference.split()[chunk.ref_start_idx : chunk.ref_end_idx]
            new = hypothesis.split()[chunk.hyp_start_idx : chunk.hyp_end_idx]
            # Only a substitution has words on both sides, and then as many on each.
            numbered = enumerate(zip_longest(lost, new), chunk.ref_start_idx)
            found += [Change(min(number, chunk.ref_end_idx), *pair) for number, pair in numbered]
    return tuple(found)


def _rate(alignments: Sequence[Alignment], bootstrap: int, seed: int, speakers: Sequence[Hashable] | None) -> Rate:
    edits = [_edits(chunks) for chunks in alignments]
    total = Edits(*(sum(getattr(one, field.name) for one in edits) for field in fields(Edits)))
    bounds = ratio_interval([one.errors for one in edits], [one.length for one in edits], bootstrap, seed, speakers)
    return Rate(total.errors / total.length, bounds, total)
