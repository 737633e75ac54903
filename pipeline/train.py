"""Stage `train`: train the trial of `params.yaml`, in its own folder.

Trains a projector and LoRA on cached features or, in mode online, on media. Resumes from the newest checkpoint, and
returns at once if the trial is already trained.
"""

import contextlib
import shutil
from pathlib import Path

from pipeline.common.command import load_params_for_command, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import csv_text, write_json, write_text
from pipeline.config import Params
from pipeline.training.inputs import TrialInputs
from pipeline.trials.folder import Status, Trial
from pipeline.trials.provenance import record_session
from pipeline.trials.trained import read_log

RESULTS = Path("results/train")
TRAINED = (Status.TRAINED, Status.DONE)
CURVES = {
    "loss": ["loss/cross_entropy", "loss/decorrelation", "loss/validation"],
    "optimisation": ["learning_rate", "gradient_norm", "throughput/utterances_per_second"],
}
"""The curves of `dvc plots`: metrics by step, one file each."""


def train(params: Params, until: int | None = None, inputs: TrialInputs | None = None) -> Trial:
    """Train the trial of these parameters unless it is already trained. `until` is a step to pause after, with a
    checkpoint; `inputs` are those of the parameters, if the caller has read them.

    Raises:
        PipelineError: an input is missing or damaged, another process trains the trial, the loss is not finite, or the
            disk is full. In all cases the next call resumes from the last checkpoint.
        KeyboardInterrupt: after a checkpoint.
    """
    inputs = inputs or TrialInputs(params)
    trial = Trial.create(params.train.runs, params, inputs.training.digests)
    if trial.status() in TRAINED:
        _remove_leftovers(trial)
        return trial
    with trial.lease() as lease:
        # Another process may have finished it before this one acquired the lease.
        if trial.status() not in TRAINED:
            from pipeline.training.fit import fit

            with record_session(trial, "train", params.train.device, lambda: inputs.files("train"), lease):
                fit(params, inputs.training, trial, lease, until)
    return trial


def _remove_leftovers(trial: Trial) -> None:
    """Remove the checkpoints of a trained trial, which has some if a process was killed between its last two steps; a
    process that holds the lease may be at the last one now, and removes them itself."""
    if trial.checkpoints.exists():
        with contextlib.suppress(PipelineError, OSError), trial.lease():
            shutil.rmtree(trial.checkpoints, ignore_errors=True)


def publish_curves(trial: Trial, folder: Path = RESULTS) -> None:
    """Write small copies for `dvc plots`: the curves of the metrics log, and the identity of the trial."""
    records = read_log(trial)
    for name, keys in CURVES.items():
        rows = (record for record in records if record.keys() & set(keys))
        write_text(folder / f"{name}.csv", csv_text(["step", *keys], rows))
    write_json(folder / "trial.json", {"identity": trial.identity, "folder": str(trial.folder)})


def main() -> None:
    """The command."""
    trial = train(load_params_for_command(parser(__doc__).parse_args()))
    publish_curves(trial)
    print(f"trained: {trial.folder}")


if __name__ == "__main__":
    run_command(main)
