"""Effects of interventions: results under each causal test and its control, and the change of the score.

A *test* is one intervention, a `CausalTest`; it is not a test of significance. A *treatment* is a test, its control
(the same at random) or neither (the baseline). Each item has a *result* under each treatment; a treatment's *effect* is
the change of the score over all items. Results are appended to a journal, so that an interrupted analysis resumes.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.analysis.items import ItemBatch, ScoreKind
from pipeline.analysis.survey import Survey
from pipeline.analysis.target import AnalysisTarget, capture_batch
from pipeline.common.errors import PipelineError
from pipeline.common.journal import append_values, read_journal
from pipeline.common.progress import progress
from pipeline.common.statistics import ratio_interval, sign_flip_p
from pipeline.config import Sinks
from pipeline.sinks.causal_tests import BaselinePass, CausalTest, causal_tests
from pipeline.sinks.classification import classify_tokens

BASELINE = "baseline"
RESAMPLINGS = 1000
"""Of the items, for intervals."""


@dataclass(frozen=True)
class Treatment:
    """A causal test, its control, or (without a test) the baseline."""

    test: CausalTest | None = None
    at_random: bool = False

    @property
    def name(self) -> str:
        return f"{self.test.name}{'/random' * self.at_random}" if self.test else BASELINE

    @property
    def label(self) -> str:
        return f"{self.test.label}{', at random' * self.at_random}" if self.test else BASELINE

    def tokens_affected(self, baseline: BaselinePass) -> list[int]:
        """Number of tokens affected in each item."""
        if self.test is None:
            return [0] * len(baseline.ids)
        return self.test.tokens_affected(baseline, self.at_random).sum(1).tolist()

    def intervention(self, llm: nn.Module, baseline: BaselinePass) -> AbstractContextManager:
        """The context of passes under this treatment."""
        return self.test.intervention(llm, baseline, self.at_random) if self.test else nullcontext()


@dataclass(frozen=True)
class ItemResult:
    """One item under one treatment."""

    output: Any
    """Of the target's `run`: a hypothesis, or nats and tokens."""
    tokens_affected: int
    sinks: int
    """Intermediate sinks under the intervention."""
    ratio: float | None
    """Largest activation of BOS divided by the median; None if not finite."""


@dataclass(frozen=True)
class Effect:
    """The score of one treatment over all items, and its change from the baseline."""

    name: str
    label: str
    tokens_affected: float
    """Per item."""
    score: float
    score_interval: tuple[float, float] | None
    """95%, over items; None with fewer than ten."""
    change: float
    """A difference of word error rates in percentage points, or a factor of the perplexity."""
    change_interval: tuple[float, float] | None
    """95%, over items, paired; None with fewer than ten."""
    p: float
    """Two-sided, for no change."""
    sinks: float
    """Intermediate sinks per item, under the intervention."""
    ratio: float | None
    """Mean over items of BOS's largest activation divided by the median, under the intervention."""


def applicable_tests(survey: Survey, title: str) -> list[CausalTest]:
    """The causal tests for the sinks of a survey. PipelineError if there is no sink, or the layer that writes the sinks
    is unknown."""
    arrays = survey.summary.arrays
    if "origin_main" not in arrays:
        raise PipelineError(
            title,
            "its layers do more than add the outputs of attention and the MLP, so the origin of sinks is unknown",
            "use a decoder with plain residual layers, such as Llama, Qwen or GPT-2",
        )
    main, first = (arrays[name].sum(1) for name in ("origin_main", "origin_first"))
    if not main.sum():
        ratios = (f"sinks/max_ratio/{token}/max" for token in ("bos", "intermediate"))
        largest = max(survey.summary.metrics.get(name, 0.0) for name in ratios)
        raise PipelineError(title, "no token is a sink", f"set sinks.tau below the largest ratio, {largest:.3g}")
    return causal_tests(int(first.argmax()), int(main.argmax()), survey.means)


def item_results(
    target: AnalysisTarget, tests: list[CausalTest], settings: Sinks, journal: Path
) -> dict[str, dict[str, ItemResult]]:
    """Run every item in the baseline, under every test, and under every test's control.

    Results are appended to the file `journal`; batches that are complete there are not run again.

    Returns:
        Results by treatment (`baseline`, `mask/bos`, `mask/bos/random`) and id.
    """
    by_treatment: dict[str, dict[str, ItemResult]] = {}
    treatments = [Treatment(), *(Treatment(test, at_random) for test in tests for at_random in (False, True))]
    with torch.no_grad(), progress(len(target) * len(treatments), "interventions", target.item) as bar:
        for name, id, result in read_journal(journal):
            by_treatment.setdefault(name, {})[id] = ItemResult(**result)
        for batch in target.intervention_batches():
            baseline = None
            for treatment in treatments:
                known = by_treatment.setdefault(treatment.name, {})
                # Complete batches, so that rounding is the same as without an interruption.
                if not all(id in known for id in batch.ids):
                    baseline = baseline or _baseline_pass(target, batch, settings)
                    if treatment.test and not any(treatment.tokens_affected(baseline)):
                        known |= {id: by_treatment[BASELINE][id] for id in batch.ids}
                    else:
                        known |= zip(batch.ids, _run(treatment, target, batch, baseline, settings), strict=True)
                    append_values(journal, *([treatment.name, id, asdict(known[id])] for id in batch.ids))
                bar.update(len(batch.ids))
    return by_treatment


def _baseline_pass(target: AnalysisTarget, batch: ItemBatch, settings: Sinks) -> BaselinePass:
    captured = capture_batch(target, batch)
    return BaselinePass(captured, classify_tokens(captured, settings), batch.ids)


def _run(
    treatment: Treatment, target: AnalysisTarget, batch: ItemBatch, baseline: BaselinePass, settings: Sinks
) -> Iterator[ItemResult]:
    with treatment.intervention(target.llm, baseline):
        outputs = target.run(batch)
        tokens = classify_tokens(capture_batch(target, batch), settings)
    sinks, ratios = tokens.is_intermediate.sum(1).tolist(), tokens.of_bos(tokens.max_ratio).tolist()
    for output, affected, count, ratio in zip(outputs, treatment.tokens_affected(baseline), sinks, ratios, strict=True):
        yield ItemResult(output, affected, count, ratio if math.isfinite(ratio) else None)


def effects(
    target: AnalysisTarget, tests: list[CausalTest], by_treatment: dict[str, dict[str, ItemResult]]
) -> list[tuple[Effect, Effect | None]]:
    """The effect of each test and of its control; the baseline, which has no control, is first."""
    ids = sorted(by_treatment[BASELINE])

    def counts(treatment: Treatment) -> tuple[np.ndarray, np.ndarray]:
        of_treatment = by_treatment[treatment.name]
        pairs = target.score_counts({id: of_treatment[id].output for id in ids})
        numerators, denominators = np.array([pairs[id] for id in ids], float).T
        return numerators, denominators

    baseline, _ = counts(Treatment())

    def effect(treatment: Treatment) -> Effect:
        items = [by_treatment[treatment.name][id] for id in ids]
        numerators, denominators = counts(treatment)
        ratios = [item.ratio for item in items if item.ratio is not None]
        difference = numerators - baseline

        def scaled(ratio: float) -> float:
            """A score from its numerator over its denominator, or a change from the difference of two."""
            return math.exp(ratio) if target.score_kind is ScoreKind.PERPLEXITY else 100 * ratio

        def interval(values: np.ndarray) -> tuple[float, float] | None:
            bounds = ratio_interval(values, denominators, RESAMPLINGS, seed=0)
            return bounds and (scaled(bounds[0]), scaled(bounds[1]))

        return Effect(
            name=treatment.name,
            label=treatment.label,
            tokens_affected=float(np.mean([item.tokens_affected for item in items])),
            score=scaled(numerators.sum() / denominators.sum()),
            score_interval=interval(numerators),
            change=scaled(difference.sum() / denominators.sum()),
            change_interval=interval(difference),
            p=sign_flip_p(numerators, baseline, seed=0),
            sinks=float(np.mean([item.sinks for item in items])),
            ratio=float(np.mean(ratios)) if ratios else None,
        )

    tested = [(effect(Treatment(test)), effect(Treatment(test, at_random=True))) for test in tests]
    return [(effect(Treatment()), None), *tested]
