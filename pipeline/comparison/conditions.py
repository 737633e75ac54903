"""Conditions as the names of metrics have them: a split, and its noise. `test`, `test/snr_0`, `validation`."""


def condition_order(condition: str) -> tuple:
    """Sorts conditions: test before validation, clean before noise, loud noise last."""
    split, _, noise = condition.partition("/")
    level = noise.removeprefix("snr_")
    return split, bool(noise), -float(level) if _is_number(level) else 0, noise


def condition_name(condition: str) -> str:
    """`test/snr_0` as people say it: `test, 0 dB`."""
    split, _, noise = condition.partition("/")
    level = noise.removeprefix("snr_")
    return ", ".join(part for part in (split, f"{level} dB" if _is_number(level) else noise) if part)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
