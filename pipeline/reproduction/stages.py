"""The restored code at work, in a process of its own: what it takes the trial for, and the trial made again."""

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
from pipeline.common.files import read_json
from pipeline.encoders.store import INDEX

_TOLD = """
import json, sys
from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.trials.identity import evaluation_digest, identity_parts
from pipeline.training.inputs import evaluation_inputs, training_inputs
try:
    params = load_params(sys.argv[2], sys.argv[3:])
    if sys.argv[1] == "train":
        told = identity_parts(params, training_inputs(params).digests)
    else:
        told = {"evaluation": evaluation_digest(params, evaluation_inputs(params).digests)}
except PipelineError as error:
    told = {"error": str(error)}
print(json.dumps(told))
"""
_RUN = """
import os, signal, sys, threading, time
from pipeline.common.command import run_command
from pipeline.config import load_params
from pipeline.evaluate import evaluate
from pipeline.train import train

def follow(owner):
    while os.getppid() == owner:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
stage = {"train": train, "evaluate": evaluate}[sys.argv[1]]
run_command(lambda: stage(load_params(sys.argv[2], sys.argv[3:])))
"""
"""Ends after a checkpoint when its owner does, even when that is killed."""


def settings_of(session: dict[str, Any], inputs: Iterable[str], runs: Path, tree: Path) -> list[str]:
    """What `--set` must say beside a trial's `config.yaml` to make it again.

    Args:
        session: its threads count, so that sums have the order that they had.
        inputs: paths of all files that are read. The precision of the audio features is told by these, not by what
            `auto` means here.
        runs: takes the trial that is made.
        tree: the session's, with its data.
    """
    settings = [f"train.runs={runs.absolute()}"]
    if session.get("threads"):
        settings.append(f"train.threads={session['threads']}")
    for path in inputs:
        if Path(path).name == INDEX:
            encoder = read_json(tree / Path(path).expanduser(), "").get("encoder", {})
            if "precision" in encoder:
                return [*settings, f"features.audio.precision={encoder['precision']}"]
    return settings


def told_by(stage: str, tree: Path, config: Path, settings: list[str]) -> dict[str, Any]:
    """What the code in `tree` takes this configuration for. Nothing is computed or written.

    Returns:
        For `train` the parts of the identity, `configuration`, `data`, `code`; for `evaluate` `evaluation`, a digest.
        Or `error`: why the stage would not begin.
    """
    words = [sys.executable, "-c", _TOLD, stage, str(config.absolute()), *settings]
    ran = subprocess.run(words, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False)
    if ran.returncode:
        return {"error": ran.stderr.strip().rpartition("\n")[2]}
    return json.loads(ran.stdout.strip().rpartition("\n")[2])


def run_stage(stage: str, tree: Path, config: Path, settings: list[str]) -> None:
    """Train or evaluate with the code in `tree`; goes on where an earlier call ended.

    Raises:
        PipelineError: the stage failed; it has said why.
        KeyboardInterrupt: after the stage's checkpoint.
    """
    words = [sys.executable, "-c", _RUN, stage, str(config.absolute()), *settings]
    # Of a session of its own: Ctrl-C comes to us alone, and once.
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
        raise PipelineError(f"stage {stage} in {tree}", f"ended with {code}", "see above; the same command goes on")


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree.absolute()), "PYTHONDONTWRITEBYTECODE": "1"}
