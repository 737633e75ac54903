"""Parameters of stage `weights`; published AV-HuBERT checkpoints in small or full size, with random tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Params, validate
from pipeline.encoders.avhubert_network import Sizes

NARROW = Sizes(width=128, layers=2, hidden=192)
BASE, LARGE = Sizes(width=768, layers=12, hidden=3072), Sizes(width=1024, layers=24, hidden=4096)
CLUSTERS, CODE = 2004, 256
"""Targets of pre-training, and the width of their vectors, as in both published sizes."""


def weights_params(out: Path, source: dict[str, Any], format: str, name: str = "w") -> Params:
    """Parameters with one source of pretrained weights."""
    few = {"train": 1, "validation": 1, "test": 1}
    corpus = {"kind": "synthetic", "synthetic": {"voices": few, "utterances": few}}
    sources = [{"name": name, "format": format, "source": source}]
    return validate({"weights": {"out": str(out), "sources": sources}, "corpus": corpus}, "params.yaml")


def small_whisper(folder: Path, **sizes: int) -> None:
    """Write a random Whisper of width 16, complete, as transformers saves it; `sizes` are added."""
    # Slow to import, and few tests need it.
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=16, vocab_size=51865, **sizes,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)


def official(sizes: Sizes, heads: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint; `heads` adds those of pre-training."""
    width, hidden = sizes.width, sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "feature_extractor_audio.proj.weight": (width, 104),
        "feature_extractor_audio.proj.bias": (width,),
        "feature_extractor_video.proj.weight": (width, 512),
        "feature_extractor_video.proj.bias": (width,),
        "post_extract_proj.weight": (width, 2 * width),
        "post_extract_proj.bias": (width,),
        "encoder.pos_conv.0.bias": (width,),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (width, width // 16, 128),
    }
    norms = {"layer_norm": 2 * width, "encoder.layer_norm": width}
    resnet = "feature_extractor_video.resnet"
    shapes[f"{resnet}.frontend3D.0.weight"] = (64, 1, 5, 7, 7)
    shapes[f"{resnet}.frontend3D.2.weight"] = (64,)
    batch_norms = {f"{resnet}.frontend3D.1": 64}
    before = 64
    for stage, after in enumerate((64, 128, 256, 512), 1):
        for number in range(2):
            block = f"{resnet}.trunk.layer{stage}.{number}"
            shapes[f"{block}.conv1.weight"] = (after, before if number == 0 else after, 3, 3)
            shapes[f"{block}.conv2.weight"] = (after, after, 3, 3)
            shapes |= {f"{block}.relu{i}.weight": (after,) for i in (1, 2)}
            batch_norms |= {f"{block}.bn{i}": after for i in (1, 2)}
        if before != after:
            shapes[f"{resnet}.trunk.layer{stage}.0.downsample.0.weight"] = (after, before, 1, 1)
            batch_norms[f"{resnet}.trunk.layer{stage}.0.downsample.1"] = after
        before = after
    for layer in range(sizes.layers):
        prefix = f"encoder.layers.{layer}"
        linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        linear |= {"fc1": (hidden, width), "fc2": (width, hidden)}
        for name, shape in linear.items():
            shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        norms |= {f"{prefix}.self_attn_layer_norm": width, f"{prefix}.final_layer_norm": width}
    for name, size in (norms | batch_norms).items():
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for name, size in batch_norms.items():
        shapes |= {f"{name}.running_mean": (size,), f"{name}.running_var": (size,)}
        shapes[f"{name}.num_batches_tracked"] = ()
    if heads:
        shapes |= {"mask_emb": (width,), "label_embs_concat": (CLUSTERS, CODE)}
        shapes |= {"final_proj.weight": (CODE, width), "final_proj.bias": (CODE,)}
    return shapes


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors that keep activations in bounds."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1000)
        elif name.endswith("running_var"):
            tensors[name] = torch.rand(shape, generator=random) + 0.5
        elif len(shape) < 2:
            tensors[name] = 0.2 * torch.randn(shape, generator=random) + (0.8 if name.endswith("weight") else 0)
        else:
            fan = int(np.prod(shape[1:]))
            tensors[name] = torch.randn(shape, generator=random) * fan**-0.5
    return tensors
