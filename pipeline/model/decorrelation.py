"""The decorrelation loss (arXiv 2510.22603): what keeps other tokens from aligning with BOS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config import Decorrelation
from pipeline.model.examples import uploaded
from pipeline.model.roles import REAL_ROLES, Role

EXEMPT = (Role.BOS, Role.RESPONSE)
"""BOS is what the others are compared with; the response is left to the cross-entropy."""


def decorrelation_loss(hidden_states: Sequence[Tensor], roles: Tensor, settings: Decorrelation) -> Tensor:
    """Mean over layers of the mean over tokens of `cos^2(h_BOS, h_t)`, in float32.

    The official code averages over padding as well; here a token counts only if its role says that it is one.

    Args:
        hidden_states: as a Hugging Face decoder returns them, L + 1 tensors (batch, length, width). The first is the
            embedding and the last has gone through the final norm, so that both are left out: block l is entry l + 1.
        roles: (batch, length) of `Role`.
        settings: which layers and roles count, and whether BOS is held fixed.

    Returns:
        A scalar in [0, 1].
    """
    layers = range(len(hidden_states) - 2) if settings.layers == "all" else settings.layers
    counted = counted_tokens(roles, settings)
    is_bos = roles == Role.BOS
    position = is_bos.int().argmax(1)
    rows = torch.arange(len(roles), device=roles.device)
    losses = []
    # Autocast would take the products in bfloat16, where a cosine has two digits.
    with torch.autocast(roles.device.type, enabled=False):
        for layer in layers:
            hidden = hidden_states[layer + 1].float()
            bos = hidden[rows, position]
            if settings.stop_gradient:
                bos = bos.detach()
            cosine = torch.nn.functional.cosine_similarity(hidden, bos[:, None], dim=-1)
            losses.append((cosine.square() * counted).sum() / counted.sum().clamp(min=1))
    return torch.stack(losses).mean()


def counted_tokens(roles: Tensor, settings: Decorrelation) -> Tensor:
    """(batch, length) of bool: the tokens that the loss counts."""
    chosen = REAL_ROLES if settings.roles == "all" else [Role.of(name) for name in settings.roles]
    wanted = torch.tensor([r for r in chosen if r not in EXEMPT], dtype=roles.dtype)
    return torch.isin(roles, uploaded(wanted, roles.device))
