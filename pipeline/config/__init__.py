"""`params.yaml` as frozen, strict, typed values.

Each section is a class, each key a field with one line that says what it is. An unknown key, a wrong type, a value out
of range or two keys that contradict each other end in one `PipelineError` that names file, key, value and remedy,
before anything runs. There is nothing here but values and checks: what decides a result stands where a trial's identity
sees it.
"""

# ruff: noqa: F401

from pipeline.config.corpus import Corpus
from pipeline.config.decorrelation import Decorrelation
from pipeline.config.evaluate import Evaluate, Sinks
from pipeline.config.features import AudioEncoder, Augmentation, EncoderLoRA, VideoEncoder
from pipeline.config.model import LLM, LoRA, Modality, Model, Projector, Rates, Stream
from pipeline.config.params import Params, assign, known_below, load_params, validate
from pipeline.config.section import Section, checked
from pipeline.config.train import Train
from pipeline.config.weights import HubSource, PathSource, Weights, WheelSource
