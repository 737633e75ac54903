"""`params.yaml` as frozen, strict, typed values.

Each section is a class and each key a documented field. An unknown key, a wrong type, a value out of range or two
contradictory keys is one `PipelineError` that names file, key, value and remedy, before any work starts. This package
contains values and checks only: code that decides a result belongs where a trial's identity covers it.
"""

# ruff: noqa: F401

from pipeline.common.modality import Modality, Stream
from pipeline.config.corpus import Corpus
from pipeline.config.evaluate import Evaluate, Sinks
from pipeline.config.features import AudioEncoderSettings, Augmentation, EncoderLoRA, VideoEncoderSettings
from pipeline.config.model import LLM, LoRA, Model, ProjectorSettings, Rates
from pipeline.config.params import Params, assign, known_below, load_params, parse_assignment, validate
from pipeline.config.section import Section, checked
from pipeline.config.train import Decorrelation, Train
from pipeline.config.weights import HubSource, PathSource, WeightsSource, WheelSource
