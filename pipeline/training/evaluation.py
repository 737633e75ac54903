"""The evaluation of a model: hypotheses and their scores, and the metrics of the sink instrument."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from pipeline.common import metrics
from pipeline.common.journal import append_values, read_journal
from pipeline.common.progress import progress
from pipeline.config import Params, Sinks
from pipeline.corpora.manifest import Utterance
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoding import Hypothesis, decode
from pipeline.model.examples import Batch, batch_to
from pipeline.scoring.error_rates import score
from pipeline.sinks.capture import Captured, capture
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.sinks.recording import evaluating
from pipeline.training.inputs import Inputs
from pipeline.trials.results import TRUNCATED

FOLLOWED_UTTERANCES = 32
"""Utterances of the clean validation split on which sinks are measured during training, in a few seconds."""


def hypotheses(model: AudioVisualLLM, params: Params, inputs: Inputs, journal: Path) -> dict[str, Hypothesis]:
    """The hypotheses of a trained model for all utterances of the inputs, by id, with the settings of section
    `evaluate`. The file `journal` gets each utterance when it is decoded; utterances in it are not decoded again."""
    with progress(len(inputs.utterances), "decode", "utterance") as bar:
        decoded = {name: Hypothesis(*values) for name, values in read_journal(journal)}
        for utterances in grouped_by_length(inputs.utterances, params.evaluate.batch_size):
            # Complete batches, so that results do not depend on an interruption.
            if not all(u.id in decoded for u in utterances):
                batch = batch_of(model, inputs, utterances)
                results = decode(model, batch, params.evaluate.beams, params.evaluate.max_new_tokens)
                new = {utterance.id: hypothesis for utterance, hypothesis in zip(utterances, results, strict=True)}
                append_values(journal, *new.items())
                decoded |= new
            bar.update(len(utterances))
    return decoded


def scores(params: Params, inputs: Inputs, decoded: Mapping[str, Hypothesis]) -> tuple[dict[str, float], list[dict]]:
    """Metrics of each split and condition, and the lines of `hypotheses.jsonl`. Warns of truncated hypotheses."""
    values: dict[str, float] = {}
    lines: list[dict] = []
    for split in params.evaluate.splits:
        for condition in inputs.conditions(split):
            utterances = inputs.chosen(split, condition)
            outputs = [decoded[utterance.id] for utterance in utterances]
            name = split if condition == "clean" else f"{split}/{condition}"
            result = score(
                [utterance.text for utterance in utterances],
                [hypothesis.text for hypothesis in outputs],
                params.evaluate.bootstrap,
                speakers=[utterance.speaker for utterance in utterances],
            )
            truncated = sum(hypothesis.is_truncated for hypothesis in outputs)
            if truncated:
                print(
                    f"warning: {truncated} of {len(utterances)} hypotheses of {name} were truncated "
                    f"at evaluate.max_new_tokens {params.evaluate.max_new_tokens}; raise it",
                    file=sys.stderr,
                    flush=True,
                )
            values |= result.metrics(name) | {f"{TRUNCATED}/{name}": truncated}
            lines += [
                {
                    "split": split,
                    "condition": condition,
                    "id": utterance.id,
                    "speaker": utterance.speaker,
                    "reference": utterance.text,
                    "hypothesis": hypothesis.text,
                    "is_truncated": hypothesis.is_truncated,
                    **scored.record(),
                }
                for utterance, hypothesis, scored in zip(utterances, outputs, result.utterances, strict=True)
            ]
    return values, lines


def sinks(model: AudioVisualLLM, params: Params, inputs: Inputs) -> tuple[dict[str, float], SinkSummary]:
    """The sink metrics of the clean utterances of `sinks.split` and, with `sinks.validation`, of the validation split;
    and the summary of the former."""
    summary = _summary(model, params, inputs, params.sinks.split)
    if not params.sinks.validation:
        return summary.metrics, summary
    is_same = params.sinks.split == "validation"
    validation = summary if is_same else _summary(model, params, inputs, "validation")
    # The names contain the split, also those of the ends of an interval: `sinks/…/validation/low`.
    renamed = {re.sub("(/low|/high|)$", r"/validation\1", name, count=1): v for name, v in validation.metrics.items()}
    return renamed | summary.metrics, summary


def _summary(model: AudioVisualLLM, params: Params, inputs: Inputs, split: str) -> SinkSummary:
    chosen = inputs.chosen(split)[: params.sinks.utterances]
    with progress(len(chosen), "sinks", "utterance") as bar:
        statistics = sink_statistics(model, params.sinks, inputs, chosen, bar.update)
    return statistics.summary(params.evaluate.bootstrap, speakers={u.id: u.speaker for u in chosen})


def followed_metrics(model: AudioVisualLLM, params: Params, inputs: Inputs) -> dict[str, float]:
    """The sink metrics that are followed during training, of the current model on the first validation utterances, by
    the names of that split; the evaluation measures all of it (`sinks.validation`). Undefined ones are absent.

    Weights, gradients and random numbers are not changed.
    """
    chosen = inputs.chosen("validation")[:FOLLOWED_UTTERANCES]
    with evaluating(model):
        values = sink_statistics(model, params.sinks, inputs, chosen).summary(0).metrics
    followed = [metric.name for metric in metrics.shown(metrics.FOLLOWED)]
    return {f"{name}/validation": values[name] for name in followed if name in values}


@torch.no_grad()
def require_measurable(model: AudioVisualLLM, inputs: Inputs) -> None:
    """Run the sink instrument on the longest validation utterance, so that a model whose sinks it cannot measure is
    refused before the training: a PipelineError as in `capture`."""
    _, batch = next(batches_by_length(model, inputs, inputs.chosen("validation"), 1))
    with evaluating(model):
        teacher_forced(model, batch)


@torch.no_grad()
def sink_statistics(
    model: AudioVisualLLM,
    settings: Sinks,
    inputs: Inputs,
    utterances: Sequence[Utterance],
    update: Callable[[int], object] = lambda count: None,
) -> SinkStatistics:
    """The statistics of the sink instrument on utterances, teacher-forced on the reference.

    `model` is in evaluation mode; `update` is called after each batch with its number of utterances.
    """
    config = model.llm.config.get_text_config(decoder=True)
    statistics = SinkStatistics(settings, config.num_hidden_layers, config.num_attention_heads)
    for chosen, batch in batches_by_length(model, inputs, utterances, settings.batch_size):
        # No variable, which would keep one batch in memory while the next is captured.
        statistics.add(teacher_forced(model, batch), [utterance.id for utterance in chosen])
        update(len(chosen))
    return statistics


def teacher_forced(model: AudioVisualLLM, batch: Batch) -> Captured:
    """The internal states of the LLM on a batch with its responses."""
    sequence = model.sequence(batch, response=True)
    with model.autocast():
        return capture(model.llm, sequence.embeddings, sequence.mask, sequence.roles)


def batches_by_length(
    model: AudioVisualLLM, inputs: Inputs, utterances: Sequence[Utterance], size: int
) -> Iterator[tuple[list[Utterance], Batch]]:
    """`grouped_by_length`, each group with its batch."""
    for chosen in grouped_by_length(utterances, size):
        yield chosen, batch_of(model, inputs, chosen)


def grouped_by_length(utterances: Sequence[Utterance], size: int) -> Iterator[list[Utterance]]:
    """Utterances of similar length, the longest first, so that a lack of memory shows at the beginning."""
    ordered = sorted(utterances, key=lambda u: (-u.audio_seconds, u.id))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def batch_of(model: AudioVisualLLM, inputs: Inputs, utterances: Sequence[Utterance]) -> Batch:
    """The batch of these utterances on the model's device; in mode online the reading of their media begins."""
    return batch_to(inputs.examples(utterances, model.tokenize_response).as_batch(), model.device)
