"""What Linux says of the machine and of its processes."""

import os
import socket
from pathlib import Path
from typing import Any

CPU = Path("/proc/cpuinfo")


def value_of(path: Path, key: str) -> str | None:
    """The value of the first line `key : value`; None without such a line, or without the file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


def this_process() -> dict[str, Any]:
    """What names this process to others: `host`, `machine`, `pid`, and `started`, by which a process id that was given
    anew is told."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": start_of(pid)}


def _machine() -> str:
    """The running system as processes see it, down to the container: where a process id means the same process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it has exited or is a zombie."""
    try:
        # The name before the last parenthesis may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
