"""A recorded run on its way to be made again: is all there, why bits may differ, and its two stages."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.verified import fault
from pipeline.config import load_params
from pipeline.differences.sessions import changed_packages, is_numeric, reasons_against_equality
from pipeline.reproduction.code import remove_tree, restore_code, same_code
from pipeline.reproduction.data import Fault, place_data
from pipeline.reproduction.results import Verdict, judge
from pipeline.reproduction.stages import run_stage, settings_of, told_by
from pipeline.trials.folder import Trial
from pipeline.trials.input_files import files_of
from pipeline.trials.provenance import environment, sessions, shown_path

STAGES = ("train", "evaluate")
_NEEDED = ("code", "source", "packages")
"""Of a session: what it takes to make it again, and to say whether bits must be equal."""


class Reproduction:
    """One recorded run on its way to be made again.

    Args:
        trial: done.
        project: the folder with its repository and data.
        workspace: takes code, data and the trial made again.
        say: takes a topic, and what was found of it.

    Raises:
        PipelineError: it is not done, or its provenance is missing.
    """

    def __init__(self, trial: Trial, project: Path, workspace: Path, say: Callable[[str, str], None]) -> None:
        self.trial, self.project, self.workspace, self._say = trial, project, workspace, say
        result = trial.result()
        if result is None:
            raise PipelineError(trial.folder, "is not done: there is nothing to compare with", "finish it first")
        self.result = result
        self.sessions = {stage: _last(trial, stage) for stage in STAGES}
        one, other = (self.sessions[stage] for stage in STAGES)
        alike = same_code(one, other, trial.folder)
        self.trees = {stage: workspace / ("code" if alike else f"code-{stage}") for stage in STAGES}

    def restore(self) -> list[str]:
        """Bring code and data into the workspace, and look whether all is as it was.

        Returns:
            What is missing or has changed; empty where the run can be made again.
        """
        for tree, stage in {tree: stage for stage, tree in self.trees.items()}.items():
            self._say("code", restore_code(self.sessions[stage], self.trial.folder, self.project, tree))
        inputs = self._inputs()
        faults = self._place(inputs)
        problems = [*(str(one) for one in faults if one.decisive), *self._changed_results()]
        if problems:
            return problems
        self.settings = {
            stage: settings_of(session, inputs, self.workspace / "runs", self.trees[stage])
            for stage, session in self.sessions.items()
        }
        return ["; ".join([problem, *map(str, faults)]) for problem in self._other_identity()]

    def _place(self, inputs: dict[str, str]) -> list[Fault]:
        faults: dict[Fault, None] = {}
        fetched: dict[str, None] = {}
        for tree in dict.fromkeys(self.trees.values()):
            found, pulled = place_data(inputs, self.project, tree)
            faults |= dict.fromkeys(found)
            fetched |= dict.fromkeys(pulled)
        if fetched:
            self._say("data", f"fetched by DVC: {', '.join(fetched)}")
        self._say("data", f"{len(inputs) - len(faults)} of {len(inputs)} files as they were")
        return list(faults)

    def _inputs(self) -> dict[str, str]:
        """SHA-256 of all files that either stage read, by path."""
        recorded = [session["inputs"] for session in self.sessions.values() if "inputs" in session]
        if recorded:
            return {path: sha256 for inputs in recorded for path, sha256 in inputs.items()}
        self._say("data", "hashes were not recorded when it ran: what the data say of themselves is taken")
        params = load_params(self.trial.config)
        files = {path: sha256 for stage in STAGES for path, sha256 in files_of(params, stage).items()}
        return {shown_path(path, self.project): sha256 for path, sha256 in files.items()}

    def _changed_results(self) -> list[str]:
        recorded = self.sessions["evaluate"].get("outputs", {})
        files = {self.trial.folder / name: sha256 for name, sha256 in recorded.items()}
        found = [f"{file} {what}" for file, sha256 in files.items() if (what := fault(file, sha256))]
        self._say("results", f"{len(files) - len(found)} of {len(files)} files as they were written")
        return found

    def _other_identity(self) -> list[str]:
        """What the restored code takes for another trial or another evaluation than was recorded."""
        told = {stage: told_by(stage, self.trees[stage], self.trial.config, self.settings[stage]) for stage in STAGES}
        if refused := [
            f"{stage} would not begin: {told[stage]['error']}" for stage in STAGES if "error" in told[stage]
        ]:
            return refused
        parts = self.trial.identity_parts()
        problems = [
            f"the {part} is not what was recorded"
            for part in ("configuration", "code")
            if told["train"][part] != parts[part]
        ]
        data = told["train"]["data"]
        other = sorted(name for name in data.keys() | parts["data"].keys() if data.get(name) != parts["data"].get(name))
        problems += [f"{name} are not what was trained on" for name in other]
        if problems and (secrets := self._without_secrets()):
            problems.append(f"a secret in {', '.join(secrets)} was not kept, so that this code is not complete")
        if not problems and told["evaluate"]["evaluation"] != self.result["evaluation"]:
            problems.append("settings, code or data of the evaluation are not what was recorded")
        if not problems:
            self._say("identity", "code, data and configuration are those that were recorded")
        return problems

    def _without_secrets(self) -> list[str]:
        """The code that is not kept as it was, since it held what looked like a secret."""
        names = [name for session in self.sessions.values() for name in session["source"].get("redacted", ())]
        return sorted({name for name in names if name.endswith(".py")})

    def reasons(self) -> list[str]:
        """Why bits need not be equal if it is made again here."""
        now = environment()
        others = {name for session in self.sessions.values() for name in changed_packages(session, now)}
        if idle := sorted(name for name in others if not is_numeric(name)):
            self._say("versions", f"{len(idle)} packages that compute nothing are others: {', '.join(idle)}")
        return self._reasons(now, now)

    def _reasons(self, train: dict[str, Any], evaluate: dict[str, Any]) -> list[str]:
        # Each session of a training that was cut had its part in what came out.
        trained = [session for session in sessions(self.trial) if session.get("purpose") == "train"]
        pairs = [*((session, train) for session in trained), (self.sessions["evaluate"], evaluate)]
        return list(dict.fromkeys(reason for was, is_ in pairs for reason in reasons_against_equality(was, is_)))

    def run(self) -> tuple[list[Verdict], list[str]]:
        """Train and evaluate again, and compare.

        Returns:
            The verdicts, and why bits need not be equal.
        """
        for stage in STAGES:
            run_stage(stage, self.trees[stage], self.trial.config, self.settings[stage])
        again = Trial.at(self.workspace / "runs", self.trial.identity)
        reasons = self._reasons(*(_last(again, stage) for stage in STAGES))
        return judge(self.trial, again, exact=not reasons), reasons

    def remove(self) -> None:
        """Remove the workspace, and what git knows of it."""
        for tree in self.trees.values():
            remove_tree(self.project, tree)
        shutil.rmtree(self.workspace, ignore_errors=True)


def _last(trial: Trial, stage: str) -> dict[str, Any]:
    finished = [s for s in sessions(trial) if s.get("purpose") == stage and s.get("outcome") == "finished"]
    if not finished:
        raise PipelineError(trial.provenance, f"tells of no finished session of {stage}", "the run cannot be traced")
    if lacking := [key for key in _NEEDED if not finished[-1].get(key)]:
        raise PipelineError(trial.provenance, f"lacks {', '.join(lacking)} of {stage}", "the run cannot be traced")
    return finished[-1]
