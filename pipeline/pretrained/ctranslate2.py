"""Conversion of a CTranslate2 Whisper to a Hugging Face folder of its encoder."""

import struct
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json

VERSION = 6
TYPES: dict[int, np.dtype] = dict(enumerate(map(np.dtype, ("<f4", "i1", "<i2", "<i4", "<f2"))))
SAMPLE_RATE, HOP, WINDOW, SECONDS = 16_000, 160, 400, 30


def convert_whisper(source: Path, folder: Path) -> None:
    """Write the encoder of a CTranslate2 Whisper, float32 or float16, as a Hugging Face folder for `WhisperEncoder`.
    PipelineError if `model.bin` is missing, truncated, quantised to integers, or not a Whisper."""
    from safetensors.numpy import save_file

    file = source / "model.bin"
    if not file.is_file():
        raise PipelineError(file, "the file is missing", "use the folder of a Whisper converted by CTranslate2")
    tensors = read_tensors(file)
    try:
        heads = int(tensors["encoder/num_heads"])
        encoder = _encoder(tensors)
    except KeyError as error:
        raise PipelineError(file, f"has no tensor {error}", "use a Whisper converted by CTranslate2") from None
    for name, tensor in encoder.items():
        if tensor.dtype.kind != "f":
            raise PipelineError(file, f"has {name} as {tensor.dtype}", "convert it with quantization float16")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(t) for name, t in encoder.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    positions, width = encoder["embed_positions.weight"].shape
    bins = encoder["conv1.weight"].shape[1]
    write_json(
        folder / "config.json",
        {
            "architectures": ["WhisperEncoder"],
            "model_type": "whisper",
            "dtype": str(encoder["conv1.weight"].dtype),
            "d_model": width,
            "encoder_layers": _layers(tensors),
            "encoder_attention_heads": heads,
            "encoder_ffn_dim": encoder["layers.0.fc1.weight"].shape[0],
            "max_source_positions": positions,
            "num_mel_bins": bins,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": bins,
            "sampling_rate": SAMPLE_RATE,
            "hop_length": HOP,
            "n_fft": WINDOW,
            "chunk_length": SECONDS,
            "n_samples": SECONDS * SAMPLE_RATE,
            "nb_max_frames": SECONDS * SAMPLE_RATE // HOP,
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
    )


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a CTranslate2 `model.bin` by name, memory-mapped.

    The file has a header (version of the format, name and revision of the specification, number of tensors), then per
    tensor its name, rank, dimensions, type, bytes. A name is a 16-bit length and a NUL-terminated string. PipelineError
    if the file is truncated, or has another version or format.
    """
    data = _Bytes(file)
    if (version := data.number("I")) != VERSION:
        raise PipelineError(file, f"has format version {version} of CTranslate2", f"it must be {VERSION}")
    data.name()
    data.number("I")
    tensors: dict[str, np.ndarray] = {}
    for _ in range(data.number("I")):
        name = data.name()
        shape = tuple(data.number("I") for _ in range(data.number("B")))
        kind = TYPES.get(data.number("B"))
        values = data.take(data.number("I"))
        if kind is None or len(values) != kind.itemsize * int(np.prod(shape)):
            raise PipelineError(file, f"has {len(values)} bytes in {name}, of shape {shape}", "fetch it again")
        tensors[name] = values.view(kind).reshape(shape)
    return tensors


class _Bytes:
    """Sequential reader of a file that raises an error at its end."""

    def __init__(self, file: Path) -> None:
        self.file, self.offset = file, 0
        self.data = np.memmap(file, mode="r") if file.stat().st_size else np.empty(0, np.uint8)

    def take(self, count: int) -> np.ndarray:
        end = self.offset + count
        if end > len(self.data):
            raise PipelineError(self.file, f"ends at byte {len(self.data)}, before byte {end}", "fetch it again")
        begin, self.offset = self.offset, end
        return self.data[begin:end]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)).tobytes())[0]

    def name(self) -> str:
        return self.take(self.number("H")).tobytes().rstrip(b"\0").decode("ascii", errors="replace")


def _layers(tensors: dict[str, np.ndarray]) -> int:
    return len([name for name in tensors if name.startswith("encoder/") and name.endswith("/ffn/linear_0/weight")])


def _encoder(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's tensors with their names in transformers."""
    encoder = {"embed_positions.weight": tensors["encoder/position_encodings/encodings"]}
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        encoder[name] = tensors[f"encoder/{name.replace('.', '/')}"]
    encoder |= _layer_norm(tensors, "encoder/layer_norm", "layer_norm")
    for layer in range(_layers(tensors)):
        old_layer, new_layer = f"encoder/layer_{layer}", f"layers.{layer}"
        attention = f"{old_layer}/self_attention"
        # Query, key and value are stacked; the key has no bias in Whisper and zeros here.
        for part, weight, bias in zip(
            ("q", "k", "v"),
            np.split(tensors[f"{attention}/linear_0/weight"], 3),
            np.split(tensors[f"{attention}/linear_0/bias"], 3),
            strict=True,
        ):
            encoder[f"{new_layer}.self_attn.{part}_proj.weight"] = weight
            if part != "k":
                encoder[f"{new_layer}.self_attn.{part}_proj.bias"] = bias
        for old, new in (
            (f"{attention}/linear_1", "self_attn.out_proj"),
            (f"{old_layer}/ffn/linear_0", "fc1"),
            (f"{old_layer}/ffn/linear_1", "fc2"),
        ):
            for part in ("weight", "bias"):
                encoder[f"{new_layer}.{new}.{part}"] = tensors[f"{old}/{part}"]
        encoder |= _layer_norm(tensors, f"{attention}/layer_norm", f"{new_layer}.self_attn_layer_norm")
        encoder |= _layer_norm(tensors, f"{old_layer}/ffn/layer_norm", f"{new_layer}.final_layer_norm")
    return encoder


def _layer_norm(tensors: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}.weight": tensors[f"{old}/gamma"], f"{new}.bias": tensors[f"{old}/beta"]}
