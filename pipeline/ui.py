"""MLflow's pages of the tracked trials, on 127.0.0.1, and the address of each sweep's charts.

If MLFLOW_TRACKING_URI is a server, that server has the pages, and only the addresses are printed. No key of params.yaml
is used, so the command has no --params.
"""

import argparse
import os
import socket
import sys

from pipeline.common.command import HelpFormatter, run_command
from pipeline.common.errors import PipelineError
from pipeline.tracking.server import UI_ENVIRONMENT, is_server, tracking_uri
from pipeline.tracking.views import PORT, all_charts

HOST = "127.0.0.1"


def show(port: int) -> None:
    """Print the addresses, and become MLflow's server unless there is one. PipelineError if the port is taken."""
    uri = tracking_uri()
    if not is_server(uri):
        _require_free(port)
    for sweep, address in all_charts(uri, port).items():
        print(f"{sweep}: {address}")
    if is_server(uri):
        print(f"MLflow runs at {uri}")
        return
    print(f"MLflow starts at http://{HOST}:{port}; Ctrl-C ends it", flush=True)
    words = ["-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", uri]
    words += ["--default-artifact-root", "mlartifacts"]
    os.execve(sys.executable, [sys.executable, *words], UI_ENVIRONMENT | os.environ)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = "no such port" if isinstance(error, OverflowError) else error.strerror or str(error)
            raise PipelineError(f"{HOST}:{port}", reason, "choose another port: make ui PORT=5001") from None


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    options.add_argument("--port", type=int, default=PORT, help="of the pages")
    show(options.parse_args().port)


if __name__ == "__main__":
    run_command(main)
