"""Provenance for a report: the facts of each trial, and those that trials share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.comparison.entries import Entry
from pipeline.trials.provenance import sessions

PACKAGES = ("torch", "transformers", "peft", "numpy", "jiwer", "av")
"""The main packages that can change a result (`NUMERIC` in `pipeline.differences.sessions`), listed in a report;
provenance.json has all."""


@dataclass(frozen=True)
class TrialProvenance:
    """Provenance of one trial."""

    entry: Entry
    commit: str
    """Shortened, with `+` if there were uncommitted changes; several if its sessions differ."""
    started: str
    """Date and time (UTC)."""
    duration: str
    machine: str


def trial_provenance(entries: Sequence[Entry]) -> list[TrialProvenance]:
    """The provenance of each trial that has started."""
    return [
        TrialProvenance(
            entry=entry,
            commit=_joined(map(_commit, recorded)),
            started=recorded[0].get("started", "unknown")[:16].replace("T", " "),
            duration=_duration(recorded),
            machine=_joined(map(_machine, recorded)),
        )
        for entry in entries
        if (recorded := sessions(entry.trial))
    ]


def shared_facts(entries: Sequence[Entry]) -> dict[str, str]:
    """Versions, systems and digests of data, listed once; different values are joined by semicolons."""
    recorded = [session for entry in entries for session in sessions(entry.trial)]
    facts = {"Python": _joined(session.get("python", "") for session in recorded)}
    for name in PACKAGES:
        facts[name] = _joined(session.get("packages", {}).get(name, "") for session in recorded)
    facts["system"] = _joined(session.get("system", {}).get("system", "") for session in recorded)
    facts["training code"] = _joined(entry.code[:16] for entry in entries)
    for name in sorted({name for entry in entries for name in entry.data}):
        facts[f"data: {name}"] = _joined(entry.data[name][:16] for entry in entries if name in entry.data)
    return {name: value for name, value in facts.items() if value}


def _commit(session: dict[str, Any]) -> str:
    code = session.get("code", {})
    return code["commit"][:8] + "+" * bool(code.get("dirty")) if "commit" in code else "no commit"


def _machine(session: dict[str, Any]) -> str:
    hardware = session.get("hardware", {})
    parts = [hardware.get("cpu", ""), f"{hardware.get('cores', 'unknown')} cores", *hardware.get("gpus", [])]
    return ", ".join(filter(None, [*parts, f"{session['threads']} threads" if session.get("threads") else ""]))


def _duration(recorded: Sequence[dict[str, Any]]) -> str:
    """Total minutes of the sessions that have ended."""
    ended = [session for session in recorded if session.get("started") and session.get("ended")]
    seconds = sum(
        (datetime.fromisoformat(s["ended"]) - datetime.fromisoformat(s["started"])).total_seconds() for s in ended
    )
    return f"{seconds / 60:.1f} min" if ended else "no session has ended"


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
