"""A trained trial as the analysis target: clean utterances of `sinks.split`, scored by word error rate."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from pipeline.analysis.items import ItemBatch, ScoreKind
from pipeline.model.decoding import decode_texts
from pipeline.scoring.error_rates import score
from pipeline.training.build import build_model
from pipeline.training.evaluation import batches_by_length
from pipeline.training.inputs import TrialInputs
from pipeline.trials.folder import Trial
from pipeline.trials.identity import configuration, task_of
from pipeline.trials.trained import require_encoders, require_llm, trained_params


class SpeechTarget:
    """The clean utterances of `sinks.split`. PipelineError if the trial is not trained, an override would change a
    training setting, the LLM or an encoder inside its model is not the one used in training, or an input is missing or
    damaged.

    Args:
        trial: a trained trial; its own `config.yaml` is used, not params.yaml.
        overrides: of evaluation settings and paths: `sinks.tau=300`, `corpus.out=elsewhere`.
        utterances: the number to take; None for `sinks.utterances`.
    """

    item: Literal["utterance"] = "utterance"
    score_kind = ScoreKind.WER

    def __init__(self, trial: Trial, overrides: list[str], utterances: int | None) -> None:
        self.params = trained_params(trial, overrides)
        self._inputs = TrialInputs(self.params).evaluation
        require_llm(trial, self.params, self._inputs.digests["llm"])
        require_encoders(trial, self.params, are_needed=self.params.features.mode == "online")
        limit = utterances or self.params.sinks.utterances
        self._utterances = self._inputs.chosen(self.params.sinks.split)[:limit]
        self.speakers = {u.id: u.speaker for u in self._utterances}
        self.model = build_model(self.params, self._inputs, trial).eval()
        self.llm = self.model.llm
        self.name = trial.folder.name
        """Usable as a folder name."""
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
        """Everything that determines the outputs of `run`."""

    def __len__(self) -> int:
        return len(self._utterances)

    def autocast(self) -> AbstractContextManager:
        """The context in which the LLM runs."""
        return self.model.autocast()

    def batches(self) -> Iterator[ItemBatch]:
        """All utterances, teacher-forced."""
        return self._batches(self.params.sinks.batch_size, response=True)

    def intervention_batches(self) -> Iterator[ItemBatch]:
        """All utterances as inputs of `run`, without a response."""
        return self._batches(self.params.evaluate.batch_size, response=False)

    def _batches(self, size: int, response: bool) -> Iterator[ItemBatch]:
        for chosen, batch in batches_by_length(self.model, self._inputs, self._utterances, size):
            with torch.no_grad():
                # Media are encoded here, once for all treatments.
                content = self.model.encoded(batch)
                sequence = self.model.sequence(content, response=response)
            labels = [
                self.model.token_labels(roles[real].tolist(), self.model.tokenize_response(utterance.text))
                for utterance, roles, real in zip(chosen, sequence.roles, sequence.mask, strict=True)
            ]
            yield ItemBatch([u.id for u in chosen], sequence, labels, content)

    def run(self, batch: ItemBatch) -> list[str]:
        """The hypothesis of each utterance, under any active intervention."""
        settings = self.params.evaluate
        return decode_texts(self.model, batch.content, settings.beams, settings.max_new_tokens)

    def score_counts(self, outputs: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """Errors and words, of outputs of `run` by id."""
        chosen = [utterance for utterance in self._utterances if utterance.id in outputs]
        scored = score([u.text for u in chosen], [outputs[u.id] for u in chosen], bootstrap=0).utterances
        return {u.id: (s.counts.errors, s.counts.length) for u, s in zip(chosen, scored, strict=True)}
