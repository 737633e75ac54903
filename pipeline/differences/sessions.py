"""How two sessions of work differ in what they ran on, and whether equal bits can be asked of them."""

from typing import Any

NUMERIC = frozenset({
    "accelerate", "av", "espeakng-loader", "jiwer", "numpy", "peft", "rapidfuzz", "safetensors", "scipy",
    "sentencepiece", "soundfile", "tokenizers", "torch", "transformers",
})  # fmt: skip
"""Packages that numbers go through; so do those whose names begin as below. No other can move a result."""
_NUMERIC_BEGINNINGS = ("nvidia-", "triton")
_ABSENT = "absent"


def changed_packages(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Versions of the packages that differ, by name; `absent` where there is none."""
    first, second = ({name.lower(): v for name, v in session.get("packages", {}).items()} for session in (one, other))
    return {
        name: (first.get(name, _ABSENT), second.get(name, _ABSENT))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def is_numeric(package: str) -> bool:
    """Whether a package can move a result."""
    return package in NUMERIC or package.startswith(_NUMERIC_BEGINNINGS)


def changed_surroundings(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What differs beside packages: Python, the C library, processor, device, threads. What is not known is equal."""
    found = {}
    for name, way in {
        "Python": ("python",),
        "C library": ("system", "libc"),
        "processor": ("hardware", "cpu"),
        "vector instructions": ("hardware", "vectors"),
        "GPU driver": ("hardware", "gpu_driver"),
        "device": ("device",),
        "threads": ("threads",),
    }.items():
        first, second = (_value(session, way) for session in (one, other))
        if first is not None and second is not None and first != second:
            found[name] = (_text(first, second), _text(second, first))
    return found


def _value(session: dict[str, Any], way: tuple[str, ...]) -> Any:
    value: Any = session
    for step in way:
        value = (value or {}).get(step)
    return value


def _text(value: Any, other: Any) -> str:
    """The value; of a list what the other has not."""
    if isinstance(value, list):
        return " ".join(item for item in value if item not in other) or "no others"
    return str(value)


def reasons_against_equality(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Why bits of the two need not be equal; empty where they must be."""
    reasons = [f"{name}: {was}, now {is_}" for name, (was, is_) in changed_surroundings(one, other).items()]
    packages = changed_packages(one, other).items()
    reasons += [f"{name} {was}, now {is_}" for name, (was, is_) in packages if is_numeric(name)]
    if (device := one.get("device")) not in (None, "cpu"):
        reasons.append(f"{device}: kernels of a GPU add in no fixed order")
    return reasons
