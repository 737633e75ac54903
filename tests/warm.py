"""Python processes that start fast: forked from one that has made the slow imports, and otherwise like new ones.

Each has a pid, a folder, an environment, signals and an exit code of its own, and finds `pipeline` where a new one
would. Only the seed of its hashes is that of the process it comes from.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

SLOW = (
    "accelerate", "av", "jiwer", "mlflow.store.tracking.sqlalchemy_store", "numpy", "peft", "pydantic",
    "safetensors.torch", "scipy.signal", "transformers.trainer", "transformers.models.llama.modeling_llama",
    "transformers.models.whisper.modeling_whisper",
)  # fmt: skip
"""What commands import from other packages; nothing of ours."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""Read by MLflow when it is imported."""


class Process:
    """A Python process that runs `words` (`-m module …` or `-c program …`), with the interface of `Popen`.

    What it prints goes to files, so that nobody who outlives it keeps its end from being seen.
    """

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.args, self.returncode = words, None
        control, folder = _server()
        self._printed = [Path(tempfile.mkstemp(suffix=f".{name}", dir=folder)[1]) for name in ("out", "err")]
        self._status, theirs = socket.socketpair()
        outputs = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in self._printed]
        request = json.dumps({"words": words, "cwd": str(cwd), "env": env}).encode()
        control.sendall(len(request).to_bytes(8))
        socket.send_fds(control, [request[:1]], [*outputs, theirs.fileno()])
        control.sendall(request[1:])
        theirs.close()
        for output in outputs:
            os.close(output)
        self.pid = int(self._status.recv(16))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.recv(16))
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        printed, errors = (path.read_text() for path in self._printed)
        return printed, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(words: list[str], cwd: Path, env: dict[str, str], timeout: float | None = None) -> subprocess.CompletedProcess:
    """As `subprocess.run` with captured text."""
    process = Process(words, cwd, env)
    try:
        printed, errors = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


@functools.cache
def _server() -> tuple[socket.socket, str]:
    """The control end of a server of this process, and a folder for what is printed. Ends with this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    ours, theirs = socket.socketpair()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
    words = [sys.executable, __file__, str(theirs.fileno())]
    subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd="/", env=os.environ | QUIET, **quiet)
    theirs.close()
    return ours, folder.name


def _serve(control: socket.socket) -> list[str]:
    """Fork for each request, until the control end is closed. Returns in each forked process only: the words to run."""
    while length := control.recv(8, socket.MSG_WAITALL):
        request, fds, _, _ = socket.recv_fds(control, 1, 3)
        request += control.recv(int.from_bytes(length) - 1, socket.MSG_WAITALL)
        if not os.fork():
            control.close()
            return _attended(json.loads(request), *fds)
        for fd in fds:
            os.close(fd)
    os._exit(0)


def _attended(request: dict, output: int, errors: int, status: int) -> list[str]:
    """Fork again. The parent sends the child's pid and later its exit code; returns in the child, as requested."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.write(status, f"{pid:<16}".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, f"{code:<16}".encode())
        os._exit(0)
    os.close(status)
    for fd, place in ((output, 1), (errors, 2)):
        os.dup2(fd, place)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    found = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [os.getcwd(), *found]
    sys.modules["numpy"].random.seed()
    return request["words"]


if __name__ == "__main__":
    # Whatever stood there for the server's own sake is not on the way of a command.
    own = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [path for path in sys.path if path not in own]
    for name in SLOW:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    option, what, *rest = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.orig_argv = [sys.executable, option, what, *rest]
    if option == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        sys.modules["__main__"] = program = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), program.__dict__)
