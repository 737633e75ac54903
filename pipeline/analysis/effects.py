"""Causal tests of a subject: outcomes under each intervention and its control, and what they cost.

Outcomes go to a journal as they come, so that an interrupted run goes on where it was.
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

from pipeline.analysis.survey import Survey, observe
from pipeline.analysis.target import Portion, Subject
from pipeline.common.errors import PipelineError
from pipeline.common.journal import Journal
from pipeline.common.progress import progress
from pipeline.common.statistics import ratio_interval, sign_flip_p
from pipeline.config import Sinks
from pipeline.sinks.classification import measure
from pipeline.sinks.intervention_targets import CausalTest, Situation, causal_tests

UNTOUCHED = "untouched"
RESAMPLINGS = 1000
"""Of the items, for intervals."""


@dataclass(frozen=True)
class Arm:
    """A test, its control, or (without a test) nothing at all."""

    test: CausalTest | None = None
    at_random: bool = False

    @property
    def name(self) -> str:
        return f"{self.test.name}{'/random' * self.at_random}" if self.test else UNTOUCHED

    @property
    def label(self) -> str:
        return f"{self.test.label}{', at random' * self.at_random}" if self.test else UNTOUCHED

    def touched(self, situation: Situation) -> list[int]:
        """Tokens of each item that it is about."""
        return self.test.touched(situation, self.at_random).sum(1).tolist() if self.test else [0] * len(situation.ids)

    def applied(self, decoder: nn.Module, situation: Situation) -> AbstractContextManager:
        """The context of the passes under it."""
        return self.test.applied(decoder, situation, self.at_random) if self.test else nullcontext()


@dataclass(frozen=True)
class Outcome:
    """One item under one intervention."""

    result: Any
    """What came out: a hypothesis, or nats and tokens."""
    touched: int
    """Tokens that were intervened on."""
    sinks: int
    """Intermediate sinks that are there under the intervention."""
    ratio: float | None
    """The largest activation of BOS over the median; None where it is not finite."""


@dataclass(frozen=True)
class Effect:
    """What one intervention, or its control, does to the score, over all items."""

    name: str
    label: str
    touched: float
    """Tokens in each item."""
    score: float
    score_interval: tuple[float, float] | None
    """95%, over items; None where there are fewer than ten."""
    change: float
    """From the untouched: a difference of word error rates in percentage points, or a factor of the perplexity."""
    change_interval: tuple[float, float] | None
    """95%, over items, paired; None where there are fewer than ten."""
    p: float
    """Two-sided, that there is no change."""
    sinks: float
    """Intermediate sinks in each item, under the intervention."""
    ratio: float | None
    """Mean over items of BOS's largest activation over the median, under the intervention."""

    def record(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)


def applicable_tests(survey: Survey, title: str) -> list[CausalTest]:
    """The causal tests that a survey gives reason for.

    Raises:
        PipelineError: there is no sink, or it is not known which block writes them.
    """
    arrays = survey.summary.arrays
    if "origin_main" not in arrays:
        raise PipelineError(
            title,
            "its blocks do not simply add what attention and the MLP give, so no block can be named as the origin",
            "interventions need a decoder whose blocks do, such as Llama, Qwen or GPT-2",
        )
    main, first = (arrays[name].sum(1) for name in ("origin_main", "origin_first"))
    if not main.sum():
        raise PipelineError(title, "no token is a sink", "lower the threshold: --set sinks.tau=300")
    return causal_tests(int(first.argmax()), int(main.argmax()), survey.means)


def outcomes(
    subject: Subject, tests: list[CausalTest], settings: Sinks, journal: Path
) -> dict[str, dict[str, Outcome]]:
    """Every item untouched, under every test, and under every test's control.

    Args:
        subject: the decoder and its data.
        tests: see `applicable_tests`.
        settings: thresholds.
        journal: takes each outcome; what is whole there already is not done again.

    Returns:
        By name (`untouched`, `mask/bos`, `mask/bos/random`) and id.
    """
    found: dict[str, dict[str, Outcome]] = {}
    arms = [Arm(), *(Arm(test, at_random) for test in tests for at_random in (False, True))]
    with (
        torch.no_grad(),
        progress(len(subject) * len(arms), "interventions", subject.item) as bar,
        Journal(journal) as lines,
    ):
        for name, id, outcome in lines.values:
            found.setdefault(name, {})[id] = Outcome(**outcome)
        for portion in subject.intervened():
            situation = None
            for arm in arms:
                known = found.setdefault(arm.name, {})
                # Whole batches, so that each is what it is in an undisturbed run.
                if not all(id in known for id in portion.ids):
                    situation = situation or _situation(subject, portion, settings)
                    if arm.test and not any(arm.touched(situation)):
                        known |= {id: found[UNTOUCHED][id] for id in portion.ids}
                    else:
                        known |= zip(portion.ids, _under(arm, subject, portion, situation, settings), strict=True)
                    lines.add(*([arm.name, id, asdict(known[id])] for id in portion.ids))
                bar.update(len(portion.ids))
    return found


def _situation(subject: Subject, portion: Portion, settings: Sinks) -> Situation:
    captured = observe(subject, portion)
    return Situation(captured, measure(captured, settings), portion.ids)


def _under(arm: Arm, subject: Subject, portion: Portion, situation: Situation, settings: Sinks) -> Iterator[Outcome]:
    """The items of a batch."""
    with arm.applied(subject.decoder, situation):
        results = subject.outcome(portion)
        sinks, ratios = _sinks_left(subject, portion, settings)
    for result, touched, count, ratio in zip(results, arm.touched(situation), sinks, ratios, strict=True):
        yield Outcome(result, touched, count, ratio if math.isfinite(ratio) else None)


def _sinks_left(subject: Subject, portion: Portion, settings: Sinks) -> tuple[list[int], list[float]]:
    """Of each item the intermediate sinks, and the ratio of BOS."""
    captured = observe(subject, portion)
    tokens = measure(captured, settings)
    return tokens.intermediate.sum(1).tolist(), tokens.ratio.gather(1, tokens.bos[:, None])[:, 0].tolist()


def effects(
    subject: Subject, tests: list[CausalTest], found: dict[str, dict[str, Outcome]], seed: int = 0
) -> list[tuple[Effect, Effect | None]]:
    """Each test with its control, the untouched (which has none) first."""
    ids = sorted(found[UNTOUCHED])
    plain = _counts(subject, found[UNTOUCHED], ids)

    def effect(arm: Arm) -> Effect:
        mine = [found[arm.name][id] for id in ids]
        tops, bottoms = _counts(subject, found[arm.name], ids)
        ratios = [one.ratio for one in mine if one.ratio is not None]
        gap = tops - plain[0]

        def score(rate: float) -> float:
            return math.exp(rate) if subject.score == "perplexity" else 100 * rate

        def bounds(values: np.ndarray) -> tuple[float, float] | None:
            found = ratio_interval(values, bottoms, RESAMPLINGS, seed)
            return found and (score(found[0]), score(found[1]))

        return Effect(
            name=arm.name,
            label=arm.label,
            touched=float(np.mean([one.touched for one in mine])),
            score=score(tops.sum() / bottoms.sum()),
            score_interval=bounds(tops),
            change=score(gap.sum() / bottoms.sum()),
            change_interval=bounds(gap),
            p=sign_flip_p(tops, plain[0], seed),
            sinks=float(np.mean([one.sinks for one in mine])),
            ratio=float(np.mean(ratios)) if ratios else None,
        )

    return [(effect(Arm()), None), *((effect(Arm(test)), effect(Arm(test, at_random=True))) for test in tests)]


def _counts(subject: Subject, found: dict[str, Outcome], ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    counts = subject.counts({id: found[id].result for id in ids})
    tops, bottoms = zip(*(counts[id] for id in ids), strict=True)
    return np.array(tops, float), np.array(bottoms, float)
