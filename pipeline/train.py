"""Stage `train`: the trial of `params.yaml`, trained in its own folder.

Trains a projector and LoRA on cached features or, in mode online, on the media themselves, goes on from the newest
checkpoint where there is one, and returns at once where the trial is trained already.
"""

import csv
import io
from functools import partial
from pathlib import Path

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.files import write_json, write_text
from pipeline.config import Params
from pipeline.training.inputs import TrialInputs
from pipeline.trials.folder import State, Trial
from pipeline.trials.input_files import input_files
from pipeline.trials.provenance import recorded
from pipeline.trials.trained import read_log

RESULTS = Path("results/train")
TRAINED = (State.TRAINED, State.DONE)
CURVES = {
    "loss": ["loss/cross_entropy", "loss/decorrelation", "loss/validation"],
    "optimisation": ["learning_rate", "gradient_norm", "throughput/utterances_per_second"],
}
"""What `dvc plots` draws: a file each, by step."""


def train(params: Params, until: int | None = None, inputs: TrialInputs | None = None) -> Trial:
    """Train the trial of these parameters, or find it trained.

    Args:
        params: all parameters.
        until: a step to pause after, with a checkpoint; the next call goes on. None trains to the end.
        inputs: of these parameters, where they were made before.

    Raises:
        PipelineError: an input is missing or damaged, another process trains it, the loss is no number, or the disk
            is full. Whatever the reason, the next call goes on from the last checkpoint.
        KeyboardInterrupt: after a checkpoint.
    """
    read = (inputs or TrialInputs(params)).training
    trial = Trial.create(params.train.runs, params, read.digests)
    if trial.state() in TRAINED:
        return trial
    with trial.lease() as lease:
        # Another process may have finished it while this one came for the lease.
        if trial.state() not in TRAINED:
            from pipeline.training.fit import fit

            files = partial(input_files, params, "train", read.utterances, read.groups)
            with recorded(trial, "train", files):
                fit(params, read, trial, lease, until)
    return trial


def publish(trial: Trial, folder: Path = RESULTS) -> None:
    """Small copies for `dvc plots`: the curves of the spool, and which trial they are of."""
    records = read_log(trial)
    for name, keys in CURVES.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *keys], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(record for record in records if record.keys() & set(keys))
        write_text(folder / f"{name}.csv", text.getvalue())
    write_json(folder / "trial.json", {"identity": trial.identity, "folder": str(trial.folder)})


def main() -> None:
    """The command."""
    arguments = parser(__doc__).parse_args()

    def body() -> None:
        trial = train(params_of(arguments))
        publish(trial)
        print(f"trained: {trial.folder}")

    run_command(body)


if __name__ == "__main__":
    main()
