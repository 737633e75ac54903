"""When sinks appear: the main figures of the instrument, taken while a trial trains."""

from pipeline.config import Params
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.trial.inputs import Inputs
from pipeline.trial.measure import observe

UTTERANCES = 32
"""A fixed part of the clean validation split: enough to see sinks come and go, and a few seconds of work."""
FOLLOWED = (
    "sinks/bos_sink_rate",
    "sinks/intermediate_tokens_per_utterance",
    "sinks/intermediate_tokens_per_utterance/attention",
    "sinks/max_ratio/bos",
    "sinks/max_ratio/intermediate",
    "sinks/bos_cosine/sink",
    "sinks/bos_cosine/other",
    "sinks/relocated_share",
)


def emergence(model: AudioVisualLLM, params: Params, inputs: Inputs) -> dict[str, float]:
    """The followed metrics of the model as it is now. What does not exist (the cosine of no sink) is absent.

    Weights, gradients and random numbers are left as they are, so that training goes on as if nobody had looked.
    """
    was_training = model.training
    model.eval()
    try:
        found = observe(model, params.sinks, inputs, inputs.chosen("validation")[:UTTERANCES]).summary(0).metrics
    finally:
        model.train(was_training)
    return {name: found[name] for name in FOLLOWED if name in found}
