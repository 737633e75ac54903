"""What writes the sinks, over all utterances: blocks, their attention and MLP, and the units inside that MLP."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.sinks.mlp_units import KINDS, Units
from pipeline.sinks.origin import Origin
from pipeline.sinks.running import Moments

BOS, SINK = range(2)
PARTS = ("before", "attention", "mlp")
UNITS_NAMED = 10
"""How many units the description names."""


class Writers:
    """Running statistics of L blocks, apart for BOS and intermediate sinks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._parts = {name: Moments(blocks, 2) for name in PARTS}
        self._main, self._first = torch.zeros(2, blocks, 2, dtype=torch.long)
        self._known = False
        self._inside = Moments(2 * len(KINDS) + 2, 2 * blocks)
        self._units: Tensor | None = None

    def add(self, origin: Origin | None, units: Units | None) -> None:
        """Take in one batch."""
        if origin is not None:
            self._known = True
            groups = torch.where(origin.is_bos, BOS, SINK).cpu()
            for name, moments in self._parts.items():
                moments.add(getattr(origin, name), groups)
            ones = torch.ones_like(groups)
            self._main.index_put_((origin.main.cpu(), groups), ones, accumulate=True)
            self._first.index_put_((origin.first.cpu(), groups), ones, accumulate=True)
        if units is not None:
            self._add_units(units)

    def _add_units(self, units: Units) -> None:
        groups = torch.where(units.is_bos, BOS, SINK)
        values = torch.cat([units.at_sink, units.at_others, units.weight[None], units.row[None]])
        self._inside.add(values, units.block * 2 + groups)
        if self._units is None:
            self._units = torch.zeros(2, self.blocks, units.width, dtype=torch.int32)
        where = groups.cpu(), units.block.cpu(), units.unit.cpu()
        self._units.index_put_(where, torch.ones_like(where[0], dtype=torch.int32), accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name; the last axis is BOS and intermediate sinks. Nothing where additions are not known.

        At the massive feature, in the sign of the activation: `origin_before` (L, 2), the mean value that enters each
        block, `origin_attention` and `origin_mlp` (L, 2), what they add. `origin_main` and `origin_first` (L, 2): the
        number of sinks that come from that block. Of the unit that writes most of the feature in the MLP of a sink's
        main origin, by that block: `unit_at_sink` and `unit_at_others` (3, L, 2), mean |gate|, |up| and |product| at
        the sink and at tokens that are none, `unit_weight` (L, 2), |the element of the down projection|, and
        `unit_row` (L, 2), the root mean square of its row. NaN where nothing was measured.
        """
        if not self._known:
            return {}
        found = {f"origin_{name}": moments.means() for name, moments in self._parts.items()}
        found |= {"origin_main": self._main, "origin_first": self._first}
        if self._units is not None:
            inside = self._inside.means().reshape(-1, self.blocks, 2)
            kinds = len(KINDS)
            found |= {"unit_at_sink": inside[:kinds], "unit_at_others": inside[kinds : 2 * kinds]}
            found |= {"unit_weight": inside[-2], "unit_row": inside[-1]}
        return {name: value.numpy() for name, value in found.items()}

    def description(self) -> dict[str, dict[str, Any]]:
        """For BOS and intermediate sinks, the blocks and the units that write them, the most frequent first."""
        found: dict[str, dict[str, Any]] = {"bos": {}, "intermediate": {}}
        if self._known:
            for group, of in enumerate(found.values()):
                of |= {"main_origin": _numbered(self._main[:, group]), "first_origin": _numbered(self._first[:, group])}
                if self._units is not None:
                    of["units"] = _named(self._units[group])
        return found


def _numbered(counts: Tensor) -> list[dict[str, int]]:
    found = [{"block": block, "sink_tokens": int(n)} for block, n in enumerate(counts.tolist()) if n]
    return sorted(found, key=lambda one: -one["sink_tokens"])


def _named(counts: Tensor) -> list[dict[str, int]]:
    best = counts.flatten().argsort(descending=True, stable=True)[:UNITS_NAMED]
    places = [divmod(index, counts.shape[1]) for index in best.tolist()]
    return [{"block": b, "unit": u, "sink_tokens": int(counts[b, u])} for b, u in places if counts[b, u]]
