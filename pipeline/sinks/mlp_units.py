"""Which inner unit of an MLP writes a sink's massive feature, and what that unit does at tokens that are no sinks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import TINY, Tokens
from pipeline.sinks.mlp import Inside, inside
from pipeline.sinks.origin import Origin

KINDS = ("gate", "up", "product")


@dataclass(frozen=True)
class Units:
    """The unit that writes most of the massive feature in the MLP of a sink's main origin, for each of U sinks."""

    utterance: Tensor
    """(U,): row of the batch."""
    is_bos: Tensor
    """(U,) of bool."""
    block: Tensor
    """(U,)"""
    unit: Tensor
    """(U,)"""
    width: int
    """F, how many units an MLP has."""
    share: Tensor
    """(U,): |its contribution to the feature| over the sum of those of all units."""
    at_sink: Tensor
    """(3, U): |gate|, |up| and |product| of the unit at the sink; NaN for what the MLP does not have."""
    at_others: Tensor
    """(3, U): the same, mean over the utterance's tokens that are no sinks."""
    weight: Tensor
    """(U,): |the element of the down projection| from the unit to the feature."""
    row: Tensor
    """(U,): root mean square of that feature's row of the down projection."""


def writing_units(captured: Captured, tokens: Tokens, origin: Origin) -> Units | None:
    """Look into the MLPs that write the sinks of a batch; None where there is no sink or they cannot be looked into."""
    if captured.mlps is None:
        return None
    found = []
    for block in origin.main.unique().tolist():
        look = inside(captured.mlps[block])
        if look is None:
            return None
        found.append(_of_block(look, block, captured, tokens, origin))
    if not found:
        return None
    return Units(
        width=found[0].width,
        **{
            name: torch.cat([getattr(one, name) for one in found], dim=-1)
            for name in Units.__dataclass_fields__
            if name != "width"
        },
    )


def _of_block(look: Inside, block: int, captured: Captured, tokens: Tokens, origin: Origin) -> Units:
    sinks = origin.main == block
    utterance, token = origin.utterance[sinks], origin.token[sinks]
    rows = look.rows(origin.feature[sinks])
    # A norm after the MLP scales what its units write, and may turn the sign.
    returned = look.returned[utterance, token, origin.feature[sinks]].float()
    assert captured.additions is not None
    added = captured.additions[block][1][utterance, token, origin.feature[sinks]].float()
    sign = torch.where(returned * added < 0, -1, 1) * origin.sign[sinks]
    written = look.product[utterance, token].float() * rows * sign[:, None]
    unit = written.argmax(1)
    others = captured.mask & ~tokens.sink
    counted = others.sum(1)[utterance]

    def at_sink(values: Tensor | None) -> Tensor:
        return torch.full_like(counted, torch.nan, dtype=torch.float32) if values is None else (
            values[utterance, token, unit].float().abs()
        )  # fmt: skip

    def at_others(values: Tensor | None) -> Tensor:
        if values is None:
            return torch.full_like(counted, torch.nan, dtype=torch.float32)
        of_unit = values[utterance, :, unit].float().abs()
        return torch.where(others[utterance], of_unit, 0).sum(1) / counted

    kinds = [getattr(look, kind) for kind in KINDS]
    own = written.gather(1, unit[:, None])[:, 0].abs()
    return Units(
        utterance=utterance,
        is_bos=origin.is_bos[sinks],
        block=torch.full_like(unit, block),
        unit=unit,
        width=look.product.shape[-1],
        share=own / written.abs().sum(1).clamp(min=TINY),
        at_sink=torch.stack([at_sink(values) for values in kinds]),
        at_others=torch.stack([at_others(values) for values in kinds]),
        weight=rows.gather(1, unit[:, None])[:, 0].abs(),
        row=rows.square().mean(1).sqrt(),
    )
