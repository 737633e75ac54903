"""Takes in what hooks see of a decoder, block after block."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.common.errors import PipelineError
from pipeline.model.roles import Role
from pipeline.sinks.captured import Captured, MLPCall

MOST = 1.05
"""The sum of a query's shares, with what rounding to bfloat16 may add to it."""


class _Norms(DynamicLayer):
    """One block's place in a key-value cache. It keeps the norms of what it is given, and nothing of it."""

    norms: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Note the norms of keys and values (B, heads, T, width) and hand them back as they are."""
        both = [
            torch.linalg.vector_norm(states.detach(), dim=-1, dtype=torch.float32)
            for states in (key_states, value_states)
        ]
        self.norms = torch.stack([norms.mean(1) for norms in both])
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Nothing has gone before."""
        return 0


def first_of(output: Any) -> Any:
    """The output itself, where a module returns more beside it."""
    return output[0] if isinstance(output, (tuple, list)) else output


@dataclass(frozen=True)
class _Part:
    """A part of a block that has run."""

    module: nn.Module
    entered: Tensor | None
    returned: Tensor


class Recording:
    """What a pass showed so far. A block's map is reduced as soon as it is made, so that one at a time is held."""

    def __init__(self, mask: Tensor, roles: Tensor, name: str) -> None:
        self.mask, self.roles, self.name = mask, roles, name
        self.cache = Cache(layer_class_to_replicate=_Norms)
        """To be given to the decoder. Every decoder hands its keys and values to its cache, whatever makes them."""
        self._queries = torch.stack([mask, mask & (roles == Role.RESPONSE)], dim=1).float()
        self._seen = mask.float().flip(1).cumsum(1).flip(1).clamp(min=1)
        self._parts: list[_Part] = []
        self._map: tuple[Tensor, ...] | None = None
        self._pair: tuple[int, int] | None = None
        self._adds = True
        self._residuals: dict[int, Tensor] = {}
        self._additions: dict[int, tuple[Tensor, Tensor]] = {}
        self._mlps: dict[int, MLPCall] = {}
        self._maps: dict[int, tuple[Tensor, ...]] = {}

    def on_part(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """A part of a block has run: keep what it returned until the block's end."""
        self._parts.append(_Part(module, args[0] if args else kwargs.get("hidden_states"), first_of(output)))

    def on_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Something inside a block has run: reduce its map, if it returned one."""
        if self._map is None and isinstance(output, (tuple, list)):
            found = next((one for one in output if self._is_map(one)), None)
            if found is not None:
                self._map = self._reduced(found)

    def _is_map(self, output: Any) -> bool:
        """Whether this is (B, H, T, T) of shares: of real queries, none is negative and their sum is at most 1."""
        batch, length = self.mask.shape
        if not isinstance(output, Tensor) or output.dim() != 4 or not output.is_floating_point():
            return False
        if (len(output), *output.shape[2:]) != (batch, length, length):
            return False
        shares = output.float()
        # Asked this way round, an utterance that is not finite has no say. One wait for the device, since rows are not
        # picked by the mask.
        wrong = (shares < 0).any(-1) | (shares.sum(-1) > MOST)
        return not bool((wrong & self.mask[:, None]).any())

    def hook_of_block(self, number: int) -> Any:
        """The hook that closes block `number`."""

        def on_block(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = first_of(output)
            parts, found, self._parts, self._map = self._parts, self._map, [], None
            if found is None:
                raise PipelineError(
                    self.name,
                    f"its block {number} ({type(module).__name__}) returned no attention map",
                    "use a decoder of which every block has softmax attention, and returns its weights",
                )
            if after.dim() != 3:
                raise PipelineError(
                    self.name,
                    f"its block {number} returned {tuple(after.shape)}",
                    "use a decoder with one residual of (batch, tokens, width)",
                )
            if number == 0:
                self._residuals[-1] = before.detach()
            self._residuals[number], self._maps[number] = after.detach(), found
            self._split(number, before, after, parts)

        return on_block

    def _reduced(self, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both importances (B, H, T) and the mean over heads (B, T, T) of a map (B, H, T, T)."""
        # Autocast would sum in bfloat16.
        with torch.autocast(attention.device.type, enabled=False):
            whole = attention.detach().float()
            if not self._maps and bool(((whole.triu(1) > 0).any(-1) & self.mask[:, None]).any()):
                raise PipelineError(
                    self.name, "its tokens attend to later ones", "use a decoder, which reads from left to right"
                )
            real, response = (self._queries[:, None] @ whole).unbind(2)
            answers = self._queries[:, 1].sum(1).clamp(min=1)
            return real / self._seen[:, None], response / answers[:, None, None], whole.mean(1)

    def _split(self, number: int, before: Tensor, after: Tensor, parts: list[_Part]) -> None:
        """Find the two parts whose outputs the block adds to what came in."""
        if self._adds and (self._pair is None or max(self._pair) >= len(parts)):
            self._pair = _summands(before, after, [part.returned for part in parts])
            self._adds = self._pair is not None
        if self._adds and self._pair is not None:
            attention, mlp = (parts[one] for one in self._pair)
            written, other = (part.returned.detach().reshape(after.shape) for part in (attention, mlp))
            self._additions[number] = written, other
            mlp = _before_norm(mlp, parts)
            if isinstance(mlp.entered, Tensor):
                device = mlp.entered.device.type
                autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
                entered = mlp.entered.detach().reshape(*after.shape[:2], -1)
                self._mlps[number] = MLPCall(mlp.module, entered, autocast)

    def captured(self) -> Captured:
        """All blocks of the batch."""
        numbers = sorted(self._maps)
        importance, response, maps = (torch.stack([self._maps[n][kind] for n in numbers]) for kind in range(3))
        layers: list[Any] = self.cache.layers
        norms = [layer.norms for layer in layers]
        return Captured(
            mask=self.mask,
            roles=self.roles,
            residuals=tuple(self._residuals[n] for n in [-1, *numbers]),
            additions=tuple(self._additions[n] for n in numbers) if self._adds else None,
            mlps=tuple(self._mlps[n] for n in numbers) if self._adds and len(self._mlps) == len(numbers) else None,
            importance=importance,
            response_importance=response,
            maps=maps,
            norms=torch.stack(norms, dim=1) if len(norms) == len(numbers) else None,
        )


def _before_norm(added: _Part, parts: list[_Part]) -> _Part:
    """The MLP itself, where what the block adds has gone through a norm (as in OLMo-2, Gemma-2 and GLM-4)."""
    if any(parameter.dim() > 1 for parameter in added.module.parameters()):
        return added
    return next((part for part in parts if part.returned is added.entered), added)


def _summands(before: Tensor, after: Tensor, outputs: list[Tensor]) -> tuple[int, int] | None:
    """Which two parts' outputs, attention's first, make `after` out of `before`, up to the rounding of its type."""
    # Some decoders run their MLP on all tokens in one row.
    like = (after.numel(), after.shape[-1])
    whole = [
        (number, output.reshape(after.shape))
        for number, output in enumerate(outputs)
        if isinstance(output, Tensor) and output.dim() > 0 and (output.numel(), output.shape[-1]) == like
    ]
    rounding = 4 * torch.finfo(after.dtype).eps
    for (i, attention), (j, mlp) in combinations(whole, 2):
        error = (before + attention + mlp - after).abs()
        # Asked this way round, an utterance that is not finite has no say.
        if not bool((error > rounding * (before.abs() + attention.abs() + mlp.abs())).any()):
            return i, j
    return None
