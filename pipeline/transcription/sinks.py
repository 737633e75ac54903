"""The sinks of one utterance in words: which tokens they are, where, how massive, and how like BOS."""

from collections.abc import Sequence

from torch import Tensor

from pipeline.common.text import rounded
from pipeline.sinks.classification import Tokens

NAMED = 6
"""How many sinks are named in a line."""


def sink_words(labels: Sequence[str], tokens: Tokens, tau: float) -> list[str]:
    """How many tokens are sinks by massive activation and how many by attention; then a line for BOS and one for each
    other sink by activation, the most massive first; without any, one for the strongest token.

    Args:
        labels: what each token is called, from BOS on.
        tokens: of this utterance alone, without padding.
        tau: ratio to the median above which a token is a sink.
    """
    bos = int(tokens.bos[0])
    others = [place for place in tokens.ratio[0].argsort(descending=True).tolist() if place != bos]
    sinks = [place for place in others if tokens.sink[0, place]]
    threshold = f"(above {tau:,g} times the median)"
    counts = (
        f"sinks by massive activation: {_named(labels, tokens.sink[0])}; "
        f"by attention: {_named(labels, tokens.attention_sink[0])}"
    )
    is_sink = "is a sink by activation" if tokens.sink[0, bos] else f"is no sink by activation {threshold}"
    lines = [counts, f"BOS {is_sink}: {_strength(tokens, bos)}"]
    lines += [
        f"{labels[place]} at position {place} is a sink by activation: {_beside_bos(tokens, place)}" for place in sinks
    ]
    if not sinks:
        strongest = f"{labels[others[0]]} at position {others[0]}"
        lines.append(f"no other token is a sink by activation {threshold}; the strongest is {strongest}: "
                     f"{_beside_bos(tokens, others[0])}")  # fmt: skip
    return lines


def _named(labels: Sequence[str], sinks: Tensor) -> str:
    """The number of the sinks (T,) of bool, and what the first of them are called."""
    places = sinks.nonzero()[:, 0].tolist()
    names = [f"{labels[place]} at {place}" for place in places[:NAMED]] + ["…"] * (len(places) > NAMED)
    return f"{len(places)} ({', '.join(names)})" if places else "0"


def _beside_bos(tokens: Tokens, place: int) -> str:
    cosine = float(tokens.activations.cosine[tokens.block[0, place], 0, place])
    return f"{_strength(tokens, place)}; cosine to BOS there {rounded(cosine, 3)}"


def _strength(tokens: Tokens, place: int) -> str:
    ratio, block, feature = (values[0, place].item() for values in (tokens.ratio, tokens.block, tokens.feature))
    return f"{rounded(ratio, None)} times the median after block {block}, at feature {feature}"
