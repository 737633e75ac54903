"""Loader processes: they read, augment, prepare and collate batches beside the device."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.training.launch import end_with_parent


def loader_options(count: int) -> dict[str, Any]:
    """Arguments of a `DataLoader` with this number of loader processes; 0 loads in the process itself.

    They live as long as one iteration over the loader, which is an entire training or one validation, and end with this
    process. Batches and their order do not depend on the number.
    """
    if not count:
        return {}
    # A fork shares the list of utterances, and the noise, with this process.
    return {
        "num_workers": count,
        "multiprocessing_context": "fork",
        "worker_init_fn": partial(_begin, os.getpid()),
    }


@contextmanager
def loader_errors(count: int) -> Iterator[None]:
    """Raise a PipelineError if one of this number of loader processes is killed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A batch that a loader has queued is fetched from its process; if that was killed, the connection is broken.
        if not count or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")):
            raise
        _stop_raising()
        raise PipelineError(
            "a loader process",
            "was killed (out of memory, or of space in /dev/shm)",
            "lower train.loaders; the same command resumes from the last checkpoint",
        ) from error


def _stop_raising() -> None:
    """Remove torch's handler of the end of a loader, which raises at any moment, also while its error is handled."""
    if threading.current_thread() is threading.main_thread():
        while signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
            with suppress(RuntimeError):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _begin(parent: int, number: int) -> None:
    """In a new loader process: leave stopping to the process that trains, and never outlive it."""
    # A terminal sends Ctrl-C, and SLURM SIGTERM, to all processes, and the last step still needs its batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_terminated_by, args=(parent,), daemon=True).start()
    end_with_parent(parent)


def _end_when_terminated_by(parent: int) -> None:
    """End at a SIGTERM of the parent process, which it sends to loaders that are still at work when it exits."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
