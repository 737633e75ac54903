"""The parts of a trial on the CPU and on the second device: `python tests/on_second_device.py FOLDER` writes JSON.

For each part, the largest relative difference of its results between the devices, and the number of synchronisations.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import second_device
import tiny
import torch
from published import NARROW, drawn, official
from second_device import DEVICE, Elsewhere, by_file, waits
from torch import Tensor
from transformers import TrainerCallback

from pipeline.common.files import write_json
from pipeline.config import Decorrelation, EncoderLoRA, Rates, Sinks, Train, VideoEncoderSettings
from pipeline.encoders.avhubert import AVHuBERT
from pipeline.encoders.avhubert_checkpoint import convert_avhubert
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoding import decode
from pipeline.model.examples import Batch, Examples, MediaExamples, batch_to, collate
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.model.online_encoders import OnlineEncoder
from pipeline.sinks.capture import Captured
from pipeline.sinks.instrument import SinkStatistics
from pipeline.sinks.interventions import mask_keys, rotate, set_activations
from pipeline.training.batches import Batches
from pipeline.training.evaluation import teacher_forced
from pipeline.training.trainer import LossTrainer, training_arguments
from pipeline.trials.metrics_log import MetricsLog

CPU = torch.device("cpu")
TEXTS = ["set red", "bin blue at f two", "a", "lay white by z nine soon", "place", "now"]
SECONDS = [0.5, 1.3, 0.24, 1.0, 0.8, 0.6]
DECORRELATION = Decorrelation(weight=1.0, roles=("audio", "video", "prompt"))
TRAIN = Train(steps=6, batch_size=3, log_every=3, checkpoint_every=3, validate_every=6, precision="float32")


def built(llm: Path, device: torch.device, encoders: Any = None, **changes: Any) -> AudioVisualLLM:
    settings = tiny.settings(llm, **changes)
    torch.manual_seed(0)
    decoder = load_llm(settings.llm, torch.float32, "sdpa")
    dimensions = tiny.DIMENSIONS | {stream: one.encoder.dimension for stream, one in (encoders or {}).items()}
    tokenizer = load_tokenizer(settings.llm)
    model = AudioVisualLLM(decoder, tokenizer, dimensions, settings, "float32", encoders=encoders)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.to(device)


def examples_of(model: AudioVisualLLM) -> Examples:
    ids = [f"u{number}" for number in range(len(TEXTS))]
    return Examples(tiny.features(SECONDS), ids, [model.tokenize_response(text) for text in TEXTS])


def plain(tensor: Tensor) -> Tensor:
    return tensor.value if isinstance(tensor, Elsewhere) else tensor


def on_both(llm: Path, part: Callable[[AudioVisualLLM, Batch], tuple[Any, dict[str, int]]]) -> dict[str, Any]:
    """A part of a trial on both devices, its results held against each other."""
    results = []
    counts: dict[str, int] = {}
    for device in (CPU, DEVICE):
        with second_device.second_device():
            model = built(llm, device)
            batch = batch_to(collate(examples_of(model).__getitems__(range(len(TEXTS)))), device)
            waits.clear()
            result, counts = part(model, batch)
            counts |= {"all": sum(waits.values()), "ours": by_file("pipeline/"), "lines": dict(waits)}
        results.append(result)
    return counts | {"difference": difference(*results)}


def difference(here: Any, there: Any) -> float:
    """The largest difference of two lists of tensors, relative to the largest value; infinite where texts differ."""
    worst = 0.0
    for one, other in zip(here, there, strict=True):
        if isinstance(one, str):
            worst = max(worst, 0.0 if one == other else float("inf"))
            continue
        one, other = (plain(torch.as_tensor(value)).double() for value in (one, other))
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)))
    return worst


def step(model: AudioVisualLLM, batch: Batch) -> tuple[Any, dict[str, int]]:
    losses = model.train()(batch, DECORRELATION)
    (losses.cross_entropy + losses.decorrelation).backward()
    gradients = [parameter.grad for parameter in model.trainable().values()]
    return [losses.cross_entropy.detach(), losses.decorrelation.detach(), *gradients], {}


def checkpointed_step(model: AudioVisualLLM, batch: Batch) -> tuple[Any, dict[str, int]]:
    model.checkpoint_activations()
    return step(model, batch)


def decoding(model: AudioVisualLLM, batch: Batch) -> tuple[Any, dict[str, int]]:
    # What `torch.inference_mode` decorates cannot be run on a subclass of tensors.
    with torch.no_grad():
        return [text for text, _ in decode.__wrapped__(model.eval(), batch, 3, 8)], {}


def capture(model: AudioVisualLLM, batch: Batch) -> tuple[Any, dict[str, int]]:
    with torch.no_grad():
        captured = teacher_forced(model.eval(), batch)
    during = by_file("pipeline/")
    return metrics_of(captured), {"during": during}


def metrics_of(captured: Captured) -> list[float]:
    layers, _, heads, _ = captured.attention_to_key.shape
    statistics = SinkStatistics(Sinks(), layers, heads)
    statistics.add(captured, [f"u{number}" for number in range(len(TEXTS))])
    metrics = statistics.summary(0).metrics
    return [metrics[name] for name in sorted(metrics)]


def interventions(model: AudioVisualLLM, batch: Batch) -> tuple[Any, dict[str, int]]:
    """Each on the token after BOS: sink metrics with the reference, and decoded texts."""
    results: list[Any] = []
    with torch.no_grad():
        for response in (True, False):
            sequence = model.eval().sequence(batch, response)
            where = (sequence.positions == 1) & sequence.mask
            dimensions = where[..., None].expand_as(sequence.embeddings)
            bos = sequence.mask.long().argmax(1, keepdim=True).expand_as(sequence.roles)
            for intervention in (
                set_activations(model.llm, 1, dimensions, torch.zeros_like(sequence.embeddings)),
                rotate(model.llm, 1, where, bos, 60.0),
                mask_keys(model.llm, where),
            ):
                with intervention:
                    if response:
                        results += metrics_of(teacher_forced(model, batch))
                    else:
                        results += [text for text, _ in decode.__wrapped__(model, batch, 3, 8)]
    return results, {}


class Count(TrainerCallback):
    """The waits until the end of each step."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.after.append(sum(waits.values()))


def lips(llm: Path, folder: Path) -> dict[str, Any]:
    """A step that trains LoRA inside AV-HuBERT, on media."""
    torch.save({"model": drawn(official(NARROW))}, folder / "narrow.pt")
    convert_avhubert(folder / "narrow.pt", folder / "avhubert")
    lora = EncoderLoRA(rank=4, alpha=8)
    settings = VideoEncoderSettings(
        encoder="avhubert", weights=str(folder / "avhubert"), precision="float32", lora=lora
    )
    random = np.random.default_rng(0)
    clips = {f"u{number}": random.integers(0, 256, (5 + number, 88, 88), np.uint8) for number in range(3)}
    results = []
    for device in (CPU, DEVICE):
        with second_device.second_device():
            encoder = AVHuBERT(settings, str(device))
            encoders = {"video": OnlineEncoder(encoder, lora)}
            torch.manual_seed(0)
            model = built(llm, device, encoders, modality="video", rates=Rates(video=2))
            examples = MediaExamples(
                {"video": clips}, list(clips), [model.tokenize_response(text) for text in TEXTS[:3]]
            )
            batch = batch_to(examples.as_batch(), device)
            waits.clear()
            result, _ = step(model, batch)
            results.append(result)
    return {"difference": difference(*results), "lines": dict(waits)}


def training(
    llm: Path, folder: Path, device: torch.device, resumed: Path | None = None
) -> tuple[AudioVisualLLM, list[int]]:
    """A trained model, and the waits in each step but those that a log, a validation or a checkpoint came before."""
    model, count = built(llm, device), Count()
    examples = examples_of(model)
    trainer = LossTrainer(
        DECORRELATION,
        MetricsLog(folder / "metrics.jsonl"),
        Batches([round(25 * seconds) for seconds in SECONDS], TRAIN),
        model=model,
        args=training_arguments(TRAIN, 6, folder / "checkpoints", device),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collate,
        callbacks=[count],
    )
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    quiet = [number for number in range(1, len(count.after)) if number % TRAIN.log_every]
    return model, [count.after[number] - count.after[number - 1] for number in quiet]


def trained(llm: Path, folder: Path) -> dict[str, Any]:
    """Six steps on the CPU; on the second device the same, and the last three again from a checkpoint."""
    weights, steps = {}, {}
    for name, device in (("here", CPU), ("there", DEVICE), ("again", DEVICE)):
        resumed = folder / "there/checkpoints/checkpoint-3" if name == "again" else None
        with second_device.second_device():
            model, steps[name] = training(llm, folder / name, device, resumed)
            weights[name] = [parameter.detach() for parameter in model.trainable().values()]
    return {
        "difference": difference(weights["here"], weights["there"]),
        "resumed": difference(weights["there"], weights["again"]),
        "steps": steps,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    llm = tiny.make_llm(folder / "llm")
    parts = {part.__name__: on_both(llm, part) for part in (step, checkpointed_step, decoding, capture, interventions)}
    parts["lips"] = lips(llm, folder)
    parts["trained"] = trained(llm, folder)
    write_json(folder / "found.json", parts)


if __name__ == "__main__":
    main()
