"""A small Llama with planted massive activations, and utterances that trigger them."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Sinks
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured, capture
from pipeline.sinks.instrument import SinkStatistics, SinkSummary

WIDTH, HEADS, LAYERS = 48, 4, 6
SIZES = {"vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": HEADS,
         "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
PLANTED, WRITER, SECOND_WRITER = 7, 1, 3
LAST_WRITER = LAYERS - 1
"""Writes more than all earlier layers, but is not an inner layer."""
SETTINGS = Sinks(tau=300.0, epsilon=0.15, minimum_queries=3, outlier=3.0)


def llama(layers: int = LAYERS, implementation: str = "sdpa") -> LlamaForCausalLM:
    """A random Llama in which tokens along `planted_direction` get a massive activation from three MLPs."""
    torch.manual_seed(4)
    config = LlamaConfig(**SIZES, num_hidden_layers=layers, initializer_range=0.15, attn_implementation=implementation)
    model = LlamaForCausalLM(config).eval()
    dimension = nn.functional.one_hot(torch.tensor(PLANTED), WIDTH).float()
    with torch.no_grad():
        for layer, direction, size in (
            (WRITER, planted_direction(), 0.6), (SECOND_WRITER, dimension, -3.0), (LAST_WRITER, -dimension, -12.0)
        ):  # fmt: skip
            if layer < layers:
                mlp = model.model.layers[layer].mlp
                mlp.gate_proj.weight[0] = mlp.up_proj.weight[0] = direction * 3
                mlp.down_proj.weight[:, 0] = 0
                mlp.down_proj.weight[PLANTED, 0] = size
                mlp.down_proj.weight[PLANTED + 1, 0] = -size / 2
    return model


def planted_direction() -> Tensor:
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    direction[PLANTED : PLANTED + 2] = 0
    return direction / direction.norm()


def utterances(number: int = 7) -> list[tuple[str, Tensor, Tensor]]:
    """Ids, embeddings (T, D) and roles (T,) of utterances of different lengths, audio alone and with video."""
    random = torch.Generator().manual_seed(3)
    found = []
    for index in range(number):
        audio, video, response = 3 + index, index % 3, 2 + index % 4
        roles = [Role.BOS, Role.AUDIO_START, *[Role.AUDIO] * audio, Role.AUDIO_END]
        if video:
            roles += [Role.VIDEO_START, *[Role.VIDEO] * video, Role.VIDEO_END]
        roles += [Role.PROMPT] * 3 + [Role.RESPONSE] * response
        embeddings = torch.randn(len(roles), WIDTH, generator=random) * 0.5
        planted = [0] * (index != 4) + [4] * (index % 2 or index == 4)
        planted += [len(roles) - response - 1] * (index % 3 == 0) + [len(roles) - 1] * (index == 5)
        for token in planted:
            embeddings[token] = planted_direction() * (6 + 2 * (token == 0)) + 0.2 * embeddings[token]
        found.append((f"utterance {index}", embeddings, torch.tensor([int(role) for role in roles])))
    return found


def batch(
    some: list[tuple[str, Tensor, Tensor]], extra: int = 0, side: str = "left"
) -> tuple[list[str], Tensor, Tensor]:
    """Pad utterances to one batch; padding has values that would change results."""
    length = max(len(roles) for _, _, roles in some) + extra
    embeddings = torch.full((len(some), length, WIDTH), 3.0)
    roles = torch.zeros(len(some), length, dtype=torch.long)
    for row, (_, values, names) in enumerate(some):
        place = slice(length - len(names), length) if side == "left" else slice(len(names))
        embeddings[row, place], roles[row, place] = values, names
    return [id for id, _, _ in some], embeddings, roles


def captured_batch(model: nn.Module, some: list, extra: int = 0, side: str = "left") -> tuple[list[str], Captured]:
    ids, embeddings, roles = batch(some, extra, side)
    return ids, capture(model, embeddings, roles != Role.PADDING, roles)


def streamed(model: nn.Module, batches: list[list], settings: Sinks = SETTINGS, **padding: object) -> SinkSummary:
    statistics = SinkStatistics(settings, model.config.num_hidden_layers, HEADS)
    for some in batches:
        ids, captured = captured_batch(model, some, **padding)
        statistics.add(captured, ids)
    return statistics.summary(bootstrap=200)


def replace_tau(tau: float) -> Sinks:
    return SETTINGS.model_copy(update={"tau": tau})


def no_hooks(model: nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
