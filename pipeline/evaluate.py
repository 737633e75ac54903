"""Stage `evaluate`: the trial of `params.yaml`, decoded, scored, and looked into.

Writes hypotheses, word error rates with intervals, and sink metrics into the trial's folder. A changed beam or sink
parameter evaluates again and does not train again; a trial that was evaluated like this returns at once.
"""

import csv
import io
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json, write_text
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, RELOCATED
from pipeline.config import Params
from pipeline.corpora.manifest import Utterance
from pipeline.training.inputs import Inputs, TrialInputs
from pipeline.trials.folder import State, Trial
from pipeline.trials.identity import evaluation_digest
from pipeline.trials.input_files import input_files
from pipeline.trials.provenance import recorded
from pipeline.trials.results import CUT, write_hypotheses, write_sinks
from pipeline.trials.trained import not_trained

if TYPE_CHECKING:
    from pipeline.model.decoding import Hypothesis

RESULTS = Path("results/evaluate")
METRICS = Path("results/dvc.json")
"""With a longer name, the six columns of `dvc metrics show` would not fit a terminal."""
HEADLINES = {
    "wer": "wer/test",
    "wer_val": "wer/validation",
    "sinks_tau": BY_ACTIVATION,
    "sinks_att": BY_ATTENTION,
    "moved": RELOCATED,
}
"""What `dvc metrics` calls the metrics that say most; `wer_snr` is that of the test set's loudest noise."""
DECIMALS = 4
EXPERIMENT = "repro"
"""Where MLflow shows the trials that were made one by one."""


def evaluate(params: Params, inputs: TrialInputs | None = None) -> Trial:
    """Evaluate the trained trial of these parameters, or find it evaluated.

    Args:
        params: all parameters.
        inputs: of these parameters, where they were made before.

    Raises:
        PipelineError: it is not trained, an input is missing or damaged, or another process evaluates it.
    """
    inputs = inputs or TrialInputs(params)
    trial = Trial.create(params.train.runs, params, inputs.training.digests)
    read = inputs.evaluation
    evaluation = evaluation_digest(params, read.digests)
    if trial.state(evaluation) is State.DONE:
        return trial
    with trial.lease() as lease:
        # Only now is the state nobody else's to change.
        state = trial.state(evaluation)
        if state is State.TRAINED:
            files = partial(input_files, params, "evaluate", read.utterances, read.groups)
            with recorded(trial, "evaluate", files):
                trial.begin_evaluation(params)
                metrics, details = _measure(params, read, trial, evaluation)
                lease.require()
                trial.finish(evaluation, metrics, details)
        elif state is not State.DONE:
            raise not_trained(trial)
    return trial


def _measure(params: Params, inputs: Inputs, trial: Trial, evaluation: str) -> tuple[dict[str, float], dict]:
    from pipeline.training.build import build_model
    from pipeline.training.measure import hypotheses, sinks

    model = build_model(params, inputs, trial.adapter).eval()
    # Named by the evaluation, so that no other beam's hypotheses are taken for this one's.
    journal = trial.folder / f"hypotheses.{evaluation[:16]}.journal"
    understood = hypotheses(model, params, inputs, journal)
    metrics, lines = _scored(params, inputs, understood)
    summary = sinks(model, params, inputs, params.sinks.split)
    if params.sinks.validation:
        chosen_by = summary if params.sinks.split == "validation" else sinks(model, params, inputs, "validation")
        metrics |= _of_validation(chosen_by.metrics)
    write_sinks(trial.folder, summary.arrays)
    write_hypotheses(trial.folder, lines)
    journal.unlink()
    return metrics | summary.metrics, {"sinks": summary.description}


def _of_validation(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics under names that say the split, the ends of their intervals too: `sinks/…/validation/low`."""
    return {re.sub("(/low|/high|)$", r"/validation\1", name, count=1): value for name, value in metrics.items()}


def _scored(params: Params, inputs: Inputs, understood: dict[str, "Hypothesis"]) -> tuple[dict[str, float], list[dict]]:
    """Metrics of each split and condition, and the lines of `hypotheses.jsonl`."""
    metrics: dict[str, float] = {}
    lines: list[dict] = []
    for split in params.evaluate.splits:
        for condition in inputs.conditions(split):
            chosen = inputs.chosen(split, condition)
            name = split if condition == "clean" else f"{split}/{condition}"
            found, scored = _score_condition(params, chosen, understood, name)
            metrics |= found
            _warn_of_cut(params, int(found[f"{CUT}/{name}"]), len(chosen), name)
            lines += [{"split": split, "condition": condition, **line} for line in scored]
    return metrics, lines


def _score_condition(
    params: Params, chosen: Sequence[Utterance], understood: dict[str, "Hypothesis"], name: str
) -> tuple[dict[str, float], list[dict]]:
    from pipeline.scoring.errors import score

    speakers = [utterance.speaker for utterance in chosen]
    texts = [understood[utterance.id].text for utterance in chosen]
    result = score([u.text for u in chosen], texts, params.evaluate.bootstrap, speakers=speakers)
    cut = sum(understood[utterance.id].is_cut for utterance in chosen)
    lines = [
        {
            "id": utterance.id,
            "speaker": utterance.speaker,
            "reference": utterance.text,
            "hypothesis": understood[utterance.id].text,
            "is_cut": understood[utterance.id].is_cut,
            **scored.record(),
        }
        for utterance, scored in zip(chosen, result.utterances, strict=True)
    ]
    return result.metrics(name) | {f"{CUT}/{name}": cut}, lines


def _warn_of_cut(params: Params, cut: int, count: int, name: str) -> None:
    if cut:
        limit = params.evaluate.max_new_tokens
        print(
            f"warning: {cut} of {count} hypotheses of {name} were cut at evaluate.max_new_tokens {limit}; raise it",
            file=sys.stderr,
            flush=True,
        )


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that say most of a trial, under short names; those that it has."""
    noisy = [name for name in metrics if re.fullmatch(r"wer/test/(.+_)?snr_-?[\d.]+", name)]
    named = HEADLINES | {"wer_snr": min(noisy, key=lambda name: float(name.rpartition("_")[2]), default="")}
    return {short: round(metrics[name], DECIMALS) for short, name in named.items() if name in metrics}


def publish(trial: Trial, folder: Path = RESULTS) -> None:
    """Small copies for `dvc metrics` and `dvc plots`."""
    import numpy as np

    result = trial.result()
    assert result is not None
    write_json(METRICS, headlines(result["metrics"]))
    other, sink = trial.read_sinks()["cosine_mean_joined"].T
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["block", "sink", "other"])
    # A layer without sinks has no cosine, so its cell stays empty.
    writer.writerows(
        [layer, *("" if np.isnan(value) else float(value) for value in pair)]
        for layer, pair in enumerate(zip(sink, other, strict=True))
    )
    write_text(folder / "cosine_to_bos.csv", text.getvalue())


def track(trial: Trial) -> None:
    """Show the trial in MLflow. If that cannot be done now, it is said and nothing is lost: the folder has it all."""
    from pipeline.tracking.server import tracking_uri
    from pipeline.tracking.writer import ingest

    try:
        ingest([trial.folder], tracking_uri(), EXPERIMENT, sweep=EXPERIMENT)
    except PipelineError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    arguments = parser(__doc__).parse_args()

    def body() -> None:
        trial = evaluate(params_of(arguments))
        publish(trial)
        track(trial)
        print(f"evaluated: {trial.folder}")

    run_command(body)


if __name__ == "__main__":
    main()
