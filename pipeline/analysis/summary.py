"""A survey as a short plain-language text, for readers who do not know the definitions."""

from collections import Counter

from pipeline.analysis.survey import LabelledSinks, Survey
from pipeline.analysis.target import AnalysisTarget
from pipeline.common.formatting import rounded
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, RELOCATED, RELOCATED_BY_RATIO
from pipeline.config import Sinks
from pipeline.model.roles import Role

LISTED = 8
"""Labels of sinks, dimensions or skipped items that are listed."""
INTRODUCTION = (
    "A sink is a token that receives much of the attention whatever its content, or that has an activation (in its\n"
    "massive dimension) far above the median of its layer. BOS is the first token of every sequence. Layers and\n"
    "positions count from 0; [ ]: 95% interval."
)
MAJORITY = 0.5
"""Share of the items from which on BOS is called a sink."""


def summary_text(target: AnalysisTarget, survey: Survey, settings: Sinks) -> str:
    """Which tokens are sinks, in which dimensions, which layers write them, how strong and how similar they are."""
    shortest, longest = survey.lengths
    length = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    count = f"{len(target)} {target.item}{'s' * (len(target) != 1)}"
    paragraphs = [
        [INTRODUCTION],
        [f"{target.title}: {count} of {length} tokens, {survey.layers} layers."],
        _counts(target, survey, settings),
        _bos(target, survey, settings, length),
        _intermediate(target, survey, settings),
        _relocation(target, survey),
    ]
    skipped = survey.summary.description["skipped"]
    if skipped:
        paragraphs.append([f"Skipped, not finite: {', '.join(skipped[:LISTED])} ({len(skipped)} in total)."])
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines) + "\n"


def _counts(target: AnalysisTarget, survey: Survey, settings: Sinks) -> list[str]:
    """Sinks by both definitions, which need not be the same tokens."""
    arrays, items = survey.summary.arrays, survey.summary.description["utterances"]
    at_bos = dict(zip(arrays["definitions"], arrays["definition_tokens"][:, Role.BOS], strict=True))
    lines = []
    for definition, name, rule, metric in (
        ("massive activation", "massive", f"above {settings.tau:,g} times the median", BY_ACTIVATION),
        ("attention", "attention", f"mean attention above {settings.epsilon:g}", BY_ATTENTION),
    ):
        number = _metric(survey, metric)
        if number:
            share = _percent(at_bos[name] / items)
            lines.append(
                f"Sinks by {definition} ({rule}): BOS in {share} of the {target.item}s, and {number} other tokens per "
                f"{target.item}."
            )
    return lines


def _bos(target: AnalysisTarget, survey: Survey, settings: Sinks, length: str) -> list[str]:
    rate, ratio = _metric(survey, "sinks/bos_sink_rate", percent=True), _metric(survey, "sinks/max_ratio/bos")
    lines = []
    if ratio:
        bos = survey.summary.description["bos"]
        share = bos["sink_tokens"] / survey.summary.description["utterances"]
        lines.append(
            f"BOS is {'' if share >= MAJORITY else 'not '}a sink by activation: its largest is {ratio} times the "
            f"median of its layer, mean over the {target.item}s; above {settings.tau:,g} times in {_percent(share)} of "
            "them."
        )
        lines += _dimensions_and_origin("BOS", bos)
        lines += _share_of_mlp(survey, "bos", "BOS's massive activation")
    if rate:
        lines.append(
            f"By attention: {rate} of all heads give BOS more than {settings.epsilon:g} of their attention, on average "
            f"over {length} tokens; longer sequences have a lower rate."
        )
    return lines


def _intermediate(target: AnalysisTarget, survey: Survey, settings: Sinks) -> list[str]:
    number = _metric(survey, BY_ACTIVATION)
    if not number:
        return ["Massive activations are not measured with fewer than three layers."]
    sinks = survey.summary.description["intermediate"]
    strongest = _metric(survey, "sinks/max_ratio/intermediate/max")
    average = _metric(survey, "sinks/max_ratio/intermediate")
    if not sinks["sink_tokens"]:
        return [
            f"No other token is a sink by activation: the strongest has {strongest} times the median, below "
            f"{settings.tau:,g} in all {target.item}s.",
            *_cosine(survey),
        ]
    labels = sorted(survey.intermediate.items(), key=lambda pair: -pair[1].count)
    lines = [
        f"Other sinks by activation: {number} tokens per {target.item}, {sinks['sink_tokens']} in total; the "
        f"strongest has {strongest} times the median; mean of the largest over all {target.item}s: {average}.",
        *(f"  {label}: {_labelled(sink)}" for label, sink in labels[:LISTED]),
    ]
    if len(labels) > LISTED:
        lines.append(f"  and {len(labels) - LISTED} other tokens")
    lines += _dimensions_and_origin("The other sinks", sinks)
    lines += _share_of_mlp(survey, "intermediate", "their massive activations")
    jaccard = _metric(survey, "sinks/feature_jaccard")
    if jaccard:
        lines.append(f"Jaccard index of their massive dimensions and those of BOS: {jaccard} (1: the same).")
    return lines + _cosine(survey)


def _cosine(survey: Survey) -> list[str]:
    sink, other = _metric(survey, "sinks/bos_cosine/sink", 3), _metric(survey, "sinks/bos_cosine/other", 3)
    lines = [f"Their cosine to BOS is {sink}."] if sink else []
    if other:
        lines.append(
            f"The cosine to BOS of tokens that are not sinks is {other}, in the layers where sinks are strongest."
        )
    return lines


def _relocation(target: AnalysisTarget, survey: Survey) -> list[str]:
    metrics = survey.summary.metrics
    names = {"ratio": RELOCATED_BY_RATIO, "attention": RELOCATED}
    shares = [f"{_percent(metrics[name])} by {by}" for by, name in names.items() if name in metrics]
    return [f"{target.item.capitalize()}s whose dominant sink is not BOS: {', '.join(shares)}."] if shares else []


def _labelled(sink: LabelledSinks) -> str:
    frequent = sink.positions.most_common(3)
    positions = ", ".join(f"{position} ({count})" for position, count in frequent)
    more = " …" if len(sink.positions) > len(frequent) else ""
    return f"{sink.count}, up to {rounded(sink.max_ratio, None)} times the median, at positions {positions}{more}"


def _dimensions_and_origin(subject: str, sinks: dict) -> list[str]:
    lines = []
    dimensions = sinks["dimensions"]
    if dimensions:
        listed = ", ".join(f"{entry['dimension']} ({_percent(entry['share'])})" for entry in dimensions[:LISTED])
        lines.append(f"{subject}: massive in dimension{'s' * (len(dimensions) > 1)} {listed}.")
    if sinks.get("main_origin"):
        lines.append(
            f"{subject}: written by layer {_layers(sinks['main_origin'])}; first above the threshold after layer "
            f"{_layers(sinks['first_origin'])}."
        )
    return lines


def _share_of_mlp(survey: Survey, which: str, whose: str) -> list[str]:
    share = _metric(survey, f"sinks/mlp_share/{which}", percent=True)
    return [f"The MLP writes {share} of {whose}, attention the rest."] if share else []


def _layers(counts: list[dict[str, int]]) -> str:
    by_layer = Counter({entry["layer"]: entry["sink_tokens"] for entry in counts})
    total = by_layer.total()
    return ", ".join(f"{layer} ({_percent(count / total)})" for layer, count in by_layer.most_common(3))


def _metric(survey: Survey, name: str, decimals: int | None = None, percent: bool = False) -> str | None:
    """A metric with its interval; None if it does not exist."""
    metrics = survey.summary.metrics
    if name not in metrics:
        return None

    def written(value: float) -> str:
        return rounded(100 * value, 1) if percent else rounded(value, decimals)

    bounds = [metrics[f"{name}/{end}"] for end in ("low", "high") if f"{name}/{end}" in metrics]
    unit = "%" if percent else ""
    interval = f" [{', '.join(map(written, bounds))}]" if bounds else ""
    return f"{written(metrics[name])}{unit}{interval}"


def _percent(share: float) -> str:
    return f"{rounded(100 * share, 0 if share in (0, 1) else 1)}%"
