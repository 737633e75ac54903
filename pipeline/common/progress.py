"""Progress bars with an ETA, for a terminal and for a log file."""

import sys
from typing import Any

LOG_INTERVAL_SECONDS = 20.0


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> Any:
    """A `tqdm` bar; `initial` steps of an earlier process are excluded from the speed.

    Without a terminal it prints a line every 20 seconds, and none for shorter work.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        delay=0 if terminal else LOG_INTERVAL_SECONDS,
        mininterval=0.2 if terminal else LOG_INTERVAL_SECONDS,
        maxinterval=1.0 if terminal else LOG_INTERVAL_SECONDS,
        file=sys.stderr if terminal else _Lines(),
    )


class _Lines:
    """A stream that turns tqdm's carriage returns into lines, for log files."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
