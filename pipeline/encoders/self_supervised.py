"""Self-supervised models of speech: HuBERT, WavLM, wav2vec 2.0, and others in transformers that hear waveforms."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.config import AudioEncoder
from pipeline.encoders.pretrained import pretrained_identity
from pipeline.pretrained.folder import REMEDY, verify_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_RATE = 16_000
TRAINING_ONLY = {"masked_spec_embed"}
"""Parameters that a checkpoint may lack."""


class SelfSupervised:
    """The last hidden states of such a model; width and frame rate are those of its configuration.

    Utterances are encoded one by one: nothing is padded, so the others cannot change a bit of a result. (With padding
    they would: the normalisation of the first convolution of some of these models takes in all of the time axis.)

    Args:
        settings: `weights` is a Hugging Face folder of the model, with or without a head.
        device: where it runs, as `train.device` names it.

    Raises:
        PipelineError: there are no weights in the folder, or they are no such model.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    class Settings(AudioEncoder):
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
        # Samples that one frame sees: what is shorter has no frame.
        self.minimum = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.minimum = (self.minimum - 1) * stride + kernel

    @staticmethod
    def identity(settings: Settings) -> dict[str, Any]:
        """Name, precision and weights, see `pretrained_identity`."""
        return pretrained_identity(settings.encoder, settings.precision, settings.weights)

    def encode(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Encode utterances.

        Args:
            inputs: (samples,) float32 at 16 kHz; what is shorter than one frame is filled up with silence.

        Returns:
            For each (frames, dimension) float32.
        """
        return [self._encode(samples) for samples in inputs]

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        import torch

        samples = np.pad(samples, (0, max(0, self.minimum - len(samples))))
        values = self.normalise(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model(values.to(self.device)).last_hidden_state[0].float().cpu().numpy()


def _load(folder: Path) -> "PreTrainedModel":
    """The model in float32, without a head."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    verify_weights(folder)
    try:
        model, told = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        if model.main_input_name != "input_values" or not hasattr(model.config, "conv_stride"):
            raise ValueError(f"a {model.config.model_type} hears no waveforms")
        if missing := {name for name in told["missing_keys"] if name.rpartition(".")[2] not in TRAINING_ONLY}:
            raise ValueError(f"{len(missing)} tensors are missing, such as {min(missing)}")
        if not (folder / "preprocessor_config.json").is_file():
            raise ValueError("preprocessor_config.json is missing, which says how waveforms are normalised")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(folder, f"no model of speech can be loaded ({reason})", REMEDY) from None
    return model.eval()
