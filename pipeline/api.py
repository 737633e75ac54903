"""The library's door: the sink instrument on any causal language model, and trained trials on arrays.

All names that the README uses under "From Python" are here. Everything else of the package is internal and may change.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.analysis.figures import draw_sinks
from pipeline.common.errors import PipelineError
from pipeline.comparison.selection import named_trial
from pipeline.config import Sinks
from pipeline.model.decoder import bos_token, most_positions, require_embedded
from pipeline.model.examples import padded
from pipeline.model.roles import Role
from pipeline.sinks.capture import capture
from pipeline.sinks.captured import Captured
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.transcription.transcriber import Heard, Transcriber

__all__ = [
    "Captured",
    "Heard",
    "PipelineError",
    "Role",
    "SinkSummary",
    "Sinks",
    "Transcriber",
    "capture",
    "capture_texts",
    "draw_sinks",
    "load_trial",
    "measure_sinks",
]


def capture_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Captured:
    """One pass of a causal language model over texts, each begun with BOS, without gradient.

    Args:
        model: any causal language model of transformers, or one wrapped by peft; it is left as it was.
        tokenizer: the model's own. If it has no BOS, the end of text takes its place.
        texts: one batch. It is held in memory whole, with the residual after each of the model's layers.

    Returns:
        Residuals (B, T, D) after each layer, attention and roles; padding is at the right. The first token of each text
        has the role of BOS, all others that of the response.

    Raises:
        PipelineError: there is no text, one has no token or more than the model takes, the tokenizer is of another
            model, or the model's layers or its attention maps cannot be found.
    """
    bos = bos_token(tokenizer, model.config)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not rows or not all(rows):
        found = f"text {rows.index([])} has no token" if rows else "there is none"
        raise PipelineError("texts", found, "give at least one text, each with some words in it")
    longest, most = max(map(len, rows)) + 1, most_positions(model.config)
    if most and longest > most:
        raise PipelineError("texts", f"one has {longest} tokens, and the model takes {most}", "cut it into pieces")
    require_embedded([bos, *(token for row in rows for token in row)], model, "the texts")
    ids, lengths = padded([torch.tensor([bos, *row]) for row in rows])
    real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    roles = torch.where(real, int(Role.RESPONSE), int(Role.PADDING))
    roles[:, 0] = Role.BOS
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids.to(model.device))
    return capture(model, embeddings, real.to(model.device), roles.to(model.device))


def measure_sinks(batches: Iterable[Captured], settings: Sinks | None = None, bootstrap: int = 1000) -> SinkSummary:
    """Sinks and massive activations over captured batches, which are taken one at a time.

    Args:
        batches: of one model. A generator keeps a single batch in memory.
        settings: thresholds; by default those of the literature, see `Sinks`.
        bootstrap: resamplings of the sequences for the 95% intervals; 0 asks for none.

    Returns:
        `metrics` by name (the README's table says what they mean, with "utterance" for a sequence), `arrays` by layer
        for figures, and a `description` fit for JSON.

    Raises:
        PipelineError: there is no batch, or no sequence has finite activations.
    """
    settings = settings or Sinks()
    statistics: SinkStatistics | None = None
    seen = 0
    for captured in batches:
        layers, count, heads, _ = captured.importance.shape
        statistics = statistics or SinkStatistics(settings, layers, heads)
        statistics.add(captured, [f"{number:06}" for number in range(seen, seen + count)])
        seen += count
    summary = statistics and statistics.summary(bootstrap)
    if not summary or not summary.metrics:
        found = f"none of {seen} sequences has finite activations" if seen else "there is none"
        raise PipelineError("batches", found, "capture at least one text on a model that has not diverged")
    return summary


def load_trial(name: str | Path, overrides: Sequence[str] = ()) -> Transcriber:
    """A trained trial, to transcribe files and arrays with.

    Args:
        name: its folder, or the beginning of its identity under `runs`.
        overrides: of what is evaluated and where things lie: `evaluate.beams=1`, `train.device=cpu`,
            `model.llm.weights=/models/smollm2-135m`. Paths of the trial are relative to the working folder.

    Raises:
        PipelineError: there is no such trial, it is not trained, or the LLM or an encoder is missing or another than it
            was trained with.
    """
    return Transcriber(named_trial(str(name), "runs"), list(overrides))
