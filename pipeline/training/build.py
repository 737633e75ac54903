"""The model of a trial, new or trained, and the check that its LLM suits it."""

import copy
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import resolve_device, resolve_precision
from pipeline.common.modality import streams
from pipeline.common.rates import FRAME_RATE
from pipeline.config import LLM, Params
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.utterance_media import Media
from pipeline.encoders.protocol import encoder_kind
from pipeline.encoders.store import Features
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decorrelation import counted_layers
from pipeline.model.llm import load_llm, load_tokenizer, max_positions
from pipeline.model.online_encoders import OnlineEncoder
from pipeline.pretrained.folder import verify_weights
from pipeline.training.inputs import Inputs
from pipeline.trials.folder import Trial
from pipeline.trials.trained import require_adapter


def build_model(
    params: Params, inputs: Inputs, trained: Trial | None = None, dimensions: Mapping[str, int] | None = None
) -> AudioVisualLLM:
    """The model of a trial on its device: that of `trained`, or a new one, whose values follow from `train.seed`.

    Frozen weights have the precision of the matrix products. A process loads them once, for all its trials.
    `dimensions` are those of the features of each stream, if the inputs have none. PipelineError if the weights of the
    LLM, of an encoder or the adapter are damaged or cannot be loaded, or the LLM has too few layers or positions for
    the trial.
    """
    if trained:
        require_adapter(trained)
    device = resolve_device(params.train.device)
    precision = resolve_precision(params.train.precision, params.train.device)
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    # On a CPU the backward pass of the fused kernel takes a third of a training step at our lengths.
    attention = "eager" if device.type == "cpu" else "sdpa"
    llm, tokenizer = _loaded(params.model.llm, inputs.digests["llm"], precision, attention)
    encoders = _encoders(params) if params.features.mode == "online" else {}
    widths = dict(dimensions or inputs.dimensions)
    widths |= {stream: online.encoder.dimension for stream, online in encoders.items()}
    # After loading, so that a trial starts from equal values whether or not its LLM was loaded already.
    transformers.set_seed(params.train.seed)
    adapter = trained.adapter if trained else None
    model = AudioVisualLLM(_with_own_layers(llm), tokenizer, widths, params.model, precision, adapter, encoders)
    _require_capacity(model, params, inputs)
    return model.to(device)


def _encoders(params: Params) -> dict[str, OnlineEncoder]:
    """An encoder for each stream that the modality uses; every trial has its own, since LoRA changes them."""
    encoders: dict[str, OnlineEncoder] = {}
    for stream in streams(params.model.modality):
        settings = getattr(params.features, stream)
        encoder = encoder_kind(settings.encoder)(settings, params.train.device)
        encoders[stream] = OnlineEncoder(encoder, settings.lora)
    return encoders


@lru_cache(maxsize=1)
def _loaded(
    settings: LLM, digest: str, precision: str, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM, kept for the next trial; `digest` makes sure that the files have not changed."""
    verify_weights(settings.weights)
    return load_llm(settings, getattr(torch, precision), attention), load_tokenizer(settings)


def _with_own_layers(llm: PreTrainedModel) -> PreTrainedModel:
    """A copy of the LLM to which LoRA can be added; the frozen weights are shared."""
    shared = {id(tensor): tensor for tensor in chain(llm.parameters(), llm.buffers())}
    return copy.deepcopy(llm, shared)


def _require_capacity(model: AudioVisualLLM, params: Params, inputs: Inputs) -> None:
    """Check that the LLM has the layers that the decorrelation loss counts, and positions for all utterances."""
    config = model.llm.config.get_text_config(decoder=True)
    if params.decorrelation.weight > 0:
        counted_layers(params.decorrelation, config.num_hidden_layers)
    positions = max_positions(config)
    if positions is None or not inputs.utterances or _longest(model, params, inputs) <= positions:
        return
    too_long = sorted(_too_long(model, params, inputs, positions), reverse=True)
    if too_long:
        tokens, name = too_long[0]
        raise PipelineError(
            params.model.llm.weights,
            f"it takes {positions:,} tokens, and {len(too_long)} of {len(inputs.utterances)} utterances need more "
            f"(the most, {tokens:,}: {name})",
            "raise model.rates, lower evaluate.max_new_tokens, leave long utterances out of the corpus, or take an LLM "
            "with more positions",
        )


def _longest(model: AudioVisualLLM, params: Params, inputs: Inputs) -> int:
    """An upper bound of the tokens of all utterances: that of one which has the most frames and the longest text."""
    frames: dict[str, int] = {}
    for stream in model.streams:
        source = inputs.streams[stream]
        frames[stream] = (
            source.longest
            if isinstance(source, Features)
            else max(_frames(model, inputs, stream, utterance) for utterance in inputs.utterances)
        )
    text = max(len(utterance.text.encode()) for utterance in inputs.utterances) + 1
    return model.length(frames, max(params.evaluate.max_new_tokens, text))


def _too_long(model: AudioVisualLLM, params: Params, inputs: Inputs, positions: int) -> Iterator[tuple[int, str]]:
    """Tokens and id of each utterance that is too long, including its text or the longest hypothesis."""
    for utterance in inputs.utterances:
        hypothesis = params.evaluate.max_new_tokens if utterance.split in params.evaluate.splits else 0
        frames: dict[str, int] = {stream: _frames(model, inputs, stream, utterance) for stream in model.streams}
        # No text has more tokens than bytes, and counting bytes takes no time.
        upper_bound = max(hypothesis, len(utterance.text.encode()) + 1)
        if model.length(frames, upper_bound) > positions:
            tokens = model.length(frames, max(hypothesis, len(model.tokenize_response(utterance.text))))
            if tokens > positions:
                yield tokens, utterance.id


def _frames(model: AudioVisualLLM, inputs: Inputs, stream: str, utterance: Utterance) -> int:
    source = inputs.streams[stream]
    if not isinstance(source, Media):
        return len(source[utterance.id])
    encoding: Any = model.encoders[stream]
    seconds = utterance.audio_seconds if stream == "audio" else (utterance.video_frames or 0) / FRAME_RATE
    return math.ceil(seconds * encoding.encoder.frame_rate)
