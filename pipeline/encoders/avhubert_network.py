"""The network of AV-HuBERT, with the names of its published checkpoints.

B. Shi, W.-N. Hsu, K. Lakhotia, A. Mohamed, "Learning audio-visual speech representation by masked multimodal cluster
prediction", ICLR 2022: a ResNet-18 of the mouth after a 3-D convolution, a linear layer of stacked filterbanks, and
both concatenated into a pre-norm Transformer with convolutional positions.

In shapes below, `time` is in frames and `width` is that of the Transformer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
"""Width of an attention head in both published sizes."""
RESNET = (64, 128, 256, 512)
"""Channels of the stages of a ResNet-18."""


@dataclass(frozen=True)
class Sizes:
    """Hyperparameters of an AV-HuBERT."""

    width: int
    layers: int
    hidden: int
    """Width between the two linear layers of a Transformer layer."""
    filterbanks: int = 104
    """Audio values per frame."""
    positions: int = 128
    """Kernel size of the convolution of positions."""
    groups: int = 16
    """Groups of that convolution."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Sizes":
        """Read from the shapes of tensors. KeyError if a tensor that determines a size is missing."""
        width, of_group, positions = tensors["encoder.pos_conv.0.weight"].shape
        return cls(
            width=width,
            layers=len([name for name in tensors if name.endswith(".fc1.weight")]),
            hidden=tensors["encoder.layers.0.fc1.weight"].shape[0],
            filterbanks=tensors["feature_extractor_audio.proj.weight"].shape[1],
            positions=positions,
            groups=width // of_group,
        )


class AVHuBERTNetwork(nn.Module):
    """Encoder of audio, video or both into one sequence of frames."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.feature_extractor_audio = nn.ModuleDict({"proj": nn.Linear(sizes.filterbanks, sizes.width)})
        self.feature_extractor_video = nn.ModuleDict({"resnet": _ResNet(), "proj": nn.Linear(RESNET[-1], sizes.width)})
        self.layer_norm = nn.LayerNorm(2 * sizes.width)
        self.post_extract_proj = nn.Linear(2 * sizes.width, sizes.width)
        self.encoder = _Transformer(sizes)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "AVHuBERTNetwork":
        """The network with these tensors; its size follows from their shapes.

        Raises:
            KeyError, ValueError, ZeroDivisionError, RuntimeError: the tensors are not those of an AV-HuBERT.
        """
        with torch.device("meta"):
            network = cls(Sizes.of(tensors))
        network.load_state_dict(tensors, assign=True)
        return network

    def forward(self, audio: Tensor | None, video: Tensor | None, lengths: Tensor) -> Tensor:
        """Encode a batch; frames within the lengths do not depend on padding, those beyond are undefined.

        Args:
            audio: (batch, time, 104), stacked log filterbanks, normalised per frame; None without audio.
            video: (batch, time, 88, 88), the mouth, normalised, padded with 0; None without video.
            lengths: (batch,), frames of each utterance.

        Returns:
            (batch, time, width).
        """
        streams: list[Tensor | None] = [None, None]
        if audio is not None:
            streams[0] = self.feature_extractor_audio["proj"](audio)
        if video is not None:
            extractor = self.feature_extractor_video
            streams[1] = extractor["proj"](extractor["resnet"](video))
        present = next(stream for stream in streams if stream is not None)
        both = torch.cat([torch.zeros_like(present) if stream is None else stream for stream in streams], dim=-1)
        real = torch.arange(present.shape[1], device=present.device) < lengths[:, None]
        return self.encoder(self.post_extract_proj(self.layer_norm(both)), real)


class _ResNet(nn.Module):
    """(batch, time, 88, 88) to (batch, time, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, RESNET[0], (5, 7, 7), stride=(1, 2, 2), padding=(2, 3, 3), bias=False),
            nn.BatchNorm3d(RESNET[0]),
            nn.PReLU(RESNET[0]),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        widths = (RESNET[0], *RESNET)
        self.trunk = nn.ModuleDict(
            {
                f"layer{stage}": nn.Sequential(
                    _Residual(widths[stage - 1], widths[stage], 1 if stage == 1 else 2),
                    _Residual(widths[stage], widths[stage], 1),
                )
                for stage in range(1, len(widths))
            }
        )

    def forward(self, video: Tensor) -> Tensor:
        batch, frames = video.shape[:2]
        planes = self.frontend3D(video[:, None]).transpose(1, 2).flatten(0, 1)
        for stage in self.trunk.values():
            planes = stage(planes)
        return planes.mean(dim=(2, 3)).view(batch, frames, -1)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(after), nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(after), nn.PReLU(after)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, planes: Tensor) -> Tensor:
        kept = planes if self.downsample is None else self.downsample(planes)
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(planes))))) + kept)


class _Transformer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.pos_conv = nn.ModuleList(
            [nn.Conv1d(sizes.width, sizes.width, sizes.positions, padding=sizes.positions // 2, groups=sizes.groups)]
        )
        self.layers = nn.ModuleList([_Layer(sizes) for _ in range(sizes.layers)])
        self.layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, features: Tensor, real: Tensor) -> Tensor:
        features = features * real[..., None]
        # An even kernel yields one extra frame.
        positions = self.pos_conv[0](features.transpose(1, 2))[..., : features.shape[1]].transpose(1, 2)
        features = features + functional.gelu(positions)
        for layer in self.layers:
            features = layer(features, real)
        return self.layer_norm(features)


class _Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.self_attn = _Attention(sizes.width)
        self.final_layer_norm = nn.LayerNorm(sizes.width)
        self.fc1, self.fc2 = nn.Linear(sizes.width, sizes.hidden), nn.Linear(sizes.hidden, sizes.width)

    def forward(self, features: Tensor, real: Tensor) -> Tensor:
        features = features + self.self_attn(self.self_attn_layer_norm(features), real)
        return features + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(features))))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, features: Tensor, real: Tensor) -> Tensor:
        query, key, value = (
            linear(features).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, real[:, None, None, :])
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))
