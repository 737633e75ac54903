"""Train audio-visual LLMs for speech recognition, sweep them, and measure their attention sinks."""

import os
import signal
import sys

# OpenMP reads it when torch is loaded. Threads that wait then sleep, where by default they spin: beside other work a
# training step took eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# `python -m pipeline.…` is importing: nothing has started, so Ctrl-C just ends it. `run_command` takes it from there.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
