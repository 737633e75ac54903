"""Compare two trials, A and B: their parameters, code, data, versions, metrics and hypotheses."""

import ast
import json
from dataclasses import dataclass
from typing import Any

from pipeline.common.code import tree_digest
from pipeline.common.metrics import METRICS, find, is_bound
from pipeline.common.strict_yaml import read_yaml
from pipeline.comparison.changes import difference_of_two_trials
from pipeline.differences.sessions import ABSENT, changed_packages, changed_surroundings
from pipeline.trials.environment import archived_sources
from pipeline.trials.folder import Trial
from pipeline.trials.identity import flattened
from pipeline.trials.provenance import sessions
from pipeline.trials.results import Hypotheses

REST = "imports and other statements"
_PATHS = ("corpus.out", "features.out", "train.runs", "weights.out")
"""Parameters that are only locations."""

Values = dict[str, tuple[str, str]]
"""The values of A and B by name."""


@dataclass(frozen=True)
class FileChange:
    """A file that differs in more than comments, docstrings and formatting."""

    name: str
    what: str
    """`only in A`, `only in B`, or the definitions that differ: `fit, +Watch.on_save, -old`."""


@dataclass(frozen=True)
class MetricChange:
    """The values of a metric; None in a trial that lacks it."""

    name: str
    a: float | None
    b: float | None
    interval: tuple[float, float] | None
    """95%, of B minus A over the same utterances, for word error rates."""


@dataclass(frozen=True)
class Disagreement:
    """An utterance that is correct, word by word, in one trial and wrong in the other."""

    condition: str
    id: str
    reference: str
    wrong: str
    """The wrong hypothesis."""
    right_in: str
    """`A` or `B`."""


@dataclass(frozen=True)
class Differences:
    """The differences between two trials."""

    a: Trial
    b: Trial
    parameters: Values
    files: list[FileChange] | None
    """None if an archive of sources is missing or damaged."""
    cosmetic: int
    """Number of files that differ in comments, docstrings or formatting only."""
    data: Values
    versions: Values
    """Of packages, Python and the machine."""
    metrics: list[MetricChange]
    disagreements: list[Disagreement]
    notes: list[str]


def find_differences(a: Trial, b: Trial) -> Differences:
    """The differences between two trials, done or not; what cannot be compared is in the notes.

    PipelineError if a file is damaged.
    """
    notes = [f"{name} is not done: it has no metrics." for name, t in (("A", a), ("B", b)) if not t.result()]
    versions: Values = {}
    files, cosmetic = None, 0
    recorded = [sessions(trial) for trial in (a, b)]
    if all(recorded):
        last_a, last_b = (each[-1] for each in recorded)
        versions = changed_surroundings(last_a, last_b) | changed_packages(last_a, last_b)
        sources_a, sources_b = archived_sources(a.folder, last_a), archived_sources(b.folder, last_b)
        if sources_a is not None and sources_b is not None:
            files, cosmetic = changed_files(sources_a, sources_b)
    parts_a, parts_b = a.identity_parts(), b.identity_parts()
    if files == [] and parts_a["code"] != parts_b["code"]:
        notes.append("They were trained by different code; what is compared is the code that evaluated them.")
    metrics, disagreements = _compare_results(a, b, notes)
    return Differences(
        a=a,
        b=b,
        parameters=_differing(_parameters(a), _parameters(b)),
        files=files,
        cosmetic=cosmetic,
        data=_differing(parts_a["data"], parts_b["data"]),
        versions=versions,
        metrics=metrics,
        disagreements=disagreements,
        notes=notes,
    )


def _parameters(trial: Trial) -> dict[str, Any]:
    values = flattened(read_yaml(trial.config, "restore it; the trial cannot be read without it"))
    return {key: value for key, value in values.items() if key not in _PATHS}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> Values:
    return {
        key: (_text(a.get(key, ABSENT)), _text(b.get(key, ABSENT)))
        for key in sorted(a.keys() | b.keys())
        if a.get(key, ABSENT) != b.get(key, ABSENT)
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def changed_files(a: dict[str, bytes], b: dict[str, bytes]) -> tuple[list[FileChange], int]:
    """The Python files that differ, and how many more differ in comments, docstrings or formatting only."""
    changes, cosmetic = [], 0
    for name in sorted(name for name in a.keys() | b.keys() if name.endswith(".py")):
        if name not in a or name not in b:
            changes.append(FileChange(name, "only in A" if name in a else "only in B"))
        elif a[name] != b[name]:
            parts = _changed_definitions(_definitions(ast.parse(a[name])), _definitions(ast.parse(b[name])))
            cosmetic += not parts
            changes += [FileChange(name, ", ".join(parts))] if parts else []
    return changes, cosmetic


def _changed_definitions(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Names of changed definitions, with `+` if only in B, with `-` if only in A."""
    changed = [name for name in a if name in b and a[name] != b[name]]
    return [*changed, *(f"+{name}" for name in _missing(b, a)), *(f"-{name}" for name in _missing(a, b))]


def _missing(names: dict[str, str], others: dict[str, str]) -> list[str]:
    """The names that `others` lacks; of a missing class without its methods."""
    missing = [name for name in names if name not in others]
    return [name for name in missing if "." not in name or name.partition(".")[0] not in missing]


def _definitions(tree: ast.Module) -> dict[str, str]:
    """Digest of each function, class, method and named value of a module, and of all other statements."""
    digests: dict[str, str] = {}
    rest = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            digests |= {f"{node.name}.{method.name}": tree_digest(method) for method in methods}
            node.body = [part for part in node.body if part not in methods]
            digests[node.name] = tree_digest(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            digests[node.name] = tree_digest(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            digests[node.targets[0].id] = tree_digest(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            digests[node.target.id] = tree_digest(node)
        else:
            rest.append(node)
    return digests | {REST: tree_digest(ast.Module(rest, []))}


def _compare_results(a: Trial, b: Trial, notes: list[str]) -> tuple[list[MetricChange], list[Disagreement]]:
    result_a, result_b = a.result(), b.result()
    if not result_a or not result_b:
        return [], []
    metrics_a, metrics_b = result_a["metrics"], result_b["metrics"]
    lines_a, lines_b = a.read_hypotheses(), b.read_hypotheses()
    intervals = {}
    for condition in lines_a.keys() & lines_b.keys():
        references = [{id: line.reference for id, line in lines[condition].items()} for lines in (lines_a, lines_b)]
        if references[0] == references[1]:
            _, intervals[f"wer/{condition}"] = difference_of_two_trials(lines_b[condition], lines_a[condition])
        else:
            notes.append(f"The utterances of {condition} are not the same in both: they are not paired.")
    names = sorted((name for name in metrics_a | metrics_b if not is_bound(name)), key=_order)
    metrics = [MetricChange(name, metrics_a.get(name), metrics_b.get(name), intervals.get(name)) for name in names]
    return metrics, _disagreements(lines_a, lines_b)


def _order(metric: str) -> tuple[int, str]:
    """The order of the registry, error rates first; unknown metrics last."""
    known = find(metric)
    return METRICS.index(known) if known else len(METRICS), metric


def _disagreements(lines_a: Hypotheses, lines_b: Hypotheses) -> list[Disagreement]:
    disagreements = []
    for condition in sorted(lines_a.keys() & lines_b.keys()):
        for id in sorted(lines_a[condition].keys() & lines_b[condition].keys()):
            a, b = lines_a[condition][id], lines_b[condition][id]
            if a.reference == b.reference and (a.errors == 0) != (b.errors == 0):
                right_in, wrong = ("A", b) if a.errors == 0 else ("B", a)
                disagreements.append(Disagreement(condition, id, a.reference, wrong.hypothesis, right_in))
    return disagreements
