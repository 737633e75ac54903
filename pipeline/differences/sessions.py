"""Differences between the environments of two sessions, and whether their results must have equal bits.

A session is one run of a stage on a trial, as recorded in its `provenance.json`.
"""

from typing import Any

NUMERIC = frozenset({
    "accelerate", "av", "espeakng-loader", "jiwer", "numpy", "peft", "rapidfuzz", "safetensors", "scipy",
    "sentencepiece", "soundfile", "tokenizers", "torch", "transformers",
})  # fmt: skip
"""Packages that can change a result, besides those with one of the prefixes below."""
_NUMERIC_PREFIXES = ("nvidia-", "triton")
ABSENT = "absent"
"""In place of a value that one side lacks."""
_SURROUNDINGS = {
    "Python": ("python",),
    "C library": ("system", "libc"),
    "processor": ("hardware", "cpu"),
    "vector instructions": ("hardware", "vectors"),
    "GPU driver": ("hardware", "gpu_driver"),
    "device": ("device",),
    "threads": ("threads",),
}
"""Keys in a session by the name shown."""


def changed_packages(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Different versions of packages by name; `absent` without one."""
    first, second = ({name.lower(): v for name, v in session.get("packages", {}).items()} for session in (a, b))
    return {
        name: (first.get(name, ABSENT), second.get(name, ABSENT))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def is_numeric(package: str) -> bool:
    """Whether a package can change a result."""
    return package in NUMERIC or package.startswith(_NUMERIC_PREFIXES)


def changed_surroundings(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Differences of Python, C library, processor, device and threads. Unknown values count as equal."""
    changed = {}
    for name, keys in _SURROUNDINGS.items():
        first, second = (_value(session, keys) for session in (a, b))
        if first is not None and second is not None and first != second:
            changed[name] = (_text(first, second), _text(second, first))
    return changed


def _value(session: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = session
    for key in keys:
        value = (value or {}).get(key)
    return value


def _text(value: Any, other: Any) -> str:
    """The value; of a list only the items that the other lacks."""
    if isinstance(value, list):
        return " ".join(item for item in value if item not in other) or "no others"
    return str(value)


def reasons_against_equality(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why the results of two sessions may differ in bits; empty if they must be equal."""
    reasons = [f"{name}: {a}, now {b}" for name, (a, b) in changed_surroundings(before, now).items()]
    reasons += [f"{name} {a}, now {b}" for name, (a, b) in changed_packages(before, now).items() if is_numeric(name)]
    if (device := before.get("device")) not in (None, "cpu"):
        reasons.append(f"{device}: kernels of a GPU add in no fixed order")
    return reasons
