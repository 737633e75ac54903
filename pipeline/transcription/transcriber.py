"""A trained trial that takes files or arrays in place of a corpus: its own encoders, LLM, adapter and settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from pipeline.analysis.labels import token_labels
from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.encoders.protocol import Encoder, encoder_kind
from pipeline.encoders.store import DTYPE, Features
from pipeline.model.decoder import most_positions
from pipeline.model.decoding import decode
from pipeline.model.examples import Batch, Example, Examples, MediaExamples, moved
from pipeline.pretrained.folder import weights_digest
from pipeline.sinks.classification import Tokens, has_inner, measure
from pipeline.training.build import build_model
from pipeline.training.evaluation import teacher_forced
from pipeline.training.inputs import Inputs
from pipeline.transcription.recording import checked_stream, read_streams
from pipeline.trials.folder import Trial
from pipeline.trials.trained import require_encoders, require_llm, trained_params


@dataclass(frozen=True)
class Heard:
    """A recording as the model takes it, and what it made of it."""

    name: str
    """The file, or what errors call an array."""
    streams: dict[str, np.ndarray]
    """Features (frames, dimension) or, of a trial whose encoders are inside its model, media."""
    text: str
    """The hypothesis."""
    is_cut: bool
    """Whether it has as many tokens as it may have, so that more was probably said."""


class Transcriber:
    """A trained trial on the device that it was trained on.

    Args:
        trial: its own `config.yaml` counts, whatever params.yaml says today.
        overrides: of what is evaluated and where things lie: `evaluate.max_new_tokens=100`, `train.device=cpu`.

    Raises:
        PipelineError: the trial is not trained, an override would change what it was trained with, or the LLM or an
            encoder is missing or another than it was trained with.
    """

    def __init__(self, trial: Trial, overrides: list[str]) -> None:
        self.params = trained_params(trial, overrides)
        digests = {"llm": weights_digest(self.params.model.llm.weights)}
        require_llm(trial, self.params, digests["llm"])
        require_encoders(trial, self.params)
        self._encoders: dict[str, Encoder] = {}
        if self.params.features.mode == "cached":
            for stream in streams(self.params.model.modality):
                settings = getattr(self.params.features, stream)
                self._encoders[stream] = encoder_kind(settings.encoder)(settings, self.params.train.device)
        # Of the features the model needs the width alone, which an encoder knows as they do.
        widths = cast(dict[str, Features], self._encoders)
        self.model = build_model(self.params, Inputs((), widths, digests), trial.adapter).eval()

    def hear(self, file: Path) -> Heard:
        """Transcribe a file, as an evaluation does it with an utterance.

        Raises:
            PipelineError: see `read_streams`; or it is too long for the LLM.
        """
        media = read_streams(file, self.model.streams, Path(self.params.corpus.face_detector))
        return self._hear(str(file), media)

    def hear_arrays(self, *, audio: np.ndarray | None = None, video: np.ndarray | None = None) -> Heard:
        """Transcribe arrays. An array that equals what `read_streams` reads of a file becomes the same text.

        Args:
            audio: (samples,) of float from -1 to 1, one channel at 16 kHz.
            video: (frames, 96, 96) of uint8, the mouth region in grey at 25 frames a second.

        Raises:
            PipelineError: a stream of the trial is missing, one that it does not take is given, an array has another
                shape, type or range, or the recording is too long for the LLM.
        """
        given = {stream: array for stream, array in (("audio", audio), ("video", video)) if array is not None}
        if given.keys() != set(self.model.streams):
            takes = " and ".join(self.model.streams)
            raise PipelineError("the recording", f"has {' and '.join(given) or 'no stream'}", f"give {takes}")
        return self._hear("the recording", {stream: checked_stream(stream, given[stream]) for stream in given})

    def _hear(self, name: str, media: dict[str, np.ndarray]) -> Heard:
        read = {stream: self._encode(name, stream, content) for stream, content in media.items()}
        batch = self._batch(read, "")
        self._require_room(name, batch)
        settings = self.params.evaluate
        (hypothesis,) = decode(self.model, batch, settings.beams, settings.max_new_tokens)
        return Heard(name, read, *hypothesis)

    @torch.no_grad()
    def tokens(self, heard: Heard) -> tuple[list[str], Tokens]:
        """What each token is called, and how massive it is, teacher-forced on the text.

        Raises:
            PipelineError: the activations are not finite, or the LLM has fewer than three blocks.
        """
        captured = teacher_forced(self.model, self._batch(heard.streams, heard.text))
        if not bool(captured.finite().all()):
            raise PipelineError(heard.name, "its activations are not finite", "take a trial that has not diverged")
        if not has_inner(len(captured.importance)):
            raise PipelineError("model.llm.blocks", "are fewer than three", "sinks are looked for between two others")
        labels = token_labels(self.model, captured.roles[0].tolist(), self.model.respond(heard.text))
        return labels, measure(captured, self.params.sinks)

    def _encode(self, name: str, stream: str, content: np.ndarray) -> np.ndarray:
        if stream not in self._encoders:
            return content
        (features,) = self._encoders[stream].encode([content])
        with np.errstate(over="ignore"):
            # As they are kept on disk.
            stored = features.astype(DTYPE)
        if not np.isfinite(stored).all():
            raise PipelineError(name, f"its {stream} features do not fit float16", "take another recording")
        return stored

    def _require_room(self, name: str, batch: Batch) -> None:
        longest = most_positions(self.model.decoder.config)
        frames: dict[str, int] = {stream: int(batch[f"{stream}_lengths"][0]) for stream in self.model.streams}
        tokens = self.model.length(frames, self.params.evaluate.max_new_tokens)
        if longest and tokens > longest:
            raise PipelineError(
                name, f"needs {tokens:,} tokens, its text included, and the LLM takes {longest:,}", "cut it into pieces"
            )

    @torch.no_grad()
    def _batch(self, read: dict[str, np.ndarray], text: str) -> Batch:
        """Of one, encoded. The response of an empty text has no token."""
        kind = Examples if self._encoders else MediaExamples
        batch = kind.collate([Example("", read, self.model.respond(text) if text else [])])
        return self.model.encoded(moved(batch, self.model.device))
