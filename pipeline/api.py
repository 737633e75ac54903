"""Public Python API: the sink instrument on any causal language model, and trained trials on arrays.

It has all names that the README uses under "From Python". The rest of the package is internal and may change.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.analysis.figures import draw_sinks
from pipeline.common.errors import PipelineError
from pipeline.config import Sinks
from pipeline.model.examples import padded
from pipeline.model.llm import bos_token, max_positions, require_embedded
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured, capture
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.tracking.selection import named_trial
from pipeline.transcription.transcriber import Transcriber, Transcription

__all__ = [
    "Captured",
    "PipelineError",
    "Role",
    "SinkSummary",
    "Sinks",
    "Transcriber",
    "Transcription",
    "capture",
    "capture_texts",
    "draw_sinks",
    "load_trial",
    "measure_sinks",
]


def capture_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Captured:
    """Run a causal language model once over texts, each starting with BOS, without gradients.

    Args:
        model: any causal language model of transformers, or one wrapped by peft; it is not changed.
        tokenizer: the model's own. If it has no BOS token, that of the model's configuration is used, else EOS.
        texts: one batch. The residuals of all layers are in memory together.

    Returns:
        Residuals (batch, time, width) after each layer, attention and roles; padding is at the right. The first token
        of each text has the role of BOS, all others that of the response.

    Raises:
        PipelineError: there is no text, a text is empty or too long for the model, the tokenizer belongs to another
            model, or the model's layers or attention maps are not found.
    """
    bos = bos_token(tokenizer, model.config)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not rows or not all(rows):
        reason = f"text {rows.index([])} has no tokens" if rows else "the list is empty"
        raise PipelineError("texts", reason, "give at least one text, each with some words")
    longest, limit = max(map(len, rows)) + 1, max_positions(model.config)
    if limit and longest > limit:
        raise PipelineError("texts", f"one has {longest} tokens, and the model has room for {limit}", "split it")
    require_embedded([bos, *(token for row in rows for token in row)], model, "the texts")
    ids, lengths = padded([torch.tensor([bos, *row]) for row in rows])
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    roles = torch.where(mask, int(Role.RESPONSE), int(Role.PADDING))
    roles[:, 0] = Role.BOS
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids.to(model.device))
    return capture(model, embeddings, mask.to(model.device), roles.to(model.device))


def measure_sinks(batches: Iterable[Captured], settings: Sinks | None = None, bootstrap: int = 1000) -> SinkSummary:
    """Measure sinks and massive activations over captured batches.

    Args:
        batches: of one model. With a generator only one batch is in memory.
        settings: thresholds; by default those of the literature, see `Sinks`.
        bootstrap: resamplings of the sequences for the 95% intervals; 0 for none.

    Returns:
        `metrics` by name (defined in pipeline/README.md, where a sequence is an "utterance"), `arrays` by layer for
        figures, and a `description` that can be written as JSON.

    Raises:
        PipelineError: there is no batch, or no sequence has finite activations.
    """
    settings = settings or Sinks()
    statistics: SinkStatistics | None = None
    sequences = 0
    for captured in batches:
        layers, count, heads, _ = captured.attention_to_key.shape
        statistics = statistics or SinkStatistics(settings, layers, heads)
        statistics.add(captured, [f"{number:06}" for number in range(sequences, sequences + count)])
        sequences += count
    summary = statistics and statistics.summary(bootstrap)
    if not summary or not summary.metrics:
        reason = f"none of {sequences} sequences has finite activations" if sequences else "there are none"
        raise PipelineError("batches", reason, "capture at least one text with a model that has not diverged")
    return summary


def load_trial(name: str | Path, overrides: Sequence[str] = ()) -> Transcriber:
    """Load a trained trial to transcribe files and arrays.

    Args:
        name: its folder, or a prefix of its identity under `runs`.
        overrides: of evaluation settings and paths: `evaluate.beams=1`, `train.device=cpu`,
            `model.llm.weights=/models/smollm2-135m`. Paths of the trial are relative to the working folder.

    Raises:
        PipelineError: the trial does not exist or is not trained, or the LLM or an encoder is missing or not the one
            used in training.
    """
    return Transcriber(named_trial(str(name), "runs"), list(overrides))
