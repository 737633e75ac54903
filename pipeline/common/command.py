"""Options and error handling of all commands."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.dvc_workspace import share_with_project
from pipeline.common.errors import PipelineError, from_os_error
from pipeline.common.version_control import require_clean
from pipeline.config import Params, load_params

INTERRUPTED = 130
ADDRESS = "PIPELINE_ADDRESS"
"""The variable with the default of `--address`: command lines of DVC's stages do not depend on a cluster."""


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of an option, unless it is none, false, zero or empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_shown = action.default and action.default is not argparse.SUPPRESS
        return f"{action.help} (default: %(default)s)" if is_shown else action.help


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options of every command."""
    options = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    options.add_argument("--params", default="params.yaml", metavar="FILE", help="parameter file")
    options.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override a parameter (may be repeated)"
    )
    options.add_argument("--require-clean", action=_RequireClean, help="refuse to run code that is not committed")
    return options


def add_address(options: argparse.ArgumentParser) -> None:
    """Add the option `--address`."""
    options.add_argument(
        "--address",
        default=os.environ.get(ADDRESS) or None,
        help=f"address of a Ray cluster, or set {ADDRESS}; without it all work is done on this machine",
    )


def from_zero(text: str) -> int:
    """An argument that is an integer from 0 on, as the `type` of an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 on")
    return int(text)


class _RequireClean(argparse.Action):
    """Checks as soon as the option is parsed, so that commands need no code for it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, default=False, **settings)

    def __call__(self, parser: object, namespace: argparse.Namespace, *_: object) -> None:
        try:
            require_clean()
        except PipelineError as error:
            _exit(f"error: {error}", 1)
        setattr(namespace, self.dest, True)


def load_params_for_command(arguments: argparse.Namespace) -> Params:
    """Load the parameters, and link a temporary workspace of DVC to its project's features and trials."""
    params = load_params(arguments.params, arguments.set)
    share_with_project((params.features.out, params.train.runs), Path.cwd())
    return params


def require_only_runs_set(arguments: argparse.Namespace) -> None:
    """For a command that uses no parameter but `train.runs`. PipelineError if `--set` names another one."""
    for setting in arguments.set:
        if setting.partition("=")[0] != "train.runs":
            raise PipelineError(f"--set {setting}", "has no effect on this command", "set train.runs, or nothing")


def run_command(body: Callable[[], object]) -> None:
    """Run a command's body and exit with its code.

    A `PipelineError` is one line and code 1, as is an `OSError` that names its file or a full disk; `Ctrl-C` and
    SIGTERM are one line and 130. Anything else is a bug, and a traceback.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    quieten_libraries()
    try:
        body()
    except PipelineError as error:
        _exit(f"error: {error}", 1)
    except KeyboardInterrupt:
        _exit("interrupted: finished work is kept; the same command continues from there", INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has closed it (`| head`); Python's own last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        known = from_os_error(error)
        if known is None:
            raise
        _exit(f"error: {known}", 1)


def quieten_libraries() -> None:
    """Hide Hugging Face's progress bars, and warnings that libraries address to developers."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _exit(line: str, code: int) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)
