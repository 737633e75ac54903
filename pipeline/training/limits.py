"""What a trial asks of its LLM, checked before anything is trained or decoded: layers for the loss, and positions."""

import math
from collections.abc import Iterator
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.config import Params
from pipeline.corpora.manifest import FRAME_RATE, Utterance
from pipeline.corpora.reading import Media
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoder import max_positions
from pipeline.model.decorrelation import counted_layers
from pipeline.training.inputs import Inputs


def require_fitting(model: AudioVisualLLM, params: Params, inputs: Inputs) -> None:
    """Refuse a trial that its LLM cannot take.

    Raises:
        PipelineError: the decorrelation loss counts a layer that there is not, or an utterance needs more positions
            than the LLM has.
    """
    config = model.decoder.config.get_text_config(decoder=True)
    if params.decorrelation.weight > 0:
        counted_layers(params.decorrelation, config.num_hidden_layers)
    longest = max_positions(config)
    if longest is None:
        return
    too_long = sorted(_too_long(model, params, inputs, longest), reverse=True)
    if too_long:
        tokens, name = too_long[0]
        raise PipelineError(
            params.model.llm.weights,
            f"it takes {longest:,} tokens, and {len(too_long)} of {len(inputs.utterances)} utterances need more "
            f"(the most, {tokens:,}: {name})",
            "raise model.rates, lower evaluate.max_new_tokens, leave long utterances out of the corpus, or take an LLM "
            "with more positions",
        )


def _too_long(model: AudioVisualLLM, params: Params, inputs: Inputs, longest: int) -> Iterator[tuple[int, str]]:
    """Tokens and id of each utterance that does not fit, its text or the longest hypothesis included."""
    for utterance in inputs.utterances:
        hypothesis = params.evaluate.max_new_tokens if utterance.split in params.evaluate.splits else 0
        frames: dict[str, int] = {stream: _frames(model, inputs, stream, utterance) for stream in model.streams}
        # No text has more tokens than bytes, and counting bytes takes no time.
        most = max(hypothesis, len(utterance.text.encode()) + 1)
        if model.length(frames, most) > longest:
            tokens = model.length(frames, max(hypothesis, len(model.tokenize_response(utterance.text))))
            if tokens > longest:
                yield tokens, utterance.id


def _frames(model: AudioVisualLLM, inputs: Inputs, stream: str, utterance: Utterance) -> int:
    found = inputs.streams[stream]
    if not isinstance(found, Media):
        return len(found[utterance.id])
    encoding: Any = model.encoders[stream]
    seconds = utterance.audio_seconds if stream == "audio" else (utterance.video_frames or 0) / FRAME_RATE
    return math.ceil(seconds * encoding.encoder.frame_rate)
