"""The steps of a reproduction: restore code and data, check the identity, run both stages, compare."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.verified import sha256_fault
from pipeline.config import load_params
from pipeline.differences.sessions import changed_packages, is_numeric, reasons_against_equality
from pipeline.reproduction.code import restore_code, same_code
from pipeline.reproduction.data import Problem, place_data
from pipeline.reproduction.results import ReproductionVerdict, judge
from pipeline.reproduction.stages import query_identity, run_stage, settings_of
from pipeline.training.inputs import TrialInputs, media_files
from pipeline.trials.environment import environment, shown_path
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions

STAGES = ("train", "evaluate")
_REQUIRED = ("code", "source", "packages")
"""Entries of a session that a reproduction needs."""


class Reproduction:
    """The reproduction of one recorded trial, in a workspace for code, data and the reproduced trial; the project has
    the data. `say` is called with a topic and a message. PipelineError if the trial is not done or lacks provenance."""

    def __init__(self, trial: Trial, project: Path, workspace: Path, say: Callable[[str, str], None]) -> None:
        self.trial, self.project, self.workspace, self._say = trial, project, workspace, say
        result = trial.result()
        if result is None:
            raise PipelineError(trial.folder, "is not done: there is nothing to compare with", "finish it first")
        self.result = result
        self.sessions = {stage: _last(trial, stage) for stage in STAGES}
        is_same = same_code(self.sessions["train"], self.sessions["evaluate"], trial.folder)
        self.settings: dict[str, list[str]] = {}
        """Values of `--set` for each stage, known after `restore`."""
        self.trees = {stage: workspace / ("code" if is_same else f"code-{stage}") for stage in STAGES}

    def restore(self) -> list[Problem]:
        """Restore code and data in the workspace, check them, and return the problems; without any, `run` may
        follow."""
        for tree, stage in {tree: stage for stage, tree in self.trees.items()}.items():
            restore_code(self.sessions[stage], self.trial.folder, self.project, tree)
        if secrets := self._code_without_secrets():
            self._say("code", f"a secret in {', '.join(secrets)} was not kept")
        inputs = self._inputs()
        changed = self._place(inputs)
        if problems := [*(file for file in changed if file.is_decisive), *self._changed_results()]:
            return problems
        self.settings = {
            stage: settings_of(session, inputs, self.workspace / "runs", self.trees[stage])
            for stage, session in self.sessions.items()
        }
        identity = self._changed_identity()
        return [Problem("; ".join([text, *map(str, changed)]), is_file=bool(changed)) for text in identity]

    def _place(self, inputs: dict[str, str]) -> list[Problem]:
        changed: dict[Problem, None] = {}
        fetched: dict[str, None] = {}
        for tree in dict.fromkeys(self.trees.values()):
            remaining, pulled = place_data(inputs, self.project, tree)
            if media := self._media(tree):
                # Media are listed in the manifest, which is in place now; earlier versions recorded them themselves.
                inputs = media | inputs
                remaining, more = place_data(inputs, self.project, tree)
                pulled += more
            changed |= dict.fromkeys(remaining)
            fetched |= dict.fromkeys(pulled)
        if fetched:
            self._say("data", f"fetched by DVC: {', '.join(fetched)}")
        self._say("data", f"{len(inputs) - len(changed)} of {len(inputs)} files unchanged")
        return list(changed)

    def _media(self, tree: Path) -> dict[str, str]:
        """SHA-256 of the media that the stages read in mode online, by path, from the manifest in a tree."""
        # Without a manifest, the check of the identity says so.
        with contextlib.suppress(PipelineError):
            files = media_files(load_params(self.trial.config), tree)
            return {shown_path(self.project / path, self.project): sha256 for path, sha256 in files.items()}
        return {}

    def _inputs(self) -> dict[str, str]:
        """SHA-256 of all files that the stages read, by path."""
        recorded = [session["inputs"] for session in self.sessions.values() if "inputs" in session]
        if recorded:
            return {path: sha256 for inputs in recorded for path, sha256 in inputs.items()}
        self._say("data", "no hashes were recorded; those in the data's own indices are used")
        inputs = TrialInputs(load_params(self.trial.config))
        files = {path: sha256 for stage in STAGES for path, sha256 in inputs.files(stage).items()}
        return {shown_path(path, self.project): sha256 for path, sha256 in files.items()}

    def _changed_results(self) -> list[Problem]:
        recorded = self.sessions["evaluate"].get("outputs", {})
        files = {self.trial.folder / name: sha256 for name, sha256 in recorded.items()}
        faults = {file: sha256_fault(file, sha256) for file, sha256 in files.items()}
        changed = [Problem(f"{file} {fault}") for file, fault in faults.items() if fault]
        self._say("results", f"{len(files) - len(changed)} of {len(files)} files unchanged")
        return changed

    def _changed_identity(self) -> list[str]:
        """How the identity of trial and evaluation according to the restored code differs from the recorded one."""
        config = self.trial.config
        identity = {stage: query_identity(stage, self.trees[stage], config, self.settings[stage]) for stage in STAGES}
        if refused := [stage for stage in STAGES if "error" in identity[stage]]:
            return [f"{stage} would not start: {identity[stage]['error']}" for stage in refused]
        now, parts = identity["train"], self.trial.identity_parts()
        problems = [f"the {part} has changed" for part in ("configuration", "code") if now[part] != parts[part]]
        names = sorted(now["data"].keys() | parts["data"].keys())
        changed = [name for name in names if now["data"].get(name) != parts["data"].get(name)]
        problems += [f"{name}: not the data of the training" for name in changed]
        if problems and (secrets := self._code_without_secrets()):
            problems.append(f"a secret in {', '.join(secrets)} was not kept, so this code is incomplete")
        if not problems and identity["evaluate"]["evaluation"] != self.result["evaluation"]:
            problems.append("settings, code or data of the evaluation have changed")
        if not problems:
            self._say("identity", "code, data and configuration are those that were recorded")
        return problems

    def _code_without_secrets(self) -> list[str]:
        """The Python files that were not kept as they were, since they contained a secret."""
        names = [name for session in self.sessions.values() for name in session["source"].get("redacted", ())]
        return sorted({name for name in names if name.endswith(".py")})

    def reasons(self) -> list[str]:
        """Why a reproduction on this machine need not have equal bits."""
        now = environment()
        changed = {name for session in self.sessions.values() for name in changed_packages(session, now)}
        if harmless := sorted(name for name in changed if not is_numeric(name)):
            self._say("versions", f"{len(harmless)} packages without effect on results differ: {', '.join(harmless)}")
        return self._reasons(now, now)

    def _reasons(self, train: dict[str, Any], evaluate: dict[str, Any]) -> list[str]:
        # Every session of an interrupted training contributed to the result.
        trained = [session for session in sessions(self.trial) if session.get("purpose") == "train"]
        pairs = [*((session, train) for session in trained), (self.sessions["evaluate"], evaluate)]
        return list(dict.fromkeys(reason for before, now in pairs for reason in reasons_against_equality(before, now)))

    def run(self) -> tuple[list[ReproductionVerdict], list[str]]:
        """Train and evaluate again in what `restore` has restored, and compare.

        Returns:
            The verdicts, and why bits need not be equal.
        """
        for stage in STAGES:
            run_stage(stage, self.trees[stage], self.trial.config, self.settings[stage])
        reproduced = Trial.at(self.workspace / "runs", self.trial.identity)
        reasons = self._reasons(*(_last(reproduced, stage) for stage in STAGES))
        return judge(self.trial, reproduced, exact=not reasons), reasons

    def remove(self) -> None:
        """Remove the workspace."""
        shutil.rmtree(self.workspace, ignore_errors=True)


def _last(trial: Trial, stage: str) -> dict[str, Any]:
    """The last finished session of a stage."""
    remedy = "reproduce another trial, or train this one again"
    finished = [s for s in sessions(trial) if s.get("purpose") == stage and s.get("outcome") == "finished"]
    if not finished:
        raise PipelineError(trial.provenance, f"has no finished session of {stage}", remedy)
    if missing := [key for key in _REQUIRED if not finished[-1].get(key)]:
        raise PipelineError(trial.provenance, f"lacks {', '.join(missing)} of {stage}", remedy)
    return finished[-1]
