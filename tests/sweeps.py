"""A small sweep under a real Ray: its file, and access to its trials; planned trials without a sweep file; an engine
without Ray."""

import contextlib
import json
from pathlib import Path

import psutil
import yaml
from project import free_port, program
from trials import DATA, ROOT, make_trial

from pipeline.config import load_params
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.plan import PlannedTrial

SWEEP = {
    "name": "small",
    "set": {"train.checkpoint_every": 10, "train.batch_size": 6},
    "axes": {
        "task": [
            {"model.modality": "audio", "model.rates.audio": 4, "train.steps": 240},
            {"model.modality": "audiovisual", "train.steps": 10},
        ]
    },
    "seeds": [0],
    "resources": {"cpus": 1, "gpus": 0.5},
    "concurrency": 1,
}
"""Two trials, one after the other; the first is long enough to be interrupted."""


def planned_trial(runs: Path, name: str, *settings: str, rule: EarlyStoppingRule | None = None) -> PlannedTrial:
    """A trial that has not started, with the parameters of the repository and these settings."""
    trial = make_trial(runs, *settings)
    params = load_params(ROOT / "params.yaml", settings)
    return PlannedTrial(name, params, (), trial.identity, "e" * 64, trial, rule, llm=DATA["llm"])


class FakeEngine:
    """An engine without Ray: what is sent is in `placed`, and a subclass gives its events."""

    slots = 2

    def __call__(self, specification, address, stop):
        return self

    def __enter__(self):
        self.placed, self.notes, self.concurrency, self.ray = [], [], self.slots, self
        return self

    def __exit__(self, *exception):
        pass

    def send(self, job):
        self.placed.append(job)


AGENTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
"""Ports of a node. A node ends if its agents do not choose them within seconds, which they miss on a busy machine."""


@contextlib.contextmanager
def cluster_of_two():
    """A cluster whose head only drives, and its two other nodes of one CPU."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False} | free_ports()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [add_node(cluster) for _ in range(2)]
    finally:
        cluster.shutdown()


def add_node(cluster):
    """Adds a node of one CPU."""
    return cluster.add_node(num_cpus=1, **free_ports())


def lose_the_node_of(trial, cluster, nodes):
    """Removes the node, one of `nodes`, whose worker holds the lease of a trial's folder."""
    raylet = psutil.Process(json.loads((trial / "lease.json").read_text())["pid"]).parent().pid
    (node,) = [n for n in nodes if raylet in [p.process.pid for p in n.all_processes["raylet"]]]
    cluster.remove_node(node, allow_graceful=False)


def free_ports():
    return {name: free_port() for name in AGENTS}


def specify(folder, **changes):
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))


def make_inputs(folder, address=None):
    """Runs the stages of a sweep without its trials; returns what was printed."""
    return program(
        folder,
        "from argparse import Namespace; from pipeline.sweep import load_sweep, make_inputs; "
        "make_inputs(load_sweep('sweep.yaml'), "
        f"Namespace(file='sweep.yaml', params='params.yaml', address={address!r}, no_repro=False, sync=False))",
    )


def trials(folder):
    return sorted(path.parent for path in folder.glob("runs/*/identity.json"))


def results(folder):
    """The bytes of all result files, by trial."""
    names = ("metrics.json", "hypotheses.jsonl", "adapter/adapter_model.safetensors")
    return {trial.name: {name: (trial / name).read_bytes() for name in names} for trial in trials(folder)}


def table(folder):
    return (folder / "results/sweeps/small/table.txt").read_text()


def checkpoint_of(folder, step):
    """Whether an unfinished trial has a checkpoint of this step or a later one."""
    complete = folder.glob("runs/*/checkpoints/checkpoint-*/complete.json")
    return any(int(path.parent.name.rpartition("-")[2]) >= step for path in complete)


def newest_checkpoint(folder):
    """The step of the newest checkpoint of the unfinished trials, whole or not; 0 without any."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("runs/*/checkpoints/*-*")), default=0)


def worker(folder):
    """Process id of the holder of the lease."""
    (lease,) = folder.glob("runs/*/lease.json")
    return json.loads(lease.read_text())["pid"]


def temporary(driver):
    """Ray's temporary folder of a driver, once it exists."""
    for owner in Path("/tmp").glob("sweep-*/owner.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(owner.read_text())["pid"] == driver.pid:
                return owner.parent
    return None


def descendants(driver):
    """All processes below a driver."""
    return psutil.Process(driver.pid).children(recursive=True)


def descendant(driver, name):
    """The process of this name, such as `gcs_server`."""
    (process,) = [process for process in descendants(driver) if process.name() == name]
    return process


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def sessions(trial, purpose="train"):
    recorded = json.loads((trial / "provenance.json").read_text())["sessions"]
    return [session["outcome"] for session in recorded if session["purpose"] == purpose]
