"""When sinks appear: the main figures of the instrument, taken while a trial trains."""

from pipeline.common import metrics
from pipeline.config import Params
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.training.inputs import Inputs
from pipeline.training.measure import observe

UTTERANCES = 32
"""A fixed part of the clean validation split: enough to see sinks come and go, and a few seconds of work."""


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
    followed = [metric.name for metric in metrics.shown(metrics.FOLLOWED)]
    return {name: found[name] for name in followed if name in found}
