"""Capture one teacher-forced pass of a decoder: residuals, what wrote them, and which tokens are attended to.

Works on any Hugging Face decoder, alone or wrapped by peft, and leaves it unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import run_backbone, without_peft
from pipeline.model.roles import Role
from pipeline.sinks.recording import MLPCall, PassRecording, evaluating, record_pass

DIFFERENTIAL = "diffllama"
"""The family whose layers subtract attention maps."""


@dataclass(frozen=True)
class Captured:
    """One batch; the axis `time` has the positions of its longest sequence."""

    mask: Tensor
    """(batch, time), bool, true at real tokens."""
    roles: Tensor
    """(batch, time), values of `Role`."""
    residuals: tuple[Tensor, ...]
    """layers + 1 of (batch, time, width): the input of layer 0, then the residual after each layer, the last before the
    final norm."""
    additions: tuple[tuple[Tensor, Tensor], ...] | None
    """For each layer what attention and the MLP added, (batch, time, width) each; None if a layer does more than add
    these."""
    mlps: tuple[MLPCall, ...] | None
    """The MLP of each layer; None where `additions` is."""
    attention_to_key: Tensor
    """(layers, batch, heads, time) float32: mean attention to a key over the real queries that see it (the importance
    score of Gu et al.), in a layer with a sliding window those within it; 0 at padding."""
    attention_from_response: Tensor
    """(layers, batch, heads, time) float32: mean attention to a key over the response's queries; 0 without a
    response."""
    maps: Tensor
    """(layers, batch, time, time) float32: attention of queries to keys, mean over heads. Rows of padding are
    undefined."""
    norms: Tensor | None
    """(2, layers, batch, time) float32: L2 norms of keys and values, mean over the key-value heads, as attention uses
    them (keys with their position encoding); None if the decoder takes no key-value cache."""
    windows: tuple[int | None, ...]
    """For each layer the number of queries at most that see a key, its own included; None if all later ones do."""

    @property
    def has_inner_layers(self) -> bool:
        """Whether there is a layer between the first and the last."""
        return len(self.attention_to_key) > 2

    def finite(self) -> Tensor:
        """(batch,), bool: utterances whose residuals and attention are finite at all real tokens."""
        attention = torch.stack([self.attention_to_key, self.attention_from_response])
        is_finite = attention.isfinite().all(4).all(3).all(1).all(0)
        for residual in self.residuals:
            # A sum is finite only if all of its terms are, and takes one pass.
            is_finite = is_finite & (~self.mask | residual.float().abs().sum(-1).isfinite()).all(1)
        return is_finite

    def select(self, kept: Tensor) -> "Captured":
        """The utterances for which `kept` (batch,) is true."""
        return Captured(
            mask=self.mask[kept],
            roles=self.roles[kept],
            residuals=tuple(residual[kept] for residual in self.residuals),
            additions=self.additions and tuple((attention[kept], mlp[kept]) for attention, mlp in self.additions),
            mlps=self.mlps and tuple(replace(call, inputs=call.inputs[kept]) for call in self.mlps),
            attention_to_key=self.attention_to_key[:, kept],
            attention_from_response=self.attention_from_response[:, kept],
            maps=self.maps[:, kept],
            norms=None if self.norms is None else self.norms[:, :, kept],
            windows=self.windows,
        )

    def attention_to(self, position: Tensor) -> Tensor:
        """(layers, batch, heads): mean attention to the token at `position` (batch,)."""
        rows = torch.arange(len(position), device=position.device)
        return self.attention_to_key.transpose(2, 3)[:, rows, position]

    @property
    def has_response(self) -> Tensor:
        """(batch,), bool: utterances with a token of the response."""
        return (self.mask & (self.roles == Role.RESPONSE)).any(1)

    def response_ranking(self) -> tuple[Tensor, Tensor]:
        """How much the response attends to each key, mean over layers and heads.

        Only keys that all queries of the response see are comparable: those up to its first token, in layers without a
        window that is shorter than the utterance.

        Returns:
            (batch, time), -1 at keys that are not comparable; and (batch,), bool, whether there are a response, an
            input before it (in plain text only BOS and the first word would be comparable), and such a layer.
        """
        response = self.mask & (self.roles == Role.RESPONSE)
        earlier = response.int().cumsum(1) - response.int()
        has_input = (self.mask & ~response & (self.roles != Role.BOS)).any(1)
        lengths, longest = self.mask.sum(1), self.mask.shape[1]
        # Numbers, not a tensor of them, for which the host would wait.
        sees_all = torch.stack([lengths <= (window or longest) for window in self.windows])
        total = (self.attention_from_response * sees_all[..., None, None]).sum((0, 2))
        ranking = total / (sees_all.sum(0) * self.attention_from_response.shape[2]).clamp(min=1)[:, None]
        return ranking.masked_fill(~self.mask | (earlier > 0), -1), response.any(1) & has_input & sees_all.any(0)


def capture(decoder: Any, embeddings: Tensor, mask: Tensor, roles: Tensor) -> Captured:
    """Run a decoder once, without gradients, and record.

    Runs under the caller's autocast, with eager attention (other implementations return no maps) and without dropout.
    The result holds residuals, additions and inputs of the MLPs, together (4 layers + 1) x batch x time x width values,
    and averaged maps, layers x batch x time x time. PipelineError if the decoder's layers are not found, one returns no
    attention map, tokens attend to later ones, maps are subtracted from each other, or a sequence is longer than a
    chunk of chunked attention.

    Args:
        decoder: a causal language model of transformers, or one wrapped by peft.
        embeddings: (batch, time, width).
        mask: (batch, time), bool, true at real tokens. Padding may be on either side.
        roles: (batch, time), values of `Role`; each utterance has one BOS.
    """
    base = without_peft(decoder)
    if base.config.model_type == DIFFERENTIAL:
        raise PipelineError(
            type(base).__name__,
            "it subtracts one attention map from another, and returns them before that, so that attention which "
            "cancels would count as a sink",
            "use a decoder whose heads add their values by one softmax",
        )
    with torch.no_grad(), eager_attention(base), evaluating(base), record_pass(base, mask, roles) as recording:
        cache = (
            {"past_key_values": recording.cache, "use_cache": True} if _accepts_cache(base) else {"use_cache": False}
        )
        run_backbone(
            base,
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            **cache,
        )
    return _captured(recording)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Attention that returns its maps, until the `with` ends."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


def _accepts_cache(model: Any) -> bool:
    """Whether each layer caches keys and values alone, so that `PassRecording.cache` can take the cache's place."""
    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _captured(recording: PassRecording) -> Captured:
    layers = sorted(recording.attention)
    attention_to_key, attention_from_response, maps = (
        torch.stack([recording.attention[layer][kind] for layer in layers]) for kind in range(3)
    )
    cache_layers: list[Any] = recording.cache.layers
    norms = [layer.norms for layer in cache_layers]
    is_additive = recording.is_additive
    return Captured(
        mask=recording.mask,
        roles=recording.roles,
        residuals=tuple(recording.residuals[layer] for layer in [-1, *layers]),
        additions=tuple(recording.additions[layer] for layer in layers) if is_additive else None,
        mlps=tuple(recording.mlps[layer] for layer in layers)
        if is_additive and len(recording.mlps) == len(layers)
        else None,
        attention_to_key=attention_to_key,
        attention_from_response=attention_from_response,
        maps=maps,
        norms=torch.stack(norms, dim=1) if len(norms) == len(layers) else None,
        windows=recording.windows,
    )
