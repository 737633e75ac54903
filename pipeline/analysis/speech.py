"""A trained trial as the subject: utterances of its test set, scored in word errors."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from pipeline.analysis.labels import token_labels
from pipeline.analysis.target import Portion
from pipeline.model.decoding import transcribe
from pipeline.model.examples import moved
from pipeline.scoring.errors import score
from pipeline.training.build import build_model
from pipeline.training.inputs import evaluation_inputs
from pipeline.trials.folder import Trial
from pipeline.trials.identity import configuration, task_of
from pipeline.trials.trained import require_encoders, require_llm, trained_params


class Speech:
    """The clean utterances of `sinks.split`.

    Args:
        trial: trained; its own `config.yaml` counts, whatever params.yaml says today.
        overrides: of what is evaluated and where things lie: `sinks.tau=300`, `corpus.out=elsewhere`.
        utterances: how many are taken, from the first on; None takes `sinks.utterances`.

    Raises:
        PipelineError: the trial is not trained, an override would change what it was trained with, the LLM or an
            encoder inside its model is another than it was trained with, or an input is missing or damaged.
    """

    item: Literal["utterance"] = "utterance"
    score: Literal["WER %"] = "WER %"

    def __init__(self, trial: Trial, overrides: list[str], utterances: int | None) -> None:
        self.params = trained_params(trial, overrides)
        self._inputs = evaluation_inputs(self.params)
        require_llm(trial, self.params, self._inputs.digests["llm"])
        if self.params.features.mode == "online":
            # Cached features stand without their encoder, whose weights need not be here.
            require_encoders(trial, self.params)
        limit = utterances or self.params.sinks.utterances
        chosen = self._inputs.chosen(self.params.sinks.split)[:limit]
        self._utterances = sorted(chosen, key=lambda u: (-u.audio_seconds, u.id))
        self.model = build_model(self.params, self._inputs, trial.adapter).eval()
        self.decoder = self.model.llm
        self.name = trial.folder.name
        self.title = (
            f"trial {trial.folder.name} ({task_of(configuration(self.params))}, decorrelation weight "
            f"{self.params.decorrelation.weight:g}), {self.params.sinks.split} split, clean"
        )
        self.identity = {
            "trial": trial.identity,
            "data": self._inputs.digests,
            "evaluate": self.params.evaluate.model_dump(mode="json"),
            "utterances": [u.id for u in self._utterances],
            "precision": self.model.precision,
        }

    def __len__(self) -> int:
        return len(self._utterances)

    def autocast(self) -> AbstractContextManager:
        return self.model.autocast()

    def whole(self) -> Iterator[Portion]:
        return self._portions(self.params.sinks.batch_size, response=True)

    def intervened(self) -> Iterator[Portion]:
        return self._portions(self.params.evaluate.batch_size, response=False)

    def _portions(self, size: int, response: bool) -> Iterator[Portion]:
        for start in range(0, len(self), size):
            chosen = self._utterances[start : start + size]
            examples = self._inputs.examples(chosen, self.model.respond)
            with torch.no_grad():
                # Encoded here, if it is not yet: once, for all that is done to it.
                batch = self.model.encoded(moved(examples.whole(), self.model.device))
                sequence = self.model.sequence(batch, response=response)
            labels = [
                token_labels(self.model, roles[real].tolist(), examples.responses[row])
                for row, (roles, real) in enumerate(zip(sequence.roles, sequence.mask, strict=True))
            ]
            yield Portion([u.id for u in chosen], sequence, labels, batch)

    def outcome(self, portion: Portion) -> list[str]:
        settings = self.params.evaluate
        return transcribe(self.model, portion.content, settings.beams, settings.max_new_tokens)

    def counts(self, outcomes: dict[str, Any]) -> dict[str, tuple[float, float]]:
        chosen = [utterance for utterance in self._utterances if utterance.id in outcomes]
        scored = score([u.text for u in chosen], [outcomes[u.id] for u in chosen], bootstrap=0).utterances
        return {u.id: (s.edits.errors, s.edits.length) for u, s in zip(chosen, scored, strict=True)}
