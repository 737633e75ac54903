"""The registry of metrics: name, label, unit, definition, and where each is shown.

A new metric is a function that computes it (for sinks, in `pipeline.sinks.metrics`) and a line here. Tables,
figures, MLflow and metrics during training follow from these lines; a test compares the list in pipeline/README.md.
"""

import re
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache


@dataclass(frozen=True)
class Unit:
    """Unit and format of a value."""

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
    """Where a metric is shown. `metrics.csv` has all metrics of the evaluation; those of training are in
    `metrics.jsonl` and MLflow."""

    CSV_ONLY = 0
    """In none of the places below."""
    TABLE = auto()
    FIGURE = auto()
    """Has a panel in the figures that compare trials."""
    COLUMN = auto()
    """A column and a bar chart in MLflow."""
    CURVE = auto()
    """A line chart in MLflow."""
    FOLLOWED = auto()
    """Measured while a trial trains, every `sinks.every` steps."""
    LOG_ONLY = auto()
    """A metric of training, in `metrics.jsonl` and MLflow alone."""


CSV_ONLY, TABLE, FIGURE = Place.CSV_ONLY, Place.TABLE, Place.FIGURE
COLUMN, CURVE, FOLLOWED, LOG_ONLY = Place.COLUMN, Place.CURVE, Place.FOLLOWED, Place.LOG_ONLY
MAIN = TABLE | FIGURE | COLUMN | FOLLOWED


@dataclass(frozen=True)
class Metric:
    """A metric, or a family of metrics, one per condition or role, whose name has a placeholder in braces."""

    name: str
    label: str
    """Title of its rows and panels, with the same placeholder as the name."""
    unit: Unit
    better: str
    """`lower`, `higher`, or empty where neither is better."""
    places: Place
    definition: str
    """One sentence."""

    @property
    def is_family(self) -> bool:
        return "{" in self.name

    def member(self, part: str) -> str:
        """The name of a member of the family, such as `wer/test/snr_0`."""
        return re.sub(r"{\w+}", lambda _: part, self.name)

    def labelled(self, part: str) -> str:
        """The label of a member of the family."""
        return re.sub(r"{\w+}", lambda _: part, self.label)


WER, CER = "wer/{condition}", "cer/{condition}"
BY_ACTIVATION = "sinks/intermediate_tokens_per_utterance"
BY_ATTENTION = f"{BY_ACTIVATION}/attention"
"""The two counts of intermediate sinks, not necessarily of the same tokens. A count without an ending is by massive
activation; `relocated_share` without one is by attention."""
RELOCATED, RELOCATED_BY_RATIO = "sinks/relocated_share", "sinks/relocated_share/ratio"

# fmt: off
METRICS: list[Metric] = [
    Metric(WER, "WER %, {condition}", PERCENT, "lower", TABLE | FIGURE | COLUMN,
           "Word errors (substitutions, deletions, insertions) over the words of the references."),
    Metric(CER, "CER %, {condition}", PERCENT, "lower", TABLE,
           "Character errors over the characters of the references."),
    Metric("wer_normalised/{condition}", "WER %, Whisper's normaliser, {condition}", PERCENT, "lower", CSV_ONLY,
           "Word error rate after Whisper's normaliser of English: numbers and contractions in either form agree."),
    Metric(BY_ACTIVATION, "sinks / utterance, by activation", TOKENS, "lower", MAIN,
           "Tokens other than BOS with a massive activation: above `sinks.tau` times their layer's median, in a layer "
           "other than the first and the last."),
    Metric(BY_ATTENTION, "sinks / utterance, by attention", TOKENS, "lower", MAIN,
           "Tokens other than BOS to which some layer's heads, on average, attend more than `sinks.epsilon`."),
    Metric(f"{BY_ACTIVATION}/tau_300", "ratio > 300, tokens / utterance", TOKENS, "lower", TABLE | FIGURE,
           "The count by activation with a threshold of 300 times the median, independent of `sinks.tau`."),
    Metric("sinks/max_ratio/bos", "largest ratio, BOS", RATIO, "", TABLE | FIGURE | FOLLOWED,
           "The largest activation of BOS in an inner layer divided by this layer's median; mean over the utterances."),
    Metric("sinks/max_ratio/intermediate", "largest ratio, intermediate", RATIO, "lower", MAIN,
           "The largest activation of any other token in an inner layer divided by this layer's median; mean over the "
           "utterances, with or without a sink."),
    Metric("sinks/bos_cosine/sink", "cosine to BOS, sinks", COSINE, "", TABLE | FIGURE | FOLLOWED,
           "Cosine to BOS of intermediate sinks, each in its strongest layer."),
    Metric("sinks/bos_cosine/other", "cosine to BOS, others", COSINE, "lower", MAIN,
           "Cosine to BOS of the tokens that are not sinks, in the layers where the utterance's intermediate sinks are "
           "strongest; of an utterance without any, in the strongest layer of BOS, if BOS is a sink. Values with and "
           "without intermediate sinks are thus of different layers."),
    Metric("sinks/bos_sink_rate", "BOS sink rate %", PERCENT, "", TABLE | FIGURE | FOLLOWED,
           "Share of heads in which BOS is an attention sink: mean attention to it above `sinks.epsilon`."),
    Metric(RELOCATED, "BOS not dominant, by attention %", PERCENT, "lower", MAIN,
           "Share of the utterances in which the response (in plain text, all tokens) attends most to a token other "
           "than BOS, for whatever reason: a loss that only moves the sink raises it."),
    Metric(RELOCATED_BY_RATIO, "BOS not dominant, by ratio %", PERCENT, "lower", TABLE | FIGURE,
           "Share of the utterances in which a token other than BOS has the largest ratio."),
    Metric(f"{BY_ACTIVATION}/tau_100", "ratio > 100, tokens / utterance", TOKENS, "lower", CSV_ONLY,
           "Tokens other than BOS above 100 times the median."),
    Metric(f"{BY_ACTIVATION}/tau_1000", "ratio > 1,000, tokens / utterance", TOKENS, "lower", CSV_ONLY,
           "Tokens other than BOS above 1,000 times the median."),
    Metric(f"{BY_ACTIVATION}/absolute", "intermediate sinks above 100 / utterance", TOKENS, "lower", CSV_ONLY,
           "Intermediate sinks whose activation also exceeds 100 (Sun et al., COLM 2024)."),
    Metric(f"{BY_ACTIVATION}/outlier", "outliers / utterance", TOKENS, "lower", CSV_ONLY,
           "Tokens other than BOS above `sinks.outlier` times the median of the tokens (PrefixQuant)."),
    Metric(f"{BY_ACTIVATION}/secondary", "secondary sinks / utterance", TOKENS, "lower", CSV_ONLY,
           "Tokens other than BOS whose absolute cosine to BOS exceeds `sinks.alignment` in some layer "
           "(Secondary-Attention-Sinks)."),
    Metric(BY_ACTIVATION + "/{role}", "intermediate sinks / utterance, {role}", TOKENS, "lower", CSV_ONLY,
           "Intermediate sinks of one role, over the utterances with this role."),
    Metric("sinks/max_ratio/bos/max", "largest ratio of all, BOS", RATIO, "", CSV_ONLY,
           "The largest ratio of BOS over all utterances."),
    Metric("sinks/max_ratio/intermediate/max", "largest ratio of all, intermediate", RATIO, "lower", CSV_ONLY,
           "The largest ratio of any other token over all utterances."),
    Metric("sinks/mlp_share", "written by the MLP %", PERCENT, "", CSV_ONLY,
           "Share of a massive activation written by the MLP (the rest by attention), in the layer that wrote most."),
    Metric("sinks/mlp_share/bos", "written by the MLP %, BOS", PERCENT, "", CSV_ONLY,
           "Share of the massive activations of BOS written by the MLP."),
    Metric("sinks/mlp_share/intermediate", "written by the MLP %, intermediate", PERCENT, "", CSV_ONLY,
           "Share of the massive activations of intermediate sinks written by the MLP."),
    Metric("sinks/unit_share", "written by one unit %", PERCENT, "", CSV_ONLY,
           "Contribution of the strongest unit to a massive activation, over the absolute contributions of all units, "
           "in the MLP of the layer that wrote most."),
    Metric("sinks/feature_jaccard", "dimensions shared with BOS", NUMBER, "", CSV_ONLY,
           "Jaccard index of the massive dimensions of intermediate sinks and of BOS."),
    Metric("sinks/definition_jaccard", "agreement of definitions", NUMBER, "", CSV_ONLY,
           "Jaccard index of the sinks by activation and by attention, BOS included, mean over utterances."),
    Metric("sinks/secondary_lifetime", "lifetime of secondary sinks", Unit("layers"), "", CSV_ONLY,
           "Number of layers in which a secondary sink persists."),
    Metric("sinks/decorrelation", "decorrelation loss", NUMBER, "lower", CSV_ONLY,
           "The decorrelation loss on the evaluated utterances, over all layers but the last and all roles, whatever "
           "weight, layers and roles were trained with."),
    Metric("sinks/tokens_per_utterance", "tokens / utterance", TOKENS, "", CSV_ONLY,
           "Tokens of the whole sequence."),
    Metric("loss/cross_entropy", "cross-entropy", NATS, "lower", CURVE,
           "Training loss per token of the response."),
    Metric("loss/validation", "validation loss", NATS, "lower", CURVE,
           "Cross-entropy of the clean validation split."),
    Metric("loss/decorrelation", "decorrelation loss", NUMBER, "lower", LOG_ONLY,
           "Decorrelation loss in training, before its weight."),
    Metric("learning_rate", "learning rate", NUMBER, "", LOG_ONLY,
           "Learning rate of the step."),
    Metric("gradient_norm", "gradient norm", NUMBER, "", LOG_ONLY,
           "L2 norm of the gradient before clipping."),
    Metric("throughput/utterances_per_second", "utterances / s", NUMBER, "higher", LOG_ONLY,
           "Utterances trained on per second."),
]
# fmt: on


def shown(place: Place) -> list[Metric]:
    """The metrics shown in a place, in order."""
    return [metric for metric in METRICS if place in metric.places]


def is_bound(name: str) -> bool:
    """Whether the name is a bound of a metric's interval, `…/low` or `…/high`."""
    return name.endswith(("/low", "/high"))


def find(name: str) -> Metric | None:
    """The metric of a name, of a bound's name, or of sinks on the validation split; None if it is not registered."""
    name = name.removesuffix("/low").removesuffix("/high")
    if name.startswith("sinks/"):
        name = name.replace("/validation", "", 1)
    exact = (metric for metric in METRICS if metric.name == name)
    families = (metric for metric in METRICS if metric.is_family and _pattern(metric.name).match(name))
    return next(exact, None) or next(families, None)


@cache
def _pattern(family: str) -> re.Pattern:
    return re.compile(re.sub(r"{\w+}", ".+", family) + "$")
