"""Time and memory of a trial of `experiments/paper.yaml` on this machine, at full size, with random weights.

Run by `make bench`. Llama-3.2-1B, the encoder of Whisper medium and AV-HuBERT large are written as folders of weights
to the paths in that file, and loaded like any weights; sizes are read from configurations and tensors. The tokenizer is
SmolLM2's, whose vocabulary is smaller, so texts have other tokens than with Llama's. Each part is a separate process,
since peak memory is measured per process. The last part counts what Llama-3.2-3B stores for the backward pass of 16
utterances of 16 seconds.
"""

import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiny
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging

from pipeline.common.rates import FRAME_RATE
from pipeline.config import Params, Rates
from pipeline.encoders.avhubert_network import AVHuBERTNetwork, Sizes
from pipeline.encoders.protocol import encoder_kind
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoding import decode_texts
from pipeline.model.examples import Batch, Example, batch_to, collate
from pipeline.pretrained.folder import weights_digest
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.training.build import build_model
from pipeline.training.inputs import Inputs

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "data/weights/smollm2-135m"
CHOSEN = ("corpus.kind=lrs3", "modality=audiovisual", "rates.audio=16", "rates.video=5", "decorrelation.weight=10000")
UTTERANCES, SECONDS = (int(os.environ.get(f"BENCH_{name}", 4)) for name in ("UTTERANCES", "SECONDS"))
"""Utterances and their length: few for a CPU; a batch of the paper is 16 utterances of 16 seconds."""
TEXT = "and so we have to look at it from another point of view"
NEW_TOKENS = 8
"""Per hypothesis; random weights do not generate an end token."""
LLAMA = LlamaConfig(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=131_072,
    rope_parameters={
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
)  # fmt: skip
LLAMA_3B = LlamaConfig(
    **LLAMA.to_dict() | {"hidden_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 24, "head_dim": 128}
)
"""Three of its 28 layers."""
LAYERS_3B = 28
WHISPER = WhisperConfig(
    d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096, num_mel_bins=80
)
AVHUBERT = Sizes(width=1024, layers=24, hidden=4096)


def paper() -> Params:
    """The parameters of one trial of the paper's grid; its paths are relative to the working folder."""
    params = load_sweep(ROOT / "experiments/paper.yaml", ROOT / "params.yaml", only=CHOSEN).seeded_points[0].params
    # Each part is measured separately: the LLM gets cached features.
    return params.model_copy(update={"features": params.features.model_copy(update={"mode": "cached"})})


def write_weights(params: Params) -> None:
    """Write random weights to the trial's paths, in bfloat16."""
    write_llm(LLAMA, params.model.llm.weights)
    WhisperEncoder(WHISPER).bfloat16().save_pretrained(params.features.audio.weights)
    folder = Path(params.features.video.weights)
    folder.mkdir(parents=True)
    save_file(AVHuBERTNetwork(AVHUBERT).bfloat16().state_dict(), folder / "model.safetensors")


def write_llm(config: LlamaConfig, folder: str) -> None:
    """Write a random LLM in bfloat16, with the tokenizer."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in TOKENIZER.glob("token*"):
        shutil.copy(file, folder)


class Encoded(dict[str, np.ndarray]):
    """Features of one stream by utterance, in memory."""

    @property
    def dimension(self) -> int:
        return next(iter(self.values())).shape[1]


def encode(params: Params, stream: str) -> None:
    """Encode noise, and save the features for the next parts."""
    random = np.random.default_rng(0)
    settings = getattr(params.features, stream)
    encoder = encoder_kind(settings.encoder)(settings)
    shape, draw = {
        "audio": ((SECONDS * 16_000,), lambda shape: 0.1 * random.standard_normal(shape, np.float32)),
        "video": ((SECONDS * 25, 96, 96), lambda shape: random.integers(0, 256, shape, np.uint8)),
    }[stream]
    media = [draw(shape) for _ in range(UTTERANCES)]
    encoder.encode(media[:1])
    features, seconds = timed(lambda: encoder.encode(media))
    np.savez(f"{stream}.npz", **{f"u{number}": row.astype(np.float16) for number, row in enumerate(features)})
    (network,) = (part for part in vars(encoder).values() if isinstance(part, nn.Module))
    print_line(f"{stream}: {settings.encoder}, {encoder.precision}, vectors {features[0].shape}", network, 0, seconds)


def encoded() -> dict[str, Encoded]:
    """The features of each stream that an earlier part has written."""
    return {stream: Encoded(np.load(f"{stream}.npz")) for stream in ("audio", "video")}


def built(params: Params, features: dict[str, Encoded]) -> tuple[AudioVisualLLM, Batch]:
    """The model as a trial builds it, and a batch of all utterances."""
    model = build_model(params, Inputs((), features, {"llm": weights_digest(params.model.llm.weights)}))
    examples = [
        Example(u, {s: f[u] for s, f in features.items()}, model.tokenize_response(TEXT)) for u in features["audio"]
    ]
    return model, batch_to(collate(examples), model.device)


def train(params: Params) -> None:
    """Forward, backward and the optimizer's step, the decorrelation loss included."""
    model, batch = built(params, encoded())
    trained = list(model.train().trainable().values())
    settings = params.train
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay)

    def step() -> None:
        losses = model(batch, params.decorrelation)
        (losses.cross_entropy + params.decorrelation.weight * losses.decorrelation).backward()
        nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    step()
    _, seconds = timed(step)
    length = model.sequence(batch, response=True).mask.shape[1]
    count = sum(parameter.numel() for parameter in trained)
    # Forward, and backward to the activations: a frozen weight has no gradient.
    operations = (
        4 * sum(parameter.numel() for parameter in model.adapted_llm.parameters()) * length * len(batch["response"])
    )
    rate = f"{operations / seconds[0] / 1e12:.2f} TFLOP/s"
    print_line(f"training step: {model.precision}, {length} tokens per utterance, {rate}", model, count, seconds)


def decode(params: Params) -> None:
    """Beam search, as in an evaluation."""
    model, batch = built(params, encoded())
    beams = params.evaluate.beams
    decode_texts(model.eval(), batch, beams, 1)
    _, seconds = timed(lambda: decode_texts(model, batch, beams, NEW_TOKENS))
    print_line(f"decoding: {beams} beams, {NEW_TOKENS} new tokens", model, 0, seconds)


def activations(params: Params) -> None:
    """Bytes that autograd stores for the backward pass of Llama-3.2-3B, without and with activation checkpointing.

    Two layers and three are run at their real widths. All layers are equal, so the others are counted, not run.
    """
    model = params.model
    llm = model.llm.model_copy(update={"weights": "llama-3b"})
    lora = model.lora.model_copy(update={"rank": 96, "alpha": 12})
    write_llm(LLAMA_3B, llm.weights)
    features = {
        stream: Encoded({f"u{number}": np.zeros((16 * rate, 1024), np.float16) for number in range(16)})
        for stream, rate in (("audio", 2 * FRAME_RATE), ("video", FRAME_RATE))
    }
    print(f"\nstored for the backward pass of a batch of 16 utterances of 16 s: Llama-3.2-3B, {LAYERS_3B} layers")
    print(f"{'':52}{'stored':>12}{'with checkpointing':>30}")
    for rates in (Rates(audio=4, video=2), Rates(audio=16, video=5)):
        for weight in (0.0, params.decorrelation.weight):
            stored = {}
            for blocks, is_checkpointed in itertools.product((2, 3), (False, True)):
                settings = {"llm": llm.model_copy(update={"blocks": blocks}), "lora": lora, "rates": rates}
                trial = params.model_copy(update={"model": model.model_copy(update=settings)})
                stored[blocks, is_checkpointed] = stored_bytes(trial, features, weight, is_checkpointed)
            layer, checkpointed = (stored[3, kind] - stored[2, kind] for kind in (False, True))
            full = stored[2, False] + (LAYERS_3B - 2) * layer
            # In the backward pass the layer at hand is computed again.
            least = stored[2, True] + (LAYERS_3B - 2) * checkpointed + layer
            print(f"{f'audio {rates.audio}, video {rates.video}, decorrelation weight {weight:g}':52}"
                  f"{full / 1e9:9.3f} GB{least / 1e9:27.3f} GB", flush=True)  # fmt: skip


def stored_bytes(params: Params, features: dict[str, Encoded], weight: float, is_checkpointed: bool) -> int:
    """Bytes that autograd stores in a forward pass of a trial's model, as on a GPU."""
    model, batch = built(params, features)
    model.llm.set_attn_implementation("sdpa")
    if is_checkpointed:
        model.checkpoint_activations()
    decorrelation = params.decorrelation.model_copy(update={"weight": weight})
    _, stored = tiny.stored_in_pass(model.train(), batch, decorrelation)
    return stored


def timed(action: Callable[[], object]) -> tuple[object, np.ndarray]:
    """The result of an action, with its wall-clock and CPU seconds; warm up before, to select kernels and allocate."""
    began = _now()
    result = action()
    return result, _now() - began


def _now() -> np.ndarray:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def print_line(what: str, network: nn.Module, trained: int, seconds: np.ndarray) -> None:
    """Print a line of the table, with the peak memory of the GPU or else of the process."""
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    total = sum(parameter.numel() for parameter in network.parameters())
    times = "".join(f"{one:10.2f} s" for one in seconds)
    print(f"{what:52}{total / 1e6:9,.1f} M{trained / 1e6:9,.1f} M{times}{peak / 1e9:8.2f} GB", flush=True)


PARTS: dict[str, Callable[[Params], None]] = {
    "weights": write_weights,
    "audio": lambda params: encode(params, "audio"),
    "video": lambda params: encode(params, "video"),
    "train": train,
    "decode": decode,
    "activations": activations,
}


def main() -> None:
    """Run one part in the working folder, or all of them in a temporary one."""
    if len(sys.argv) == 2:
        PARTS[sys.argv[1]](paper())
        return
    if not TOKENIZER.is_dir():
        sys.exit(f"error: {TOKENIZER}: there is no tokenizer; create it: python -m pipeline.weights")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {len(os.sched_getaffinity(0))} cores"
    print(f"a trial of experiments/paper.yaml, random weights, {UTTERANCES} utterances of {SECONDS} s, {where}")
    print(f"{'':52}{'parameters':>11}{'trained':>11}{'time':>12}{'processor':>12}{'memory':>11}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            subprocess.run(
                [sys.executable, __file__, part], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )


if __name__ == "__main__":
    main()
