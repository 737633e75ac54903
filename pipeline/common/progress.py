"""Progress bars with an ETA, in a terminal and in a plain log."""

import sys
from typing import Any

LOG_INTERVAL_SECONDS = 20.0


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> Any:
    """A `tqdm` bar. Where there is no terminal it prints a line now and then instead of redrawing one, and of what is
    done sooner none at all.

    Args:
        total: how many steps there are in all.
        description: what is being done, first on the line.
        unit: what one step is.
        initial: how many were done before (a resumed run), left out of the speed.
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
    """A stream that turns tqdm's carriage returns into lines, so that a log file stays readable."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
