"""Decorrelation loss (arXiv 2510.22603): penalises tokens for aligning with BOS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.errors import PipelineError
from pipeline.common.loss_layers import layers_fault
from pipeline.config import Decorrelation
from pipeline.model.examples import to_device
from pipeline.model.roles import REAL_ROLES, Role

EXEMPT = (Role.BOS, Role.RESPONSE)
"""BOS is the reference; response tokens are trained by cross-entropy alone."""


def decorrelation_loss(hidden_states: Sequence[Tensor], roles: Tensor, settings: Decorrelation) -> Tensor:
    """Mean over layers of the mean over tokens of `cos^2(h_BOS, h_t)`, in float32.

    The official code also averages over padding; here padding does not count.

    Args:
        hidden_states: of a Hugging Face decoder, L + 1 tensors (batch, time, width). The first is the embedding and
            the last is after the final norm, so both are excluded: layer l is entry l + 1.
        roles: (batch, time), values of `Role`.
        settings: which layers and roles count, and whether gradients reach BOS.

    Returns:
        A scalar in [0, 1].
    """
    layers = counted_layers(settings, len(hidden_states) - 1)
    counted = counted_tokens(roles, settings)
    is_bos = roles == Role.BOS
    position = is_bos.int().argmax(1)
    rows = torch.arange(len(roles), device=roles.device)
    losses = []
    # Autocast would compute products in bfloat16, where a cosine has two digits.
    with torch.autocast(roles.device.type, enabled=False):
        for layer in layers:
            hidden = hidden_states[layer + 1].float()
            bos = hidden[rows, position]
            if settings.stop_gradient:
                bos = bos.detach()
            cosine = torch.nn.functional.cosine_similarity(hidden, bos[:, None], dim=-1)
            losses.append((cosine.square() * counted).sum() / counted.sum().clamp(min=1))
    return torch.stack(losses).mean()


def counted_layers(settings: Decorrelation, depth: int) -> Sequence[int]:
    """The layers of an LLM of `depth` layers that enter the loss, each once and in order, as in the trial's identity:
    never the last, known only after the final norm. PipelineError if no layer counts, or a layer in the settings does
    not."""
    if fault := layers_fault(settings.layers, depth):
        raise PipelineError("decorrelation.layers", *fault)
    return range(depth - 1) if settings.layers == "all" else sorted(set(settings.layers))


def counted_tokens(roles: Tensor, settings: Decorrelation) -> Tensor:
    """(batch, time), bool: the tokens that enter the loss."""
    chosen = REAL_ROLES if settings.roles == "all" else [Role.of(name) for name in settings.roles]
    counted = torch.tensor([role for role in chosen if role not in EXEMPT], dtype=roles.dtype)
    return torch.isin(roles, to_device(counted, roles.device))
