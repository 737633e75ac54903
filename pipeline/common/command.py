"""What all commands share: `--params`, `--set`, `--require-clean`, errors as one line, `Ctrl-C` as a pause."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.dvc_workspace import share_with_project
from pipeline.common.errors import PipelineError
from pipeline.common.os_errors import explained
from pipeline.common.version_control import require_clean
from pipeline.config import Params, load_params

INTERRUPTED = 130


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options that every command has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--params", default="params.yaml", metavar="FILE", help="parameters of the run")
    made.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override one parameter (may be repeated)"
    )
    made.add_argument("--require-clean", action=_RequireClean, help="refuse to run code that is not committed")
    return made


class _RequireClean(argparse.Action):
    """Looks as soon as the option is read, so that no command has to think of it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, default=False, **settings)

    def __call__(self, parser: object, namespace: argparse.Namespace, *_: object) -> None:
        try:
            require_clean()
        except PipelineError as error:
            _leave(f"error: {error}", 1)
        setattr(namespace, self.dest, True)


def params_of(arguments: argparse.Namespace) -> Params:
    """The parameters that the arguments name. A temporary workspace of DVC gets its project's features and trials."""
    params = load_params(arguments.params, arguments.set)
    share_with_project((params.features.out, params.train.runs), Path.cwd())
    return params


def run_command(body: Callable[[], None]) -> None:
    """Run a command's body and leave with its exit code.

    A `PipelineError` is one line and 1, as is an `OSError` that names its file or a full disk; `Ctrl-C` and SIGTERM are
    one line and 130. Anything else is a bug of ours, and a traceback.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    quieten_libraries()
    try:
        body()
    except PipelineError as error:
        _leave(f"error: {error}", 1)
    except KeyboardInterrupt:
        _leave("interrupted: what was finished is kept; the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        # Who reads our output has read enough (`| head`). Python's own last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        told = explained(error)
        if told is None:
            raise
        _leave(f"error: {told}", 1)


def quieten_libraries() -> None:
    """No bars of Hugging Face's beside our own, and none of the advice that libraries give their developers, such as
    that of transformers on a name by which peft calls it. What is wrong is still said."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _leave(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)
