"""Two runs side by side: what differs in what they are, in their figures, and in what they understood.

pair = compare_pair(Trial(folder), Trial(other))
"""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.metrics import METRICS, find, is_bound
from pipeline.common.statistics import sign_flip_p
from pipeline.common.strict_yaml import read_yaml
from pipeline.comparison.entries import flattened
from pipeline.differences.code import FileChange, changed_files
from pipeline.differences.sessions import changed_packages, changed_surroundings
from pipeline.trials.archive import archived_sources
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions
from pipeline.trials.results import AGAIN

ABSENT = "absent"
_PLACES = ("corpus.out", "features.out", "train.runs", "weights.out")
"""Parameters that say where something lies, not what it is."""

Values = dict[str, tuple[str, str]]
"""Two values by name."""


@dataclass(frozen=True)
class MetricChange:
    """A metric of both runs; None where one has it not."""

    name: str
    one: float | None
    other: float | None
    p: float | None
    """Of a sign-flip test over the same utterances of these two runs; for word error rates, where they are kept."""


@dataclass(frozen=True)
class Disagreement:
    """An utterance that one run has right, word by word, and the other wrong."""

    condition: str
    id: str
    reference: str
    wrong: str
    right_in: str
    """`A` or `B`."""


@dataclass(frozen=True)
class Pair:
    """Two runs; the first is A, the second is B."""

    one: Trial
    other: Trial
    parameters: Values
    files: list[FileChange] | None
    """None where an archive is missing or damaged."""
    cosmetic: int
    """Files that differ in comments, docstrings or formatting only."""
    data: Values
    versions: Values
    """Of packages, Python and what they ran on."""
    metrics: list[MetricChange]
    disagreements: list[Disagreement]
    notes: list[str]


def compare_pair(one: Trial, other: Trial) -> Pair:
    """Compare two runs, done or not: what is not there is left out, and named.

    Raises:
        PipelineError: an `identity.json`, a `provenance.json` or hypotheses are damaged.
    """
    notes = [f"{name} is not done: it has no figures." for name, t in (("A", one), ("B", other)) if not t.result()]
    versions: Values = {}
    files, cosmetic = None, 0
    recorded = [sessions(trial) for trial in (one, other)]
    if all(recorded):
        last, last_other = (each[-1] for each in recorded)
        versions = changed_surroundings(last, last_other) | changed_packages(last, last_other)
        source, source_other = archived_sources(one.folder, last), archived_sources(other.folder, last_other)
        if source is not None and source_other is not None:
            files, cosmetic = changed_files(source, source_other)
    parts = one.identity_parts(), other.identity_parts()
    if files == [] and parts[0]["code"] != parts[1]["code"]:
        notes.append("They were trained by different code; what is compared is the code that evaluated them.")
    metrics, disagreements = _figures(one, other, notes)
    return Pair(
        one=one,
        other=other,
        parameters=_differing(_parameters(one), _parameters(other)),
        files=files,
        cosmetic=cosmetic,
        data=_differing(*(part["data"] for part in parts)),
        versions=versions,
        metrics=metrics,
        disagreements=disagreements,
        notes=notes,
    )


def _parameters(trial: Trial) -> dict[str, Any]:
    values = flattened(read_yaml(trial.config, "restore it; the trial cannot be read without it"))
    return {key: value for key, value in values.items() if key not in _PLACES}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> Values:
    return {
        key: (_text(one.get(key, ABSENT)), _text(other.get(key, ABSENT)))
        for key in sorted(one.keys() | other.keys())
        if one.get(key, ABSENT) != other.get(key, ABSENT)
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figures(one: Trial, other: Trial, notes: list[str]) -> tuple[list[MetricChange], list[Disagreement]]:
    result, result_other = one.result(), other.result()
    if not result or not result_other:
        return [], []
    was, now = result["metrics"], result_other["metrics"]
    first, second = _lines(one), _lines(other)
    p_values = {}
    for condition in first.keys() & second.keys():
        ours, theirs = first[condition], second[condition]
        if _texts(ours) == _texts(theirs):
            ids = sorted(ours)
            edits = [_errors(ours[id]) for id in ids], [_errors(theirs[id]) for id in ids]
            p_values[f"wer/{condition}"] = sign_flip_p(*edits)
        else:
            notes.append(f"The utterances of {condition} are not the same in both: they are not paired.")
    names = sorted((name for name in was | now if not is_bound(name)), key=_order)
    metrics = [MetricChange(name, was.get(name), now.get(name), p_values.get(name)) for name in names]
    return metrics, _disagreements(first, second)


def _order(metric: str) -> tuple[int, str]:
    """As in the registry: error rates first. What it does not know comes last."""
    known = find(metric)
    return METRICS.index(known) if known else len(METRICS), metric


def _disagreements(first: dict[str, dict[str, dict]], second: dict[str, dict[str, dict]]) -> list[Disagreement]:
    found = []
    for condition in sorted(first.keys() & second.keys()):
        for id in sorted(first[condition].keys() & second[condition].keys()):
            one, other = first[condition][id], second[condition][id]
            right = [_errors(line) == 0 for line in (one, other)]
            if one["reference"] == other["reference"] and right[0] != right[1]:
                name, wrong = ("A", other) if right[0] else ("B", one)
                found.append(Disagreement(condition, id, one["reference"], wrong["hypothesis"], name))
    return found


def _lines(trial: Trial) -> dict[str, dict[str, dict]]:
    """Lines of `hypotheses.jsonl` by condition, as metrics name it, and id."""
    found: dict[str, dict[str, dict]] = {}
    try:
        for line in trial.read_hypotheses():
            name = line["split"] + ("" if line["condition"] == "clean" else f"/{line['condition']}")
            found.setdefault(name, {})[line["id"]] = line
            _errors(line)
    except (KeyError, TypeError) as error:
        raise PipelineError(trial.hypotheses, f"holds no hypotheses ({error!r})", AGAIN) from None
    return found


def _errors(line: dict[str, Any]) -> int:
    return line["substitutions"] + line["deletions"] + line["insertions"]


def _texts(lines: dict[str, dict]) -> dict[str, str]:
    return {id: line["reference"] for id, line in lines.items()}
