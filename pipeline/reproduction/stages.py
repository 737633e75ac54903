"""Run the restored code in a separate process: to compute the identity of a trial, and to train and evaluate it.

The restored code may have other modules than this version, so the process runs the script in its own copy of this file:
names and arguments of the two scripts must not change. (Until 30 November 2026 `_IDENTITY` was `_TOLD`, which `_own`
tries, too.)
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.common.command import INTERRUPTED
from pipeline.common.errors import PipelineError
from pipeline.encoders.store import INDEX, recorded_precisions

_IDENTITY = """
import json, sys
from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.trials.identity import evaluation_digest, identity_parts
from pipeline.training.inputs import TrialInputs
try:
    params = load_params(sys.argv[2], sys.argv[3:])
    if sys.argv[1] == "train":
        parts = identity_parts(params, TrialInputs(params).training.digests)
    else:
        parts = {"evaluation": evaluation_digest(params, TrialInputs(params).evaluation.digests)}
except PipelineError as error:
    parts = {"error": str(error)}
print(json.dumps(parts))
"""
_RUN = """
import os, signal, sys, threading, time
from pipeline.common.command import run_command
from pipeline.config import load_params
from pipeline.evaluate import evaluate
from pipeline.train import train

def follow(parent):
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
stage = {"train": train, "evaluate": evaluate}[sys.argv[1]]
run_command(lambda: stage(load_params(sys.argv[2], sys.argv[3:])))
"""
"""Ends after a checkpoint when its parent process ends, even by a kill."""
_EARLIER = "_TOLD"
"""The name of `_IDENTITY` until 30 November 2026."""


def settings_of(session: dict[str, Any], inputs: Iterable[str], runs: Path, tree: Path) -> list[str]:
    """The values of `--set` with which a trial's `config.yaml` reproduces it.

    The threads of the session determine the order of sums. The features among the `inputs` determine the precision of
    their encoders, which `auto` might set differently here.
    """
    settings = [f"train.runs={runs.absolute()}"]
    if session.get("threads"):
        settings.append(f"train.threads={session['threads']}")
    precisions = recorded_precisions(tree / Path(path).expanduser() for path in inputs if Path(path).name == INDEX)
    return settings + [f"features.{stream}.precision={precision}" for stream, precision in precisions.items()]


def query_identity(stage: str, tree: Path, config: Path, settings: list[str]) -> dict[str, Any]:
    """The identity of a configuration according to the code in `tree`. Nothing is trained or written. PipelineError if
    the code does not run in this environment.

    Returns:
        For `train` the parts of the identity, `configuration`, `data`, `code`; for `evaluate` the digest `evaluation`.
        Or `error`: why the stage would not start, such as a missing input.
    """
    words = [sys.executable, "-c", _own("_IDENTITY", _EARLIER), stage, str(config.absolute()), *settings]
    ran = subprocess.run(words, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = ran.stderr.strip().rpartition("\n")[2]
        raise PipelineError(
            f"stage {stage} with the code of the trial",
            f"does not start in this environment: {reason}",
            "check out the commit in its provenance.json, set that version up, and start this command there",
        )
    return json.loads(ran.stdout.strip().rpartition("\n")[2])


def run_stage(stage: str, tree: Path, config: Path, settings: list[str]) -> None:
    """Train or evaluate with the code in `tree`; resumes an interrupted call.

    PipelineError if the stage failed, after its error was printed; KeyboardInterrupt after its checkpoint.
    """
    words = [sys.executable, "-c", _own("_RUN"), stage, str(config.absolute()), *settings]
    # In a new session, so that Ctrl-C reaches this process only, which passes it on once.
    process = subprocess.Popen(words, cwd=tree, env=_environment(tree), start_new_session=True)
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)
    if interrupted or code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise PipelineError(f"stage {stage} in {tree}", f"ended with {code}", "see above; the same command continues")


def _own(*names: str) -> str:
    """A program that runs the script of the restored code's own version, under the first of these names that it has."""
    return (
        "from pipeline.reproduction import stages\n"
        f"exec(next(vars(stages)[name] for name in {names} if hasattr(stages, name)))"
    )


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree.absolute()), "PYTHONDONTWRITEBYTECODE": "1"}
