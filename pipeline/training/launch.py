"""The processes of a data-parallel training, on one machine: they start and end together.

The process that starts them takes no part in the training, so it can end them at any time. Stop requests and errors are
exchanged as files in a temporary folder, so a killed process leaves no lock behind.
"""

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from pipeline.common.errors import PipelineError, from_os_error
from pipeline.common.files import atomic_write
from pipeline.common.hardware import resolve_device
from pipeline.common.redaction import RedactedText, open_redacted
from pipeline.training.ranks import Ranks

POLL_SECONDS = 0.5
TIMEOUT = timedelta(days=2)
"""Timeout of a rank that waits for the others, one of which may validate or save a checkpoint. A killed rank is noticed
by the parent process."""
STOP, STORE, ERROR = "stop", "store", "error-{}.pickle"
LAUNCHERS = ("ACCELERATE_", "FSDP_", "MV2_COMM_WORLD_", "OMPI_COMM_WORLD_", "PMI_")
"""Beginnings of the variables by which `accelerate launch`, mpirun and srun set up the processes that they start."""
TORCHRUN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE")
Work = Callable[..., None]


def launch(work: Work, arguments: tuple, count: int, device: str, is_stopped: Callable[[], bool]) -> None:
    """Run `work(ranks, is_stopped, *arguments)` in `count` processes of one group, and wait until all have returned.

    They never outlive this process. If one fails or is killed, the others are killed. On GPUs each process has one;
    `device` is as `train.device`. `work` is a function at the top level of a module, and `arguments` can be pickled.
    `is_stopped` is called regularly, and its result is passed on to the ranks; if it raises an exception, the processes
    end.

    Raises:
        PipelineError: raised by a rank, or an OSError with its file; or a rank was killed, or there are too few GPUs.
        RuntimeError: another error of a rank, with its traceback as a note.
    """
    _require_gpus(count, device)
    log = str(sys.stderr.name) if isinstance(sys.stderr, RedactedText) else None
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        options = (work, arguments, count, device, name, log, os.getpid())
        processes = start_processes(_run, options, count, join=False, start_method="spawn").processes
        try:
            while (alive := [p for p in processes if p.is_alive()]) and not any(p.exitcode for p in processes):
                wait([process.sentinel for process in alive], POLL_SECONDS)
                if is_stopped():
                    (folder / STOP).touch()
            # A killed rank makes the others fail, too.
            codes = [process.exitcode for process in processes]
        finally:
            _kill(processes)
        if any(codes):
            raise _failure(folder, codes)


def forget_launcher() -> None:
    """Remove the variables of another launcher, under which this process, or the one that started it, may run. The
    libraries would join its group of processes, or train in the precision that it sets; a trial has the ranks of
    `launch`, and its parameters alone."""
    for name in [name for name in os.environ if name in TORCHRUN or name.startswith(LAUNCHERS)]:
        del os.environ[name]


def _require_gpus(count: int, device: str) -> None:
    available = torch.cuda.device_count()
    if resolve_device(device).type == "cuda" and available < count:
        raise PipelineError(
            "train.ranks",
            f"is {count}, and this trial has {available} GPUs",
            f"set train.ranks to {available} at most, or in a sweep raise resources.gpus",
        )


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _failure(folder: Path, codes: list[int | None]) -> Exception:
    """The cause: a rank that was killed, or else the first error."""
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            return PipelineError(
                f"rank {number} of {len(codes)}",
                f"was killed by {signal.Signals(-code).name} (out of memory, or by hand)",
                "the same command resumes from the last checkpoint",
            )
    errors = sorted(folder.glob(ERROR.format("*")), key=lambda path: path.stat().st_mtime_ns)
    if not errors:
        return RuntimeError(f"a rank ended with exit codes {codes}")
    return pickle.loads(errors[0].read_bytes())


def end_with_parent(parent: int) -> None:
    """In a child process: be killed when its parent process ends, which may be killed itself, or has ended already."""
    # Written in C: type checkers do not see it.
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    if os.getppid() != parent:
        os._exit(1)


def _run(
    number: int, work: Work, arguments: tuple, count: int, device: str, folder: str, log: str | None, parent: int
) -> None:
    """The main function of a rank's process."""
    end_with_parent(parent)
    # The terminal sends Ctrl-C to all processes; the parent process decides when the ranks stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.ExitStack() as opened:
        if log:
            text = opened.enter_context(open_redacted(Path(log)))
            opened.enter_context(contextlib.redirect_stdout(text))
            opened.enter_context(contextlib.redirect_stderr(text))
        try:
            _own_gpu_first(number)
            _join(number, count, device, Path(folder))
            work(Ranks(number, count), (Path(folder) / STOP).exists, *arguments)
            # No rank exits while another still communicates with it.
            dist.barrier()
            dist.destroy_process_group()
        except Exception as error:
            with atomic_write(Path(folder) / ERROR.format(number)) as temporary:
                temporary.write_bytes(pickle.dumps(_plain(error)))
            # The others must not notice the failure before the file exists.
            os._exit(1)


def _plain(error: Exception) -> PipelineError | RuntimeError:
    """An error that can be pickled; one that is not for users has its traceback as a note."""
    known = from_os_error(error) if isinstance(error, OSError) else error
    if isinstance(known, PipelineError):
        return known
    plain = RuntimeError(traceback.format_exception_only(error)[-1].strip())
    plain.add_note(traceback.format_exc())
    return plain


def _own_gpu_first(number: int) -> None:
    """Make `cuda:0` this rank's GPU. The others stay visible, so that data is sent from GPU to GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number:] + gpus[:number])


def _join(number: int, count: int, device: str, folder: Path) -> None:
    # All ranks are on this machine; no other can reach them.
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})
    on_gpu = resolve_device(device).type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{folder / STORE}", rank=number, world_size=count, timeout=TIMEOUT
    )
