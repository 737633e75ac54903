"""A trained trial on files or arrays instead of a corpus, with its own encoders, LLM, adapter and settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import PipelineError
from pipeline.common.formatting import rounded
from pipeline.common.modality import streams
from pipeline.encoders.protocol import Encoder, encoder_kind
from pipeline.encoders.store import DTYPE
from pipeline.model.decoding import decode
from pipeline.model.examples import Batch, Example, Examples, MediaExamples, batch_to
from pipeline.model.llm import max_positions
from pipeline.pretrained.folder import weights_digest
from pipeline.sinks.classification import Tokens, classify_tokens
from pipeline.training.build import build_model
from pipeline.training.evaluation import teacher_forced
from pipeline.training.inputs import Inputs
from pipeline.transcription.recording import checked_stream, read_streams
from pipeline.trials.folder import Trial
from pipeline.trials.trained import require_encoders, require_llm, trained_params

LISTED = 6
"""Sinks listed in one line."""


@dataclass(frozen=True)
class Transcription:
    """A recording and its text."""

    name: str
    """The file, or the name of an array in errors."""
    streams: dict[str, np.ndarray]
    """Inputs of the model: features (frames, dimension) or, if the trial's encoders are inside its model, media."""
    text: str
    is_truncated: bool
    """Whether the text reached the maximum number of tokens, so that it is probably incomplete."""


class Transcriber:
    """A trained trial on the device of its training. PipelineError if the trial is not trained, an override would
    change a training setting, or the LLM or an encoder is missing or not the one used in training.

    Args:
        trial: its own `config.yaml` is used, not params.yaml.
        overrides: of evaluation settings and paths: `evaluate.max_new_tokens=100`, `train.device=cpu`.
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
        dimensions = {stream: encoder.dimension for stream, encoder in self._encoders.items()}
        self.model = build_model(self.params, Inputs((), {}, digests), trial, dimensions).eval()

    def transcribe(self, file: Path) -> Transcription:
        """Transcribe a file, like an utterance in evaluation. PipelineError as `read_streams`, or if the recording is
        too long for the LLM."""
        media = read_streams(file, self.model.streams, Path(self.params.corpus.face_detector))
        return self._transcribe(str(file), media)

    def transcribe_arrays(self, *, audio: np.ndarray | None = None, video: np.ndarray | None = None) -> Transcription:
        """Transcribe arrays. An array equal to the one that `read_streams` reads from a file gives the same text.
        PipelineError if a stream of the trial is missing, a stream is not used by the trial, an array has another
        shape, type or range, or the recording is too long for the LLM.

        Args:
            audio: (samples,) of float from -1 to 1, one channel at 16 kHz.
            video: (frames, 96, 96) of uint8, the mouth region in grey at 25 frames per second.
        """
        given = {stream: array for stream, array in (("audio", audio), ("video", video)) if array is not None}
        if given.keys() != set(self.model.streams):
            expected = " and ".join(self.model.streams)
            raise PipelineError("the recording", f"has {' and '.join(given) or 'no stream'}", f"give {expected}")
        return self._transcribe("the recording", {stream: checked_stream(stream, given[stream]) for stream in given})

    @torch.no_grad()
    def sinks(self, transcription: Transcription) -> list[str]:
        """Lines on the sinks of a transcription, teacher-forced on its text; see `sink_lines`. PipelineError if the
        activations are not finite, or the LLM has fewer than three layers."""
        captured = teacher_forced(self.model, self._batch(transcription.streams, transcription.text))
        if not bool(captured.finite().all()):
            raise PipelineError(
                transcription.name, "its activations are not finite", "use a trial that has not diverged"
            )
        if not captured.has_inner_layers:
            raise PipelineError("model.llm.blocks", "is less than three", "use a trial with an inner layer")
        labels = self.model.token_labels(captured.roles[0].tolist(), self.model.tokenize_response(transcription.text))
        return sink_lines(labels, classify_tokens(captured, self.params.sinks), self.params.sinks.tau)

    def _transcribe(self, name: str, media: dict[str, np.ndarray]) -> Transcription:
        inputs = {stream: self._encode(name, stream, content) for stream, content in media.items()}
        batch = self._batch(inputs, "")
        self._require_room(name, batch)
        settings = self.params.evaluate
        (hypothesis,) = decode(self.model, batch, settings.beams, settings.max_new_tokens)
        return Transcription(name, inputs, *hypothesis)

    def _encode(self, name: str, stream: str, content: np.ndarray) -> np.ndarray:
        if stream not in self._encoders:
            return content
        (features,) = self._encoders[stream].encode([content])
        with np.errstate(over="ignore"):
            # The type of cached features.
            features = features.astype(DTYPE)
        if not np.isfinite(features).all():
            raise PipelineError(name, f"its {stream} features exceed the range of float16", "use another recording")
        return features

    def _require_room(self, name: str, batch: Batch) -> None:
        longest = max_positions(self.model.llm.config)
        frames: dict[str, int] = {stream: int(batch[f"{stream}_lengths"][0]) for stream in self.model.streams}
        tokens = self.model.length(frames, self.params.evaluate.max_new_tokens)
        if longest and tokens > longest:
            raise PipelineError(
                name, f"needs {tokens:,} tokens including its text, and the LLM has room for {longest:,}",
                "split it"
            )  # fmt: skip

    @torch.no_grad()
    def _batch(self, inputs: dict[str, np.ndarray], text: str) -> Batch:
        """An encoded batch of one. The response of an empty text has no tokens."""
        kind = Examples if self._encoders else MediaExamples
        batch = kind.collate([Example("", inputs, self.model.tokenize_response(text) if text else [])])
        return self.model.encoded(batch_to(batch, self.model.device))


def sink_lines(labels: Sequence[str], tokens: Tokens, tau: float) -> list[str]:
    """Sinks of one utterance in words: a line with the counts by massive activation and by attention, one for BOS, and
    one for each other sink by activation, the most massive first; without any, one for the strongest token.

    `labels` are those of each token from BOS on, `tokens` those of this utterance alone, without padding; `tau` is the
    ratio to the median above which a token is a sink.
    """
    bos = int(tokens.bos[0])
    others = [token for token in tokens.max_ratio[0].argsort(descending=True).tolist() if token != bos]
    sinks = [token for token in others if tokens.is_sink[0, token]]
    threshold = f"(above {tau:,g} times the median)"
    is_sink = "is a sink by activation" if tokens.is_sink[0, bos] else f"is not a sink by activation {threshold}"
    lines = [
        f"sinks by massive activation: {_listed(labels, tokens.is_sink[0])}; "
        f"by attention: {_listed(labels, tokens.is_attention_sink[0])}",
        f"BOS {is_sink}: {_strength(tokens, bos)}",
    ]
    lines += [
        f"{labels[token]} at position {token} is a sink by activation: {_strength_and_cosine(tokens, token)}"
        for token in sinks
    ]
    if not sinks:
        strongest = f"{labels[others[0]]} at position {others[0]}: {_strength_and_cosine(tokens, others[0])}"
        lines.append(f"no other token is a sink by activation {threshold}; the strongest is {strongest}")
    return lines


def _listed(labels: Sequence[str], is_sink: Tensor) -> str:
    """The number of sinks in `is_sink` (time,), and the labels of the first ones."""
    positions = is_sink.nonzero()[:, 0].tolist()
    names = [f"{labels[token]} at {token}" for token in positions[:LISTED]] + ["…"] * (len(positions) > LISTED)
    return f"{len(positions)} ({', '.join(names)})" if positions else "0"


def _strength_and_cosine(tokens: Tokens, token: int) -> str:
    cosine = float(tokens.activations.cosine[tokens.strongest_layer[0, token], 0, token])
    return f"{_strength(tokens, token)}; cosine to BOS there {rounded(cosine, 3)}"


def _strength(tokens: Tokens, token: int) -> str:
    ratio = tokens.max_ratio[0, token].item()
    layer, dimension = int(tokens.strongest_layer[0, token]), int(tokens.strongest_dimension[0, token])
    return f"{rounded(ratio, None)} times the median after layer {layer}, at dimension {dimension}"
