"""Push weights, corpora, features and done trials to the DVC remote; another clone gets them by `dvc pull`.

Trials and features are not outputs of a stage. Each of their folders is named by what it was made of and has its own
pointer, `runs/<identity>.dvc`, so that `dvc pull` changes no other trial, and pointers of several people do not
conflict.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.command import load_params_for_command, parser, run_command
from pipeline.common.dvc_workspace import let_dvc_do_without_git
from pipeline.common.errors import PipelineError
from pipeline.common.files import folders_with
from pipeline.common.redaction import file_without_secrets
from pipeline.common.version_control import DVC_LOCK
from pipeline.config import Params
from pipeline.encoders.store import INDEX
from pipeline.trials.environment import locked_stages
from pipeline.trials.folder import Status, Trial, trials_in

REMOTES = ".dvc/config"
FOLDERS_PER_CALL = 500
"""Folders per call of DVC; the length of a command line is limited."""


def push(params: Params) -> list[str]:
    """Push the outputs in `dvc.lock`, and all features and done trials.

    Returns the pointers, relative to the project, which have to be committed to share their contents. PipelineError if
    DVC has no default remote, or the remote cannot be written.
    """
    done = [trial for trial in trials_in(params.train.runs) if trial.status() is Status.DONE]
    features = folders_with(params.features.out, INDEX)
    folders = [*_untracked_corpora(done), *features, *(trial.folder for trial in done)]
    let_dvc_do_without_git(Path.cwd())
    _require_remote()
    for start in range(0, len(folders), FOLDERS_PER_CALL):
        _dvc("add", *map(str, folders[start : start + FOLDERS_PER_CALL]))
    _dvc("push")
    print(f"pushed: {len(done)} trials, {len(features)} folders of features, and what {DVC_LOCK} names", flush=True)
    return [f"{folder}.dvc" for folder in folders]


def _require_remote() -> None:
    """Check for a default remote, before anything is copied to DVC's cache."""
    words = [sys.executable, "-m", "dvc", "remote", "default"]
    if subprocess.run(words, capture_output=True, check=False).returncode == 1:
        raise PipelineError(
            "dvc",
            "has no default remote; nothing was copied",
            "add one: dvc remote add -d NAME PLACE, or choose one of dvc remote list: dvc remote default NAME",
        )


def _untracked_corpora(trials: Iterable[Trial]) -> list[Path]:
    """Corpora that a sweep prepared in addition to that of `params.yaml`."""
    known = {
        Path(output["path"]) for stage in (locked_stages(Path()) or {}).values() for output in stage.get("outs", ())
    }
    corpora = {trial.corpus_folder() for trial in trials}
    return sorted(folder for folder in corpora - known if folder.is_dir())


def holds_secret(file: Path) -> bool:
    """Whether a settings file contains something that looks like a secret."""
    content = file.read_bytes()
    return file_without_secrets(file.name, content) != content


def _dvc(*words: str) -> None:
    # On stdout DVC repeats advice on git with each call; progress and errors are on stderr.
    ran = subprocess.run([sys.executable, "-m", "dvc", *words], stdout=subprocess.DEVNULL, check=False)
    if ran.returncode:
        raise PipelineError(
            f"dvc {words[0]}", f"ended with {ran.returncode}", "see above; then start the same command again"
        )


def main() -> None:
    """The command."""
    pointers = push(load_params_for_command(parser(__doc__).parse_args()))
    patterns = sorted({f"{Path(pointer).parent}/*.dvc" for pointer in pointers})
    # If all trials belong to sweeps, the stages of params.yaml have no outputs.
    missing = "" if "evaluate" in (locked_stages(Path()) or {}) else " --allow-missing"
    files = [name for name in (DVC_LOCK, REMOTES) if Path(name).exists()]
    if REMOTES in files and holds_secret(Path(REMOTES)):
        files.remove(REMOTES)
        print(f"{REMOTES} holds a secret and must not be shared: move it away with dvc remote modify --local")
    print(f"share them: git add {' '.join([*files, *patterns])} && git commit && git push")
    print(f"in another clone: git pull && dvc pull{missing}")


if __name__ == "__main__":
    run_command(main)
