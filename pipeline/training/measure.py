"""What a trained trial is measured by: hypotheses, and what the sink instrument sees."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pipeline.common.journal import Journal
from pipeline.common.progress import progress
from pipeline.config import Params, Sinks
from pipeline.corpora.manifest import Utterance
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoding import Hypothesis, decode
from pipeline.model.examples import Batch, batch_to
from pipeline.sinks.capture import Captured, capture
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.training.inputs import Inputs


def hypotheses(model: AudioVisualLLM, params: Params, inputs: Inputs, journal: Path) -> dict[str, Hypothesis]:
    """The hypothesis for every utterance, by id.

    Args:
        model: trained.
        params: section `evaluate` counts.
        inputs: the utterances to decode.
        journal: takes each utterance as it is decoded; what is whole there already is not decoded again.
    """
    with progress(len(inputs.utterances), "decode", "utterance") as bar, Journal(journal) as lines:
        found = {name: Hypothesis(*values) for name, values in lines.values}
        for utterances, batch in _batches(model, inputs, inputs.utterances, params.evaluate.batch_size):
            # Whole batches, so that each is what it is in an undisturbed run.
            if not all(u.id in found for u in utterances):
                made = decode(model, batch, params.evaluate.beams, params.evaluate.max_new_tokens)
                decoded = {utterance.id: hypothesis for utterance, hypothesis in zip(utterances, made, strict=True)}
                lines.add(*decoded.items())
                found |= decoded
            bar.update(len(utterances))
    return found


def sinks(model: AudioVisualLLM, params: Params, inputs: Inputs, split: str) -> SinkSummary:
    """The sink statistics of the clean utterances of a split, teacher-forced on the reference."""
    chosen = inputs.chosen(split)[: params.sinks.utterances]
    with progress(len(chosen), "sinks", "utterance") as bar:
        statistics = observe(model, params.sinks, inputs, chosen, bar.update)
    return statistics.summary(params.evaluate.bootstrap, speakers={u.id: u.speaker for u in chosen})


@torch.no_grad()
def observe(
    model: AudioVisualLLM,
    settings: Sinks,
    inputs: Inputs,
    utterances: Sequence[Utterance],
    seen: Callable[[int], object] = lambda count: None,
) -> SinkStatistics:
    """What the sink instrument sees of utterances, teacher-forced on the reference.

    Args:
        model: in evaluation mode.
        settings: thresholds and the size of a batch.
        inputs: the features, or the media, of the utterances.
        utterances: those to be measured.
        seen: is told after each batch how many utterances it had.
    """
    config = model.decoder.config.get_text_config(decoder=True)
    statistics = SinkStatistics(settings, config.num_hidden_layers, config.num_attention_heads)
    for chosen, batch in _batches(model, inputs, utterances, settings.batch_size):
        # Not kept in a name, which would hold one batch while the next is captured.
        statistics.add(teacher_forced(model, batch), [utterance.id for utterance in chosen])
        seen(len(chosen))
    return statistics


def teacher_forced(model: AudioVisualLLM, batch: Batch) -> Captured:
    """What goes on inside the LLM while it reads a batch with its responses."""
    sequence = model.sequence(batch, response=True)
    with model.autocast():
        return capture(model.llm, sequence.embeddings, sequence.mask, sequence.roles)


def _batches(
    model: AudioVisualLLM, inputs: Inputs, utterances: Sequence[Utterance], size: int
) -> Iterator[tuple[list[Utterance], Batch]]:
    """Utterances of like length together, the longest first: memory that will not do fails at the beginning."""
    ordered = sorted(utterances, key=lambda u: (-u.audio_seconds, u.id))
    for start in range(0, len(ordered), size):
        chosen = ordered[start : start + size]
        yield chosen, batch_to(inputs.examples(chosen, model.tokenize_response).as_batch(), model.device)
