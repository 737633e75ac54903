"""Where the numbers of a report come from: what each trial has of its own, and what all have in common."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.comparison.entries import Entry
from pipeline.trials.provenance import sessions

PACKAGES = ("torch", "transformers", "peft", "numpy", "jiwer", "av")
"""Those that decide a number; provenance.json has all."""


@dataclass(frozen=True)
class Origin:
    """One trial's line."""

    entry: Entry
    commit: str
    """Shortened, `+` behind it where files were not committed; several, if its sessions differ."""
    began: str
    """Day and minute, UTC."""
    took: str
    machine: str


def origins(entries: Sequence[Entry]) -> list[Origin]:
    """A line for each trial that has a record; those without one have not begun.

    Raises:
        PipelineError: a `provenance.json` is damaged.
    """
    found = []
    for entry in entries:
        recorded = sessions(entry.trial)
        if recorded:
            found.append(
                Origin(
                    entry=entry,
                    commit=_joined(map(_commit, recorded)),
                    began=_began(recorded[0]),
                    took=_duration(recorded),
                    machine=_joined(map(_machine, recorded)),
                )
            )
    return found


def shared_facts(entries: Sequence[Entry]) -> dict[str, str]:
    """What is said once: versions, systems, and digests of data; different values stand side by side.

    Raises:
        PipelineError: as `origins`.
    """
    recorded = [session for entry in entries for session in sessions(entry.trial)]
    facts = {"Python": _joined(session.get("python", "") for session in recorded)}
    for name in PACKAGES:
        facts[name] = _joined(session.get("packages", {}).get(name, "") for session in recorded)
    facts["system"] = _joined(session.get("system", {}).get("system", "") for session in recorded)
    facts["code that training reaches"] = _joined(entry.code[:16] for entry in entries)
    for name in sorted({name for entry in entries for name in entry.data}):
        facts[f"data: {name}"] = _joined(entry.data[name][:16] for entry in entries if name in entry.data)
    return {name: value for name, value in facts.items() if value}


def _began(session: dict[str, Any]) -> str:
    return datetime.fromisoformat(session["started"]).strftime("%Y-%m-%d %H:%M") if "started" in session else "unknown"


def _commit(session: dict[str, Any]) -> str:
    code = session.get("code", {})
    return code["commit"][:8] + "+" * bool(code.get("dirty")) if "commit" in code else "no commit"


def _machine(session: dict[str, Any]) -> str:
    hardware = session.get("hardware", {})
    parts = [hardware.get("cpu", ""), f"{hardware.get('cores', 'unknown')} cores", *hardware.get("gpus", [])]
    return ", ".join(filter(None, [*parts, f"{session['threads']} threads" if session.get("threads") else ""]))


def _duration(recorded: Sequence[dict[str, Any]]) -> str:
    """Minutes of work in all sessions that have an end."""
    ended = [session for session in recorded if session.get("started") and session.get("ended")]
    seconds = sum(
        (datetime.fromisoformat(s["ended"]) - datetime.fromisoformat(s["started"])).total_seconds() for s in ended
    )
    return f"{seconds / 60:.1f} min" if ended else "no session has ended"


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
