"""The SLURM example on two nodes: network and process namespaces of this machine, in which `srun` is played.

Not of the suite, since few machines may make namespaces: `python -m pytest tests/slurm.py`, as root.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import environment
from sweeps import results, sessions, specify, trials

ROOT = Path(__file__).resolve().parents[1]
NODES = {"first": "10.87.5.1", "second": "10.87.5.2"}
SCONTROL = f"""#!/bin/sh
printf '%s\\n' {" ".join(NODES.values())}
"""
SRUN = """#!/usr/bin/env bash
# Each node has processes, addresses and temporary files of its own, and shares the project.
while [[ $1 == --* ]]; do shift; done
for node in NODES; do
  ip netns exec "PREFIX$node" unshare --pid --fork --kill-child --mount-proc bash -c \
    'mount --bind "$PWD" /mnt && mount -t tmpfs tmpfs /tmp && cd /mnt && PYTHONPATH=/mnt "$@"; exit $?' - "$@" \
    >"$PWD/$node.txt" 2>&1 &
done
# As with --wait: the rest is ended soon after the first.
wait -n
sleep 3
kill -KILL $(jobs -p)
wait
"""


@pytest.fixture
def nodes() -> Iterator[str]:
    """The beginning of the names of two network namespaces that reach each other. Skips where none can be made."""
    prefix = f"sweep{os.getpid()}"
    names = [f"{prefix}{node}" for node in NODES]
    first, second = names
    lines = [["netns", "add", name] for name in names]
    lines.append(["-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second])
    for name, address in zip(names, NODES.values(), strict=True):
        lines.append(["-n", name, "address", "add", f"{address}/24", "dev", "eth0"])
        lines += [["-n", name, "link", "set", device, "up"] for device in ("lo", "eth0")]
    try:
        for line in lines:
            made = subprocess.run(["ip", *line], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no network namespaces can be made here: {made.stderr.strip()}")
        yield prefix
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_the_example_runs_a_sweep_on_two_nodes(project, swept, nodes, tmp_path):
    specify(project, concurrency=2, resources={"cpus": 1, "gpus": 0})
    tools = tmp_path / "tools"
    tools.mkdir()
    srun = SRUN.replace("NODES", " ".join(NODES)).replace("PREFIX", nodes)
    for name, text in (("srun", srun), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    allocation = {"JOB_ID": "7", "JOB_NODELIST": "nodes", "JOB_NUM_NODES": "2", "CPUS_PER_TASK": "1"}
    variables = environment() | {f"SLURM_{name}": value for name, value in allocation.items()}
    variables["PATH"] = f"{tools}{os.pathsep}{variables['PATH']}"
    variables["SLURM_SUBMIT_DIR"] = str(project)
    done = subprocess.run(
        [ROOT / "experiments/slurm.sh", "sweep.yaml"], env=variables, capture_output=True, text=True, check=False
    )
    printed = {node: (project / f"{node}.txt").read_text() for node in NODES}
    assert done.returncode == 0, (done.stderr, printed)
    assert "2 trials" not in printed["second"]
    assert printed["first"].count("  done  wer/validation") == 2, printed
    assert results(project) == results(swept)
    assert [sessions(trial) for trial in trials(project)] == [["finished"]] * 2
    assert not list(project.glob(".ray-token-*"))
