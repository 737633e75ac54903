"""Which block writes a massive activation, and which part of it: attention or the MLP (arXiv 2510.22603, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens


@dataclass(frozen=True)
class Origin:
    """For each of S sink tokens, at its massive feature, signed so that its activation is positive."""

    utterance: Tensor
    """(S,): row of the batch."""
    token: Tensor
    """(S,): position in that row."""
    feature: Tensor
    """(S,): the massive feature."""
    sign: Tensor
    """(S,): of the activation, 1 or -1."""
    is_bos: Tensor
    """(S,) of bool."""
    before: Tensor
    """(L, S): the value that enters each block."""
    attention: Tensor
    """(L, S): what attention added."""
    mlp: Tensor
    """(L, S): what the MLP added."""
    main: Tensor
    """(S,): the block, up to the sink's strongest, with the largest addition in the activation's sign."""
    first: Tensor
    """(S,): the first block after which the ratio is above tau."""

    @property
    def mlp_share(self) -> Tensor:
        """(S,): |mlp| / (|mlp| + |attention|) at the main origin."""
        attention, mlp = (part.gather(0, self.main[None])[0].abs() for part in (self.attention, self.mlp))
        return mlp / (mlp + attention)


def origins(captured: Captured, tokens: Tokens, tau: float) -> Origin | None:
    """Where the sinks of a batch come from; None where the blocks' additions are not known.

    A sink's massive feature is its largest at its strongest block, and the sign is the one that it has there: later
    blocks cancel it, and cannot have written it.
    """
    if captured.additions is None:
        return None
    utterance, token = tokens.sink.nonzero(as_tuple=True)
    feature, strongest = tokens.feature[utterance, token], tokens.block[utterance, token]

    def at_feature(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([one[utterance, token, feature].float() for one in values])

    entered = at_feature(captured.residuals)
    hidden = entered[1:]
    sign = hidden.gather(0, strongest[None]).sign()
    attention, mlp = (at_feature([pair[kind] for pair in captured.additions]) * sign for kind in (0, 1))
    blocks = torch.arange(len(hidden), device=hidden.device)
    written = (attention + mlp).masked_fill(blocks[:, None] > strongest, -torch.inf)
    crossed = hidden.abs() > tau * tokens.activations.median[:, utterance]
    return Origin(
        utterance=utterance,
        token=token,
        feature=feature,
        sign=sign[0],
        before=entered[:-1] * sign,
        is_bos=tokens.is_bos[utterance, token],
        attention=attention,
        mlp=mlp,
        main=written.argmax(0),
        first=crossed.int().argmax(0),
    )
