"""A survey as a short text that says what the sinks are, for people who have not read the definitions."""

from collections import Counter

from pipeline.analysis.survey import NamedSink, Survey
from pipeline.analysis.target import Subject
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION
from pipeline.common.text import rounded
from pipeline.config import Sinks
from pipeline.model.roles import Role

NAMED = 8
"""How many kinds of sink tokens, features or blocks are named."""
WHAT = (
    "A sink is a token that takes much of the attention whatever it says, or that has an activation (its massive\n"
    "feature) far above the median of its block. BOS is the token that every sequence begins with. Blocks and\n"
    "positions count from 0; [ ]: 95% interval."
)
CERTAIN = 0.5
"""Share of the heads, or of the items, from which on something is said to be so."""


def words(subject: Subject, survey: Survey, settings: Sinks) -> str:
    """Which tokens are sinks, at which features, who writes them, how strong and how alike they are."""
    shortest, longest = survey.tokens
    length = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    parts = [
        [WHAT],
        [f"{subject.title}: {_number(len(subject), subject.item)} of {length} tokens, {survey.blocks} blocks."],
        _counts(subject, survey, settings),
        _of_bos(subject, survey, settings, length),
        _of_others(subject, survey, settings),
        _relocation(subject, survey),
    ]
    left_out = survey.summary.description["left_out"]
    if left_out:
        parts.append([f"Left out, since they are not finite: {', '.join(left_out[:NAMED])} ({len(left_out)} in all)."])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _counts(subject: Subject, survey: Survey, settings: Sinks) -> list[str]:
    """Sinks by both definitions, which need not be the same tokens."""
    arrays, utterances = survey.summary.arrays, survey.summary.description["utterances"]
    at_bos = dict(zip(arrays["definitions"], arrays["definition_tokens"][:, Role.BOS], strict=True))
    lines = []
    for what, name, rule, metric in (
        ("massive activation", "massive", f"above {settings.tau:,g} times the median", BY_ACTIVATION),
        ("attention", "attention", f"mean attention above {settings.epsilon:g}", BY_ATTENTION),
    ):
        number = _figure(survey, metric)
        if number:
            share = _share(at_bos[name] / utterances)
            lines.append(
                f"Sinks by {what} ({rule}): BOS in {share} of the {subject.item}s, and {number} other tokens per "
                f"{subject.item}."
            )
    return lines


def _of_bos(subject: Subject, survey: Survey, settings: Sinks, length: str) -> list[str]:
    rate, ratio = _figure(survey, "sinks/bos_sink_rate", percent=True), _figure(survey, "sinks/max_ratio/bos")
    lines = []
    if ratio:
        found = survey.summary.description["bos"]
        sinks = found["sink_tokens"]
        share = sinks / survey.summary.description["utterances"]
        judged = "is a sink by its activation" if share >= CERTAIN else "is no sink by its activation"
        lines.append(
            f"BOS {judged}: the largest is {ratio} times the median of its block; above {settings.tau:,g} times "
            f"in {_share(share)} of the {subject.item}s."
        )
        lines += _features_and_writers("BOS", found)
        mlp = _figure(survey, "sinks/mlp_share", percent=True)
        if mlp:
            lines.append(f"The MLP wrote {mlp} of what sinks have there, attention the rest.")
    if rate:
        lines.append(
            f"By attention: {rate} of all heads give BOS more than {settings.epsilon:g} of theirs, on average over "
            f"{length} tokens; longer sequences have a lower rate."
        )
    return lines


def _of_others(subject: Subject, survey: Survey, settings: Sinks) -> list[str]:
    number = _figure(survey, BY_ACTIVATION)
    if not number:
        return ["With fewer than three blocks nothing is said of massive activations."]
    found = survey.summary.description["intermediate"]
    strongest = _figure(survey, "sinks/max_ratio/intermediate")
    if not found["sink_tokens"]:
        return [
            f"No other token is a sink by its activation: the strongest has {strongest} times the median, below "
            f"{settings.tau:,g} in all {subject.item}s.",
            *_cosine(survey),
        ]
    kinds = sorted(survey.named.items(), key=lambda pair: -pair[1].count)
    lines = [
        f"Other sinks by their activation: {number} tokens in each {subject.item}, {found['sink_tokens']} in all; the "
        f"strongest has {strongest} times the median.",
        *(f"  {label}: {_named(sink)}" for label, sink in kinds[:NAMED]),
    ]
    if len(kinds) > NAMED:
        lines.append(f"  and {len(kinds) - NAMED} other kinds")
    lines += _features_and_writers("The other sinks", found)
    jaccard = _figure(survey, "sinks/feature_jaccard")
    if jaccard:
        lines.append(f"Their massive features are those of BOS to {jaccard} (Jaccard; 1 is the same).")
    return lines + _cosine(survey)


def _cosine(survey: Survey) -> list[str]:
    sink, other = _figure(survey, "sinks/bos_cosine/sink", 3), _figure(survey, "sinks/bos_cosine/other", 3)
    lines = [f"Their cosine to BOS is {sink}."] if sink else []
    if other:
        lines.append(f"The cosine of tokens that are no sinks to BOS is {other}, where sinks are strongest.")
    return lines


def _relocation(subject: Subject, survey: Survey) -> list[str]:
    by_ratio = survey.summary.metrics.get("sinks/relocated_share/ratio")
    by_attention = survey.summary.metrics.get("sinks/relocated_share")
    said = [
        f"{_share(share)} by {what}"
        for share, what in ((by_ratio, "activation"), (by_attention, "attention"))
        if share is not None
    ]
    return [f"{subject.item.capitalize()}s whose strongest sink is not BOS: {', '.join(said)}."] if said else []


def _named(sink: NamedSink) -> str:
    where = sink.positions.most_common(3)
    places = ", ".join(f"{place} ({count})" for place, count in where)
    more = " …" if len(sink.positions) > len(where) else ""
    return f"{sink.count}, up to {rounded(sink.largest, None)} times the median, at positions {places}{more}"


def _features_and_writers(who: str, found: dict) -> list[str]:
    lines = []
    if found["features"]:
        named = ", ".join(f"{one['feature']} ({_share(one['share'])})" for one in found["features"][:NAMED])
        lines.append(f"{who}: massive at {'features' if len(found['features']) > 1 else 'feature'} {named}.")
    if found.get("main_origin"):
        lines.append(
            f"{who}: written by block {_blocks(found['main_origin'])}; above the threshold first after block "
            f"{_blocks(found['first_origin'])}."
        )
    return lines


def _blocks(counts: list[dict[str, int]]) -> str:
    total = sum(one["sink_tokens"] for one in counts)
    kept = Counter({one["block"]: one["sink_tokens"] for one in counts}).most_common(3)
    return ", ".join(f"{block} ({_share(count / total)})" for block, count in kept)


def _figure(survey: Survey, name: str, decimals: int | None = None, percent: bool = False) -> str | None:
    """A metric with its interval, as people read it; None where it does not exist."""
    metrics = survey.summary.metrics
    if name not in metrics:
        return None

    def number(value: float) -> str:
        return rounded(100 * value, 1) if percent else rounded(value, decimals)

    bounds = [metrics[f"{name}/{end}"] for end in ("low", "high") if f"{name}/{end}" in metrics]
    unit = "%" if percent else ""
    interval = f" [{', '.join(map(number, bounds))}]" if bounds else ""
    return f"{number(metrics[name])}{unit}{interval}"


def _number(number: int, item: str) -> str:
    return f"{number} {item}{'s' * (number != 1)}"


def _share(share: float) -> str:
    return f"{rounded(100 * share, 0 if share in (0, 1) else 1)}%"
