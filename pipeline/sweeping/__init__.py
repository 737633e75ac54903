"""Sweeps: `sweep_file.py` makes points of a file, `plan.py` their trials, and `driver.py` has them run, retries those
that fail, and asks `search` for more."""
