"""Jobs of the tests that new processes import, which must be quick."""

import os
import signal


def double_or_die(number: int) -> int:
    """Twice the number; 5 kills the process."""
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number
