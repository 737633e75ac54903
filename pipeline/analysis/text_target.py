"""A causal language model and a plain text as the analysis target: windows of tokens, scored by perplexity."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.analysis.items import ItemBatch, ScoreKind
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, read_text
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.config import LLM, Params
from pipeline.model.backbone import run_backbone, vocabulary_logits
from pipeline.model.llm import bos_token, load_llm, load_tokenizer, max_positions, require_embedded
from pipeline.model.roles import Role
from pipeline.model.sequence import InputBatch
from pipeline.pretrained.folder import weights_digest


class TextTarget:
    """A text split into windows of equal length, each starting with BOS; an incomplete last window is dropped.
    PipelineError if the model is missing or cannot be loaded, the text cannot be read or is empty, or the windows are
    too long for the model.

    Args:
        folder: a model of the transformers library: config.json, weights, tokenizer.
        file: the text, in UTF-8.
        tokens: length of a window, BOS included.
        params: sections `sinks` (batch size) and `train` (device, precision, threads).
        sequences: the number of windows to take; None for all.
    """

    item: Literal["sequence"] = "sequence"
    score_kind = ScoreKind.PERPLEXITY
    speakers = None

    def __init__(self, folder: Path, file: Path, tokens: int, params: Params, sequences: int | None) -> None:
        text = read_text(file, "give a text file with --text")
        if not text.strip():
            raise PipelineError(file, "is empty", "give a text file with some words in it")
        if tokens < 2:
            raise PipelineError("--tokens", f"{tokens} leaves no token after BOS", "use at least 2, or better 64")
        device = resolve_device(params.train.device)
        self._precision = resolve_precision(params.train.precision, params.train.device)
        if params.train.threads:
            torch.set_num_threads(params.train.threads)
        self._size = params.sinks.batch_size
        settings = LLM(weights=str(folder))
        llm: Any = load_llm(settings, getattr(torch, self._precision))
        self.llm: PreTrainedModel = llm.to(device)
        self._tokenizer = load_tokenizer(settings)
        longest = max_positions(self.llm.config)
        if longest and tokens > longest:
            raise PipelineError(
                "--tokens", f"{tokens} exceeds the maximum length of {folder}", f"use at most {longest}"
            )
        bos = bos_token(self._tokenizer, self.llm.config)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PipelineError(file, f"has no token of {folder}", "use a text that its tokenizer knows")
        require_embedded([bos, *ids], self.llm, "the text")
        self._windows = _windows(ids, bos, tokens)[:sequences]
        name = folder.resolve().name
        self.name = f"{name}_{file.stem}"
        """Usable as a folder name."""
        self.title = f"{name} on {file.name}, each sequence starting with {self._tokenizer.decode([bos])!r}"
        self._folder, self._file = folder, file

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the outputs of `run`."""
        return {
            "model": weights_digest(self._folder),
            "text": file_sha256(self._file),
            "windows": list(self._windows.shape),
            "batch_size": self._size,
            "precision": self._precision,
        }

    def __len__(self) -> int:
        return len(self._windows)

    def autocast(self) -> AbstractContextManager:
        """The context in which the LLM runs."""
        return autocast(self._precision, self.llm.device)

    def batches(self) -> Iterator[ItemBatch]:
        """All windows, also as inputs of `run`."""
        for numbers in torch.arange(len(self)).split(self._size):
            windows = self._windows[numbers].to(self.llm.device)
            with torch.no_grad():
                embeddings = self.llm.get_input_embeddings()(windows).float()
            roles = torch.full_like(windows, int(Role.RESPONSE))
            roles[:, 0] = Role.BOS
            labels = [[repr(self._tokenizer.decode([token])) for token in window] for window in windows.tolist()]
            yield ItemBatch(
                [f"{number:06}" for number in numbers.tolist()], InputBatch(embeddings, roles), labels, windows
            )

    intervention_batches = batches

    @torch.no_grad()
    def run(self, batch: ItemBatch) -> list[list[float]]:
        """Nats over the tokens after BOS, and their number, for each window, under any active intervention.
        PipelineError if nats are not finite."""
        windows: Tensor = batch.content
        with self.autocast():
            sequence = batch.sequence
            hidden = run_backbone(
                self.llm,
                inputs_embeds=sequence.embeddings,
                attention_mask=sequence.mask.long(),
                position_ids=sequence.positions,
                use_cache=False,
            ).last_hidden_state
            outputs = []
            # One at a time: the logits of a batch would take the most memory of all.
            for row, window in zip(hidden, windows, strict=True):
                logits = vocabulary_logits(self.llm, row[None, :-1])[0].float()
                outputs.append([float(cross_entropy(logits, window[1:], reduction="sum")), len(window) - 1])
        if not all(math.isfinite(nats) for nats, _ in outputs):
            remedy = "calculate in float32 (--set train.precision=float32), or use a model that has not diverged"
            raise PipelineError(self.title, "a perplexity is not finite", remedy)
        return outputs

    def score_counts(self, outputs: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """Nats and tokens, of outputs of `run` by id."""
        return {id: tuple(pair) for id, pair in outputs.items()}


def _windows(tokens: list[int], bos: int, length: int) -> Tensor:
    """(windows, length), or one shorter window if the text is too short."""
    width = min(length - 1, len(tokens))
    windows = torch.tensor(tokens[: len(tokens) // width * width]).view(-1, width)
    return torch.cat([torch.full((len(windows), 1), bos), windows], dim=1)
