"""All that a small Llama computes for one utterance, as arrays: the reference of tests by brute force."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


def stored(model: LlamaForCausalLM, embeddings: Tensor) -> dict[str, np.ndarray]:
    """Residuals (L, T, D), maps (L, H, T, T), keys and values (L, H', T, d), what the parts of each block added, and
    inside its MLP gate, up and product (L, T, F), by the library's own outputs."""
    parts: dict[str, list[Tensor]] = {"attention": [], "mlp": [], "gate": [], "up": [], "product": []}
    hooks = []
    for block in model.model.layers:
        mlp = block.mlp
        for name, part, of in (
            ("attention", block.self_attn, lambda entered, out: out[0]),
            ("mlp", mlp, lambda entered, out: out),
            ("gate", mlp.gate_proj, lambda entered, out: out),
            ("up", mlp.up_proj, lambda entered, out: out),
            ("product", mlp.down_proj, lambda entered, out: entered[0]),
        ):
            kept = parts[name]
            hooks.append(part.register_forward_hook(lambda m, a, out, kept=kept, of=of: kept.append(of(a, out)[0])))
    norm, model.model.norm = model.model.norm, nn.Identity()
    with torch.no_grad():
        output = model.model(
            inputs_embeds=embeddings[None], output_attentions=True, output_hidden_states=True, use_cache=True
        )
    model.model.norm = norm
    for hook in hooks:
        hook.remove()
    return {
        "residuals": torch.stack(output.hidden_states[1:])[:, 0].numpy(),
        "maps": torch.stack(output.attentions)[:, 0].numpy(),
        "keys": torch.stack([layer.keys[0] for layer in output.past_key_values.layers]).numpy(),
        "values": torch.stack([layer.values[0] for layer in output.past_key_values.layers]).numpy(),
        **{name: torch.stack(values).numpy() for name, values in parts.items()},
    }
