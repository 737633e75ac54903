"""Whisper's encoder, of any size."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.common.encoder_input import EncoderInput, prepared
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.common.rates import SAMPLE_RATE
from pipeline.config import AudioEncoderSettings
from pipeline.encoders.protocol import pretrained_identity
from pipeline.pretrained.folder import load_errors, verify_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

WINDOW = 30 * SAMPLE_RATE
"""Samples of the input length that Whisper was trained on."""
VECTOR_RATE = 50
"""Vectors, which are the encoder's frames, per second."""
FRAME = SAMPLE_RATE // VECTOR_RATE
"""Samples per vector."""
MEL_FRAMES = 2
"""Columns of the log-mel spectrogram per vector."""
MEL_WINDOW = WINDOW // FRAME * MEL_FRAMES
MIN_FRAMES = 25
"""Minimum number of vectors: half a second."""
CUDA_WINDOWS = 16
"""Padded windows per batch on a GPU. On a CPU it is one: its 1,500 positions occupy all cores, and larger batches are
slower (tiny.en, two cores, bfloat16: 0.055 s per window alone, 0.068 s in a batch of eight)."""


class Whisper:
    """Whisper's encoder on windows of 30 s, cut to the length of each utterance.

    The encoder has no padding mask and was trained on 30 s only. Each window is therefore padded with silence, and of
    its 1,500 vectors those within the utterance are kept: one per full 20 ms, at least 25. An utterance over 30 s is
    cut into windows that are encoded separately, as Whisper does with long audio.

    With `window: fitted` a window is padded to the next whole second only. Its vectors differ (cosine 0.94 to the
    padded ones on tiny.en): Whisper's own decoder fails on them, while a projector can be trained on them.
    """

    frame_rate = VECTOR_RATE
    supports: ClassVar[frozenset[str]] = frozenset()

    class Settings(AudioEncoderSettings):
        """Of `features.audio`."""

        weights: str = "data/weights/whisper-tiny.en"
        window: Literal["padded", "fitted"] = "padded"
        """padded: each utterance is padded to 30 s, as in Whisper's training. fitted: to the next whole second, which
        is many times cheaper for short utterances; Whisper's own decoder fails on such vectors, a projector trained on
        them does not."""

    def __init__(self, settings: Settings, device: str = "auto") -> None:
        from transformers import WhisperFeatureExtractor

        self.device = resolve_device(device)
        self.precision = resolve_precision(settings.precision)
        encoder: Any = _load(Path(settings.weights))
        self.encoder: WhisperEncoder = encoder.to(self.device)
        self.dimension = self.encoder.config.d_model
        self.log_mel = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)
        self.is_fitted = settings.window == "fitted"
        # Batches of a multiple of it, of utterances of at most 30 s, have no pass that is padded.
        self.windows = CUDA_WINDOWS if self.device.type == "cuda" and not self.is_fitted else 1

    @staticmethod
    def identity(settings: Settings) -> dict[str, Any]:
        return pretrained_identity(settings.encoder, settings.precision, settings.weights) | {"window": settings.window}

    def encode(self, inputs: Sequence[np.ndarray | EncoderInput]) -> list[np.ndarray]:
        """Encode utterances; a result depends neither on the batch nor on the number of CPU threads.

        Returns:
            Per input (max(samples // 320, 25), dimension) float32.
        """
        return [vectors.cpu().numpy() for vectors in self.vectors(prepared(self, inputs))]

    def prepare(self, content: np.ndarray) -> EncoderInput:
        """The log-mel spectrograms of the windows of an utterance, one after the other: (bins, 100 per second)
        float32."""
        # Up to the last full vector: a shorter rest has none, so it needs no window.
        begins = range(0, max(len(content) // FRAME * FRAME, 1), WINDOW)
        windows = [self._log_mel(content[begin : begin + WINDOW]) for begin in begins]
        return EncoderInput(np.concatenate(windows, axis=1), len(content))

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """(bins, 100 per second) of a window."""
        seconds = -(-max(len(samples), MIN_FRAMES * FRAME) // SAMPLE_RATE)
        length = seconds * SAMPLE_RATE if self.is_fitted else WINDOW
        spectrogram = self.log_mel(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="np", padding="max_length", max_length=length
        )
        return spectrogram.input_features[0]

    def vectors(self, inputs: Sequence[EncoderInput]) -> list["Tensor"]:
        """Encode prepared utterances, on the device.

        Returns:
            Per input (max(samples // 320, 25), dimension) float32.
        """
        import torch

        cut = [
            (number, window)
            for number, item in enumerate(inputs)
            for window in torch.as_tensor(item.values).split(MEL_WINDOW, dim=1)
        ]
        vectors: list[list[Tensor]] = [[] for _ in inputs]
        for first in range(0, len(cut), self.windows):
            numbers, windows = zip(*cut[first : first + self.windows], strict=True)
            for number, window in zip(numbers, self._pass(list(windows)), strict=True):
                vectors[number].append(window)
        frames = [max(item.length // FRAME, MIN_FRAMES) for item in inputs]
        return [torch.cat(parts)[:count] for parts, count in zip(vectors, frames, strict=True)]

    def _pass(self, windows: list["Tensor"]) -> "Tensor":
        """(windows, positions, dimension) of at most `self.windows` windows. The batch is padded with silence to a
        fixed size, since on a GPU the last bits depend on the batch size."""
        import torch

        missing = self.windows - len(windows)
        silence = [torch.as_tensor(self._silence)] * missing if missing else []
        mel = torch.stack(windows + silence).to(self.device, non_blocking=True)
        with torch.no_grad(), autocast(self.precision, self.device):
            vectors = self._encoder_of(mel.shape[2] // MEL_FRAMES)(mel).last_hidden_state
        return vectors[: len(windows)].float()

    @functools.cached_property
    def _silence(self) -> np.ndarray:
        return self._log_mel(np.zeros(1, np.float32))

    @functools.lru_cache(maxsize=WINDOW // SAMPLE_RATE)  # noqa: B019 - an encoder lives as long as its process
    def _encoder_of(self, positions: int) -> "WhisperEncoder":
        """The encoder for windows with this number of vectors: the same tensors with fewer positions."""
        import torch
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        if positions == self.encoder.config.max_source_positions:
            return self.encoder
        config = copy.deepcopy(self.encoder.config)
        config.max_source_positions = positions
        with torch.device("meta"):
            encoder = WhisperEncoder(config)
        tensors = self.encoder.state_dict()
        tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:positions]
        encoder.load_state_dict(tensors, assign=True)
        return encoder.eval()


def _load(folder: Path) -> "WhisperEncoder":
    """The encoder in float32, from a checkpoint of the encoder alone, of `WhisperModel`, or of a model with a head."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    verify_weights(folder)
    with load_errors(folder, "a Whisper encoder"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
        if config.model_type != "whisper":
            raise ValueError(f"a {config.model_type}")
        names = [name for name in tensors if name.endswith("conv1.weight")]
        if not names:
            raise ValueError("no encoder")
        prefix = names[0].removesuffix("conv1.weight")
        encoder = WhisperEncoder(config)
        encoder.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return encoder.float().eval()
