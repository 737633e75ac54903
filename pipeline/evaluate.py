"""Stage `evaluate`: decode and score the trial of `params.yaml`, and measure its attention sinks.

Writes hypotheses, word error rates with confidence intervals, and sink metrics to the trial's folder. A changed beam or
sink parameter evaluates again without training again; a trial with an equal evaluation returns at once.
"""

import math
import re
from pathlib import Path

from pipeline.common.command import load_params_for_command, parser, run_command
from pipeline.common.errors import memory_errors
from pipeline.common.files import csv_text, write_json, write_text
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, RELOCATED
from pipeline.config import Params
from pipeline.training.inputs import Inputs, TrialInputs
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import evaluation_digest
from pipeline.trials.lease import Lease
from pipeline.trials.provenance import record_session
from pipeline.trials.results import write_hypotheses, write_sinks
from pipeline.trials.trained import require_trained

RESULTS = Path("results/evaluate")
DVC_METRICS = Path("results/dvc.json")
"""With a longer name, the six columns of `dvc metrics show` would not fit a terminal."""
DVC_NAMES = {
    "wer": "wer/test",
    "wer_val": "wer/validation",
    "sinks_tau": BY_ACTIVATION,
    "sinks_att": BY_ATTENTION,
    "not_bos": RELOCATED,
}
"""The main metrics by their short names in `dvc metrics`; `wer_snr` is that of the test set with the loudest noise."""
DECIMALS = 4
EXPERIMENT = "repro"
"""The MLflow experiment of trials that belong to no sweep."""


def evaluate(params: Params, inputs: TrialInputs | None = None) -> Trial:
    """Evaluate the trained trial of these parameters unless it is already evaluated. `inputs` are those of the
    parameters, if the caller has read them. PipelineError if the trial is not trained, an input is missing or damaged,
    or another process evaluates it."""
    inputs = inputs or TrialInputs(params)
    trial = Trial.create(params.train.runs, params, inputs.training.digests)
    wanted = evaluation_digest(params, inputs.evaluation.digests)
    if trial.status(wanted) is Status.DONE:
        return trial
    with trial.lease() as lease:
        # Another process may have finished it before this one acquired the lease.
        if trial.status(wanted) is Status.DONE:
            return trial
        require_trained(trial)
        with record_session(trial, "evaluate", params.train.device, lambda: inputs.files("evaluate"), lease):
            trial.begin_evaluation(params)
            metrics, details = _measure(params, inputs.evaluation, trial, wanted, lease)
            lease.require()
            trial.finish(wanted, metrics, details)
            for journal in trial.folder.glob("hypotheses.*.journal"):
                journal.unlink()
    return trial


@memory_errors(
    "the evaluation",
    "lower evaluate.batch_size, evaluate.beams or sinks.batch_size; or, in a sweep, raise resources.gpus",
)
def _measure(params: Params, inputs: Inputs, trial: Trial, digest: str, lease: Lease) -> tuple[dict[str, float], dict]:
    from pipeline.training.build import build_model
    from pipeline.training.evaluation import hypotheses, scores, sinks

    model = build_model(params, inputs, trial).eval()
    # The name contains the digest of the evaluation, so that hypotheses of another beam are not reused.
    journal = trial.folder / f"hypotheses.{digest[:16]}.journal"
    metrics, lines = scores(params, inputs, hypotheses(model, params, inputs, journal))
    sink_metrics, summary = sinks(model, params, inputs)
    lease.require()
    write_sinks(trial.folder, summary.arrays)
    write_hypotheses(trial.folder, lines)
    return metrics | sink_metrics, {"sinks": summary.description}


def dvc_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The main metrics of a trial under short names, without those that it lacks."""
    noisy = [name for name in metrics if re.fullmatch(r"wer/test/snr_-?[\d.]+", name)]
    named = DVC_NAMES | {"wer_snr": min(noisy, key=lambda name: float(name.rpartition("_")[2]), default="")}
    return {short: round(metrics[name], DECIMALS) for short, name in named.items() if name in metrics}


def publish_metrics(trial: Trial, folder: Path = RESULTS) -> None:
    """Write small copies for `dvc metrics` and `dvc plots`."""
    result = trial.result()
    assert result is not None
    write_json(DVC_METRICS, dvc_metrics(result["metrics"]))
    arrays = trial.read_sinks()
    # Absent if no utterance has finite activations.
    cosines = arrays["cosine_mean_joined"].tolist() if arrays else []
    rows = [{"layer": layer, "sink": sink, "other": other} for layer, (other, sink) in enumerate(cosines)]
    # A layer without sinks has no cosine, so its cell stays empty.
    known = ({name: value for name, value in row.items() if not math.isnan(value)} for row in rows)
    write_text(folder / "cosine_to_bos.csv", csv_text(["layer", "sink", "other"], known))


def write_to_mlflow(trial: Trial) -> None:
    """Write the trial to MLflow. An error is only a warning: all results are in the trial's folder."""
    from pipeline.tracking.server import errors_as_warnings, tracking_uri
    from pipeline.tracking.writer import write_trials

    with errors_as_warnings():
        write_trials([trial.folder], tracking_uri(), EXPERIMENT, sweep=EXPERIMENT)


def main() -> None:
    """The command."""
    trial = evaluate(load_params_for_command(parser(__doc__).parse_args()))
    publish_metrics(trial)
    write_to_mlflow(trial)
    print(f"evaluated: {trial.folder}")


if __name__ == "__main__":
    run_command(main)
