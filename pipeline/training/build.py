"""The model of a trial, new or trained."""

import copy
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import resolve_device, resolve_precision
from pipeline.common.modality import streams
from pipeline.config import LLM, Params
from pipeline.encoders.protocol import encoder_kind
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoder import load_decoder, load_tokenizer
from pipeline.model.encoding import OnlineEncoder
from pipeline.pretrained.folder import verify_weights
from pipeline.training.inputs import Inputs
from pipeline.training.limits import require_fitting
from pipeline.trials.folder import Trial
from pipeline.trials.trained import require_adapter


def build_model(params: Params, inputs: Inputs, adapter: Path | None = None) -> AudioVisualLLM:
    """The model of a trial on its device: new (its initial values follow from `train.seed`), or with a trained adapter.

    Frozen weights are kept in the precision of the matrix products. A process loads them once, for all its trials.

    Args:
        params: all parameters.
        inputs: of the trial.
        adapter: of a trained trial, in its folder.

    Raises:
        PipelineError: the weights of the LLM, of an encoder, or the adapter are damaged or cannot be loaded, or the
            trial asks more of the LLM than it has.
    """
    if adapter:
        require_adapter(Trial(adapter.parent))
    device = resolve_device(params.train.device)
    precision = resolve_precision(params.train.precision, params.train.device)
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    # On a CPU the backward pass of the fused kernel takes a third of a training step at our lengths.
    attention = "eager" if device.type == "cpu" else "sdpa"
    decoder, tokenizer = _loaded(params.model.llm, inputs.digests["llm"], precision, attention)
    encoders = _encoders(params) if params.features.mode == "online" else {}
    dimensions = inputs.dimensions | {stream: online.encoder.dimension for stream, online in encoders.items()}
    # After the loading, so that a trial begins with equal values whether or not its LLM was there already.
    transformers.set_seed(params.train.seed)
    model = AudioVisualLLM(_sharing(decoder), tokenizer, dimensions, params.model, precision, adapter, encoders)
    require_fitting(model, params, inputs)
    return model.to(device)


def _encoders(params: Params) -> dict[str, OnlineEncoder]:
    """The encoders of the streams that the modality uses, each a trial's own, since LoRA changes them."""
    found: dict[str, OnlineEncoder] = {}
    for stream in streams(params.model.modality):
        settings = getattr(params.features, stream)
        encoder = encoder_kind(settings.encoder)(settings, params.train.device)
        found[stream] = OnlineEncoder(encoder, settings.lora)
    return found


@lru_cache(maxsize=1)
def _loaded(
    settings: LLM, digest: str, precision: str, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM, kept for the next trial; `digest` makes sure that it is still what lies in its folder."""
    verify_weights(settings.weights)
    try:
        return load_decoder(settings, getattr(torch, precision), attention), load_tokenizer(settings)
    except PipelineError:
        raise
    # A folder that `pipeline.weights` did not make has no record: what is damaged fails in any of three libraries.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "name a whole folder, with config.json, weights and tokenizer"
        raise PipelineError(settings.weights, f"no LLM can be loaded ({reason})", remedy) from error


def _sharing(decoder: PreTrainedModel) -> PreTrainedModel:
    """A decoder of its own layers, to which LoRA can be added, on the same frozen weights."""
    shared = {id(tensor): tensor for tensor in chain(decoder.parameters(), decoder.buffers())}
    return copy.deepcopy(decoder, shared)
