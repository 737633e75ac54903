"""The model of a trial, new or trained."""

from pathlib import Path

import torch
import transformers

from pipeline.common.hardware import resolve_device
from pipeline.common.precision import resolve_precision
from pipeline.config import Params
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoder import load_decoder, load_tokenizer
from pipeline.trial.inputs import Inputs


def build_model(params: Params, inputs: Inputs, adapter: Path | None = None) -> AudioVisualLLM:
    """The model of a trial on its device: new (its initial values follow from `train.seed`), or with a trained adapter.

    Frozen weights are kept in the precision of the matrix products.
    """
    device = resolve_device(params.train.device)
    precision = resolve_precision(params.train.precision, params.train.device)
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    transformers.set_seed(params.train.seed)
    settings = params.model.llm
    decoder = load_decoder(settings, getattr(torch, precision))
    tokenizer = load_tokenizer(settings)
    return AudioVisualLLM(decoder, tokenizer, inputs.dimensions, params.model, precision, adapter).to(device)
