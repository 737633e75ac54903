"""What Linux says of the machine, in files of lines `key : value`."""

from pathlib import Path

CPU = Path("/proc/cpuinfo")


def value_of(path: Path, key: str) -> str | None:
    """The value of the first line `key : value`; None without such a line, or without the file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)
