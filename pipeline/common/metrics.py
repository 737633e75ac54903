"""The registry of metrics: what each is called, what it measures, and where it is shown.

A new metric is a function where it is computed (for sinks, in `pipeline.sinks.metrics`) and a line here.
Tables, figures, MLflow, what is followed while a trial trains, and the list in pipeline/README.md go by these lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache


@dataclass(frozen=True)
class Unit:
    """How a value is written."""

    name: str
    factor: int = 1
    decimals: int | None = None
    """None: three significant digits."""


PERCENT = Unit("%", factor=100, decimals=1)
COSINE = Unit("cosine", decimals=2)
RATIO = Unit("times the median")
TOKENS = Unit("tokens")
NATS = Unit("nats")
NUMBER = Unit("")


class Place(Flag):
    """Where a metric is shown, beside `metrics.csv`, which has all."""

    NOWHERE = 0
    TABLE = auto()
    FIGURE = auto()
    """A panel of the figures that compare trials."""
    COLUMN = auto()
    """A column and a bar chart in MLflow."""
    CURVE = auto()
    """A line chart in MLflow."""
    FOLLOWED = auto()
    """Measured while a trial trains, every `sinks.every` steps."""


NOWHERE, TABLE, FIGURE = Place.NOWHERE, Place.TABLE, Place.FIGURE
COLUMN, CURVE, FOLLOWED = Place.COLUMN, Place.CURVE, Place.FOLLOWED
MAIN = TABLE | FIGURE | COLUMN | FOLLOWED


@dataclass(frozen=True)
class Metric:
    """A metric, or one of each condition or role where the name has a part in braces."""

    name: str
    label: str
    """Of its rows and panels; with the same part in braces as the name."""
    unit: Unit
    better: str
    """`lower`, `higher`, or empty where neither is."""
    places: Place
    definition: str
    """One sentence."""

    @property
    def is_family(self) -> bool:
        """Whether it stands for one metric of each condition or role."""
        return "{" in self.name

    def member(self, part: str) -> str:
        """The name of one of a family, such as `wer/test/snr_0`."""
        return re.sub(r"{\w+}", lambda _: part, self.name)

    def labelled(self, part: str) -> str:
        """The label of one of a family."""
        return re.sub(r"{\w+}", lambda _: part, self.label)


WER, CER = "wer/{condition}", "cer/{condition}"
BY_ACTIVATION = "sinks/intermediate_tokens_per_utterance"
BY_ATTENTION = f"{BY_ACTIVATION}/attention"
"""The two counts of intermediate sinks; these need not be the same tokens."""
RELOCATED, RELOCATED_BY_RATIO = "sinks/relocated_share", "sinks/relocated_share/ratio"

# fmt: off
METRICS: list[Metric] = [
    Metric(WER, "WER %, {condition}", PERCENT, "lower", TABLE | FIGURE | COLUMN,
           "Word errors (substitutions, deletions, insertions) over the words of the references."),
    Metric(CER, "CER %, {condition}", PERCENT, "lower", TABLE,
           "The same of characters."),
    Metric("wer_normalised/{condition}", "WER %, numbers normalised, {condition}", PERCENT, "lower", NOWHERE,
           "Word error rate where digits and number words agree."),
    Metric(BY_ACTIVATION, "sinks / utterance, by activation", TOKENS, "lower", MAIN,
           "Tokens other than BOS with a massive activation: above `sinks.tau` times their layer's median, in a layer "
           "that is neither the first nor the last."),
    Metric(BY_ATTENTION, "sinks / utterance, by attention", TOKENS, "lower", MAIN,
           "Tokens other than BOS to which some layer's heads, on average, attend more than `sinks.epsilon`."),
    Metric(f"{BY_ACTIVATION}/tau_300", "ratio > 300, tokens / utterance", TOKENS, "lower", TABLE | FIGURE,
           "By activation above 300 times the median, whatever `sinks.tau` is."),
    Metric("sinks/max_ratio/bos", "largest ratio, BOS", RATIO, "", TABLE | FIGURE | FOLLOWED,
           "The largest activation of BOS over its layer's median."),
    Metric("sinks/max_ratio/intermediate", "largest ratio, intermediate", RATIO, "lower", MAIN,
           "The same of the strongest other token."),
    Metric("sinks/bos_cosine/sink", "cosine to BOS, sinks", COSINE, "", TABLE | FIGURE | FOLLOWED,
           "Cosine to BOS of intermediate sinks, each in its strongest layer."),
    Metric("sinks/bos_cosine/other", "cosine to BOS, others", COSINE, "lower", MAIN,
           "Cosine to BOS of the tokens that are no sinks, in the same layers."),
    Metric("sinks/bos_sink_rate", "BOS sink rate %", PERCENT, "", TABLE | FIGURE | FOLLOWED,
           "Share of heads in which BOS is an attention sink: mean attention to it above `sinks.epsilon`."),
    Metric(RELOCATED, "relocated by importance %", PERCENT, "lower", MAIN,
           "Utterances in which a token other than BOS gets most of the response's attention: a loss that only moves "
           "the sink shows here."),
    Metric(RELOCATED_BY_RATIO, "relocated by ratio %", PERCENT, "lower", TABLE | FIGURE,
           "Utterances in which a token other than BOS has the largest ratio."),
    Metric(f"{BY_ACTIVATION}/tau_100", "ratio > 100, tokens / utterance", TOKENS, "lower", NOWHERE,
           "Tokens other than BOS above 100 times the median."),
    Metric(f"{BY_ACTIVATION}/tau_1000", "ratio > 1,000, tokens / utterance", TOKENS, "lower", NOWHERE,
           "Tokens other than BOS above 1,000 times the median."),
    Metric(f"{BY_ACTIVATION}/absolute", "intermediate sinks above 100 / utterance", TOKENS, "lower", NOWHERE,
           "Intermediate sinks whose activation also exceeds 100 (Sun et al., COLM 2024)."),
    Metric(f"{BY_ACTIVATION}/outlier", "outliers / utterance", TOKENS, "lower", NOWHERE,
           "Tokens other than BOS above `sinks.outlier` times the median of the tokens (PrefixQuant)."),
    Metric(f"{BY_ACTIVATION}/secondary", "secondary sinks / utterance", TOKENS, "lower", NOWHERE,
           "Tokens whose cosine to BOS exceeds `sinks.alignment` in some layer (Secondary-Attention-Sinks)."),
    Metric(BY_ACTIVATION + "/{role}", "intermediate sinks / utterance, {role}", TOKENS, "lower", NOWHERE,
           "Intermediate sinks of one role, of the utterances that have it."),
    Metric("sinks/max_ratio/bos/max", "largest ratio of all, BOS", RATIO, "", NOWHERE,
           "The largest ratio of BOS over all utterances."),
    Metric("sinks/max_ratio/intermediate/max", "largest ratio of all, intermediate", RATIO, "lower", NOWHERE,
           "The largest ratio of any other token over all utterances."),
    Metric("sinks/mlp_share", "written by the MLP %", PERCENT, "", NOWHERE,
           "How much of a massive activation the MLP wrote, attention the rest, in the layer that wrote most."),
    Metric("sinks/mlp_share/bos", "written by the MLP %, BOS", PERCENT, "", NOWHERE,
           "The same of BOS."),
    Metric("sinks/mlp_share/intermediate", "written by the MLP %, intermediate", PERCENT, "", NOWHERE,
           "The same of intermediate sinks."),
    Metric("sinks/unit_share", "written by one unit %", PERCENT, "", NOWHERE,
           "How much of it one unit inside the MLP wrote."),
    Metric("sinks/feature_jaccard", "dimensions shared with BOS", NUMBER, "", NOWHERE,
           "Jaccard index of the massive dimensions of intermediate sinks and of BOS."),
    Metric("sinks/definition_jaccard", "agreement of definitions", NUMBER, "", NOWHERE,
           "Jaccard index of the sinks by activation and by attention."),
    Metric("sinks/secondary_lifetime", "lifetime of secondary sinks", Unit("layers"), "", NOWHERE,
           "Layers for which a secondary sink stays one."),
    Metric("sinks/decorrelation", "decorrelation loss", NUMBER, "lower", NOWHERE,
           "The decorrelation loss that training at any weight would see."),
    Metric("sinks/tokens_per_utterance", "tokens / utterance", TOKENS, "", NOWHERE,
           "Tokens of the whole sequence."),
    Metric("loss/cross_entropy", "cross-entropy", NATS, "lower", CURVE,
           "Training loss per token of the response."),
    Metric("loss/validation", "validation loss", NATS, "lower", CURVE,
           "Cross-entropy of the clean validation split."),
    Metric("loss/decorrelation", "decorrelation loss", NUMBER, "lower", NOWHERE,
           "Decorrelation loss in training, before its weight."),
    Metric("learning_rate", "learning rate", NUMBER, "", NOWHERE,
           "Of the step."),
    Metric("gradient_norm", "gradient norm", NUMBER, "", NOWHERE,
           "L2 norm before clipping."),
    Metric("throughput/utterances_per_second", "utterances / s", NUMBER, "higher", NOWHERE,
           "Utterances trained on per second."),
]
# fmt: on


def shown(place: Place) -> list[Metric]:
    """The metrics that are shown in a place, in their order there."""
    return [metric for metric in METRICS if place in metric.places]


def is_bound(name: str) -> bool:
    """Whether this is an end of a metric's interval, `…/low` or `…/high`."""
    return name.endswith(("/low", "/high"))


def find(name: str) -> Metric | None:
    """The metric that a name, or one of its bounds, is of; None where the registry has none."""
    name = name.removesuffix("/low").removesuffix("/high")
    exact = (metric for metric in METRICS if metric.name == name)
    return next(exact, None) or next((one for one in METRICS if one.is_family and _pattern(one.name).match(name)), None)


@cache
def _pattern(family: str) -> re.Pattern:
    return re.compile(re.sub(r"{\w+}", ".+", family) + "$")


def documentation() -> str:
    """The metrics of the tables in Markdown, each with its definition, as pipeline/README.md has them."""
    rows = [("metric", "unit", "meaning"), ("---", "---", "---"), *_rows()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows() -> Iterator[tuple[str, str, str]]:
    for metric in shown(TABLE):
        yield f"`{metric.name}`", metric.unit.name, metric.definition
