"""Self-supervised speech models of transformers with waveform input: HuBERT, WavLM, wav2vec 2.0 and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.common.encoder_input import EncoderInput, prepared
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.common.rates import SAMPLE_RATE
from pipeline.config import AudioEncoderSettings
from pipeline.encoders.protocol import pretrained_identity
from pipeline.pretrained.folder import load_errors, verify_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TRAINING_ONLY = {"masked_spec_embed"}
"""Parameters that a checkpoint may lack."""


class SelfSupervised:
    """The last hidden states of such a model, with the width and frame rate of its configuration.

    Utterances are encoded one by one without padding, so a result does not depend on the batch. (The first convolution
    of some of these models normalises over the whole time axis, including padding.)
    """

    supports: ClassVar[frozenset[str]] = frozenset()

    class Settings(AudioEncoderSettings):
        """Of `features.audio`."""

        weights: str

    def __init__(self, settings: Settings, device: str = "auto") -> None:
        from transformers import Wav2Vec2FeatureExtractor

        self.device = resolve_device(device)
        self.precision = resolve_precision(settings.precision)
        model: Any = _load(Path(settings.weights))
        self.model: PreTrainedModel = model.to(self.device)
        self.normalise = Wav2Vec2FeatureExtractor.from_pretrained(settings.weights)
        config = self.model.config
        self.dimension = config.hidden_size
        self.frame_rate = SAMPLE_RATE // int(np.prod(config.conv_stride))
        # The receptive field of one frame.
        self.minimum = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.minimum = (self.minimum - 1) * stride + kernel

    @staticmethod
    def identity(settings: Settings) -> dict[str, Any]:
        return pretrained_identity(settings.encoder, settings.precision, settings.weights)

    def encode(self, inputs: Sequence[np.ndarray | EncoderInput]) -> list[np.ndarray]:
        """Encode utterances.

        Returns:
            Per input (frames, dimension) float32.
        """
        return [vectors.cpu().numpy() for vectors in self.vectors(prepared(self, inputs))]

    def prepare(self, content: np.ndarray) -> EncoderInput:
        """The waveform as the model takes it, (samples,) float32: normalised, and at least one frame long."""
        samples = np.pad(content, (0, max(0, self.minimum - len(content))))
        values = self.normalise(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values[0]
        return EncoderInput(values, len(content))

    def vectors(self, inputs: Sequence[EncoderInput]) -> list["Tensor"]:
        """Encode prepared utterances, one by one, on the device."""
        import torch

        with torch.no_grad(), autocast(self.precision, self.device):
            waveforms = (torch.as_tensor(item.values)[None].to(self.device, non_blocking=True) for item in inputs)
            return [self.model(waveform).last_hidden_state[0].float() for waveform in waveforms]


def _load(folder: Path) -> "PreTrainedModel":
    """The model in float32, without a head."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    verify_weights(folder)
    with load_errors(folder, "a speech model"):
        model, info = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        if model.main_input_name != "input_values" or not hasattr(model.config, "conv_stride"):
            raise ValueError(f"a {model.config.model_type} has no waveform input")
        if missing := {name for name in info["missing_keys"] if name.rpartition(".")[2] not in TRAINING_ONLY}:
            raise ValueError(f"{len(missing)} tensors are missing, such as {min(missing)}")
        if not (folder / "preprocessor_config.json").is_file():
            raise ValueError("preprocessor_config.json with the normalisation of waveforms is missing")
    return model.eval()
