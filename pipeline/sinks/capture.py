"""What one teacher-forced pass of a decoder shows: residuals, what wrote them, and who is attended to.

Works on any Hugging Face decoder, alone or wrapped by peft. Blocks are found by their number, the attention by its map
and the MLP by arithmetic, so that no model is named. Nothing the model computes is changed: hooks only look, and they
and every setting are put back whatever happens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import PipelineError
from pipeline.model.roles import Role


@dataclass(frozen=True)
class Captured:
    """One batch. L blocks, B utterances, H heads, T positions with padding, D features."""

    mask: Tensor
    """(B, T) of bool, true at real tokens."""
    roles: Tensor
    """(B, T) of `Role`."""
    residuals: tuple[Tensor, ...]
    """L + 1 of (B, T, D): what enters block 0, then the residual after each block, the last before the final norm."""
    additions: tuple[tuple[Tensor, Tensor], ...] | None
    """For each block what attention and what the MLP added, (B, T, D) each; None where a block does otherwise."""
    importance: Tensor
    """(L, B, H, T) float32: mean attention to a key over the real queries that see it (Gu et al.); 0 at padding."""
    response_importance: Tensor
    """(L, B, H, T) float32: mean attention to a key over the response's queries; 0 where there are none."""

    def finite(self) -> Tensor:
        """(B,) of bool: utterances whose residuals and attention are finite at all real tokens."""
        good = self.importance.isfinite().all(3).all(2).all(0) & self.response_importance.isfinite().all(3).all(2).all(
            0
        )
        for residual in self.residuals:
            # A sum is finite only if all of its terms are, and costs one pass.
            good = good & torch.where(self.mask, residual.float().abs().sum(-1), 0).isfinite().all(1)
        return good

    def rows(self, kept: Tensor) -> "Captured":
        """The utterances that `kept` (B,) of bool names."""
        return Captured(
            mask=self.mask[kept],
            roles=self.roles[kept],
            residuals=tuple(residual[kept] for residual in self.residuals),
            additions=self.additions and tuple((attention[kept], mlp[kept]) for attention, mlp in self.additions),
            importance=self.importance[:, kept],
            response_importance=self.response_importance[:, kept],
        )


def capture(decoder: nn.Module, embeddings: Tensor, mask: Tensor, roles: Tensor) -> Captured:
    """Run a decoder once, without gradient, and record.

    It runs under the caller's autocast, with eager attention (the others return no maps) and without dropout. A block's
    map (B, H, T, T) is reduced as soon as it is made, so that one at a time is held; residuals and additions of the
    batch, (3 L + 1) x B x T x D values, are held until the caller drops them.

    Args:
        decoder: a causal language model of transformers, or one wrapped by peft.
        embeddings: (B, T, D).
        mask: (B, T) of bool, true at real tokens. Padding may be on either side.
        roles: (B, T) of `Role`; each utterance has one BOS.

    Raises:
        PipelineError: the decoder's blocks cannot be found, or they return no attention maps.
    """
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    backbone = base.get_decoder()
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), eager_attention(base), _evaluating(base), recorded(base, mask, roles) as recording:
        backbone(inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions, use_cache=False)
    return recording.captured()


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Attention that returns its maps, for as long as the block lasts."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout. Each module's own mode comes back, since a frozen part may be in another than the rest."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def decoder_blocks(model: Any) -> nn.ModuleList:
    """The decoder's blocks: the outermost list of as many modules as its configuration counts.

    Raises:
        PipelineError: there is no such list.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise PipelineError(
        type(model).__name__, f"no list of {count} blocks was found in it", "use a decoder of the transformers library"
    )


@contextmanager
def recorded(model: Any, mask: Tensor, roles: Tensor) -> Iterator["Recording"]:
    """Record every forward pass of a batch within the block; the hooks come off at its end."""
    recording = Recording(mask, roles, type(model).__name__)
    with ExitStack() as hooks:
        for number, block in enumerate(decoder_blocks(model)):
            handles = [block.register_forward_hook(recording.hook_of_block(number), with_kwargs=True)]
            handles += [part.register_forward_hook(recording.on_part) for part in block.children()]
            for handle in handles:
                hooks.callback(handle.remove)
        yield recording


class Recording:
    """Takes in what hooks see, block after block."""

    def __init__(self, mask: Tensor, roles: Tensor, name: str) -> None:
        self.mask, self.roles, self.name = mask, roles, name
        self._queries = _query_weights(mask, roles)
        self._seen = mask.float().flip(1).cumsum(1).flip(1).clamp(min=1)
        self._parts: list[Tensor] = []
        self._map: tuple[Tensor, Tensor] | None = None
        self._pair: tuple[int, int] | None = None
        self._adds = True
        self._residuals: dict[int, Tensor] = {}
        self._additions: dict[int, tuple[Tensor, Tensor]] = {}
        self._maps: dict[int, tuple[Tensor, Tensor]] = {}

    def on_part(self, module: nn.Module, args: tuple, output: Any) -> None:
        """A part of a block has run: keep what it returned until the block's end, reduce its map."""
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor) and output[1].dim() == 4:
            self._map = self._reduced(output[1])
        self._parts.append(first)

    def hook_of_block(self, number: int) -> Any:
        """The hook that closes block `number`."""

        def on_block(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            parts, found, self._parts, self._map = self._parts, self._map, [], None
            if found is None:
                raise PipelineError(
                    self.name,
                    f"its block {number} returned no attention map",
                    "use a decoder whose eager attention returns its weights",
                )
            if number == 0:
                self._residuals[-1] = before.detach()
            self._residuals[number], self._maps[number] = after.detach(), found
            self._split(number, before, after, parts)

        return on_block

    def _reduced(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Both importances, (B, H, T), of a map (B, H, T, T)."""
        # Autocast would sum in bfloat16.
        with torch.autocast(attention.device.type, enabled=False):
            summed = self._queries[:, None] @ attention.detach().float()
        real, response = summed.unbind(2)
        answers = self._queries[:, 1].sum(1).clamp(min=1)
        return real / self._seen[:, None], response / answers[:, None, None]

    def _split(self, number: int, before: Tensor, after: Tensor, parts: list[Tensor]) -> None:
        """Find the two parts whose outputs the block adds to what came in."""
        if self._adds and (self._pair is None or max(self._pair) >= len(parts)):
            self._pair = _summands(before, after, parts)
            self._adds = self._pair is not None
        if self._adds:
            self._additions[number] = parts[self._pair[0]].detach(), parts[self._pair[1]].detach()

    def captured(self) -> Captured:
        """All blocks of the batch."""
        numbers = sorted(self._maps)
        importance, response = (torch.stack([self._maps[n][kind] for n in numbers]) for kind in (0, 1))
        return Captured(
            mask=self.mask,
            roles=self.roles,
            residuals=tuple(self._residuals[n] for n in [-1, *numbers]),
            additions=tuple(self._additions[n] for n in numbers) if self._adds else None,
            importance=importance,
            response_importance=response,
        )


def _query_weights(mask: Tensor, roles: Tensor) -> Tensor:
    """(B, 2, T): ones at all real queries, and at those of the response."""
    return torch.stack([mask, mask & (roles == Role.RESPONSE)], dim=1).float()


def _summands(before: Tensor, after: Tensor, parts: list[Tensor]) -> tuple[int, int] | None:
    """Which two parts' outputs, attention's first, make `after` out of `before`, up to the rounding of its type."""
    whole = [(number, part) for number, part in enumerate(parts) if part.shape == after.shape]
    rounding = 4 * torch.finfo(after.dtype).eps
    for (i, attention), (j, mlp) in combinations(whole, 2):
        error = (before + attention + mlp - after).abs()
        # Asked this way round, an utterance that is not finite has no say.
        if not bool((error > rounding * (before.abs() + attention.abs() + mlp.abs())).any()):
            return i, j
    return None
