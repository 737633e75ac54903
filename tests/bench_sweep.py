"""`make bench`: the overhead of a sweep, compared with that of the plain tools in the same run."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from project import SMALL, environment, make_project
from trials import write_manifest

from pipeline.common.files import file_sha256, read_json, write_json
from pipeline.config import load_params
from pipeline.corpora.manifest import read_manifest
from pipeline.encoders.resumable import group_writer
from pipeline.encoders.store import feature_groups, read_index
from pipeline.sweeping.engine import Ended, Failed, Outcome, start_engine
from pipeline.sweeping.plan import PlannedTrial, trials_of_seeded_points
from pipeline.sweeping.specification import Specification
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.tracking.writer import write_trials
from pipeline.trials.folder import Trial

TESTS = Path(__file__).resolve().parent
HEAVY = ("ray", "torch", "mlflow")
SECTIONS = ("done", "overhead", "database", "metrics", "large")
LARGE = 150_000
"""Training utterances of LRS3 with its pretraining clips, cut into pieces."""


def nothing(job: dict[str, Any]) -> Outcome:
    """A trial that does nothing."""
    return Outcome.DONE


def interval(specification: Specification, work: str, trials: list[PlannedTrial]) -> float:
    """Seconds from one trial's end to the next, one at a time: what each further trial takes."""
    stop = Path(".stop").absolute()
    jobs = [
        {
            "work": work,
            "params": planned.params.model_dump_json(),
            "identity": planned.identity,
            "folder": str(planned.trial.folder),
            "stop": str(stop),
            "root": os.getcwd(),
            "until": None,
        }
        for planned in trials
    ]
    ends: list[float] = []
    with start_engine(specification, None, stop) as engine:
        engine.ray.send(jobs[0])
        for event in engine.ray.events():
            assert not isinstance(event, Failed), event
            if isinstance(event, Ended):
                ends.append(time.perf_counter())
                if len(ends) == len(jobs):
                    break
                engine.ray.send(jobs[len(ends)])
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def specify(name: str, seeds: int, **more: Any) -> list[PlannedTrial]:
    """Write a sweep file of trials that differ in their seed."""
    common = {"train.steps": 1, "model.modality": "video", "train.checkpoint_every": 1}
    text = {"name": name, "set": common, "seeds": list(range(seeds)), **more}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(text))
    return trials_of_seeded_points(load_sweep(f"{name}.yaml"))


def sweep(name: str) -> tuple[float, list[str]]:
    """Seconds of `python -m pipeline.sweep` in another process, and the heavy packages that it imported."""
    program = (
        f"import sys; sys.argv = ['sweep', '{name}.yaml']\nfrom pipeline.sweep import main; main()\n"
        f"print(*set({HEAVY}) & set(sys.modules))"
    )
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True)
    return time.perf_counter() - began, ran.stdout.splitlines()[-1].split()


def done() -> None:
    """A sweep with all trials done."""
    for name, count, target in (("six", 6, 2), ("thousand", 1000, 4)):
        trials = specify(name, count)
        for planned in trials:
            trial = Trial.create(planned.params.train.runs, planned.params, planned_data(planned))
            trial.finish(planned.evaluation, {"wer/validation": 0.5, "wer/test": 0.5})
        first, _ = sweep(name)
        again = [sweep(name) for _ in range(3)]
        loaded = sorted({package for _, packages in again for package in packages})
        times = " ".join(f"{seconds:.2f}" for seconds, _ in again)
        print(f"{count} trials, all done: {times} s; aim: {target} s; loaded: {loaded}")
        print(f"the same the first time, with its table and all trials written to MLflow: {first:.0f} s")
    Path("mlflow.db").unlink()
    # Trials of other sections would be done already.
    shutil.rmtree("runs")


def planned_data(planned: PlannedTrial) -> dict[str, str]:
    """The digests of a planned trial's inputs."""
    from pipeline.training.inputs import TrialInputs

    corpus = planned.params.corpus.out
    if corpus not in _DATA:
        _DATA[corpus] = TrialInputs(planned.params).training.digests
    return _DATA[corpus]


_DATA: dict[str, dict[str, str]] = {}
"""By the folder of the corpus."""


def seconds(action: Callable[[], object]) -> float:
    """The duration of an action."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def overhead() -> None:
    """The overhead of a trial: from the end of one to the end of the next."""
    import ray
    import torch
    from ray import tune

    many = 20
    planned = specify("overhead", many, resources={"cpus": 1}, concurrency=1, retries=0)
    specification = load_sweep("overhead.yaml").specification

    class Ends(tune.Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    def plain(count: int) -> float:
        ends = Ends()
        trainable = tune.with_resources(lambda config: {"outcome": "done"}, {"cpu": 1})
        space, config = {"seed": tune.grid_search(list(range(count)))}, tune.TuneConfig(max_concurrent_trials=1)
        storage = tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0, callbacks=[ends])
        tune.Tuner(trainable, param_space=space, tune_config=config, run_config=storage).fit()
        return (ends.ends[-1] - ends.ends[0]) / (count - 1)

    empty = [interval(specification, "bench_sweep:nothing", planned) for _ in range(2)]
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    default = [plain(6) for _ in range(2)]
    ray.shutdown()
    print(f"a trial that does nothing: {empty[0]:.2f} {empty[1]:.2f} s", end="; ")
    times = sum(default) / sum(empty)
    print(f"Tune's default: {default[0]:.2f} {default[1]:.2f} s, {times:.0f} times; aim: 0.5 s, 4 times")

    def loop(trials: list[PlannedTrial]) -> None:
        from pipeline.evaluate import evaluate
        from pipeline.train import train

        for one in trials:
            train(one.params)
            evaluate(one.params)

    # As in a worker that has one core.
    torch.set_num_threads(1)
    with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
        loop(planned[:1])
        bare = seconds(lambda: loop(planned[1:10])) / 9
    each = interval(specification, "pipeline.sweep:run_trial", planned[10:])
    print(f"a real trial of one step: {each:.2f} s, in a bare loop {bare:.2f} s: {each - bare:+.2f} s; aim: 0.5 s")


def write_plainly(uri: str, number: int, answers: Any) -> None:
    """One of several processes that log to MLflow directly, as training scripts do."""
    import mlflow

    longest = 0.0
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("plain")
        with mlflow.start_run():
            for step in range(20):
                longest = max(longest, seconds(lambda step=step: mlflow.log_metric("loss", 1.0, step=step)))
        answers.put((number, None, longest))
    except Exception as error:
        answers.put((number, type(error).__name__, longest))


def database() -> None:
    """Eight trials at once, without a database at first."""
    specify("eight", 8, resources={"cpus": 0.25}, retries=0)
    took, _ = sweep("eight")
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("eight").experiment_id], "tags.identity != ''")
    print(f"eight trials at once on a fresh database: {len(runs)} in MLflow, none failed, {took:.0f} s in all")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    uri = f"sqlite:///{Path('plain.db').absolute()}"
    processes = [context.Process(target=write_plainly, args=(uri, number, answers)) for number in range(8)]
    with open(os.devnull, "w") as silence:
        before = os.dup(2)
        os.dup2(silence.fileno(), 2)
        for process in processes:
            process.start()
        results = [answers.get() for _ in processes]
        os.dup2(before, 2)
    failed = sum(error is not None for _, error, _ in results)
    print(f"  eight processes that log directly: {failed} fail, longest wait {max(w for *_, w in results):.1f} s")


def metrics() -> None:
    """Ten thousand metrics."""
    import mlflow

    trial = specify("metrics", 1)[0]
    created = Trial.create("runs-metrics", trial.params, planned_data(trial))
    for step in range(1000):
        created.metrics_log.append(step, {f"metric/{number}": step + number / 10 for number in range(10)})
    batched, direct = [], []
    for turn in range(2):
        uri = f"sqlite:///{Path(f'metrics{turn}.db').absolute()}"
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("plain")
        batched.append(10_000 / seconds(lambda uri=uri: write_trials([created.folder], uri, "sweep", "sweep")))
        with mlflow.start_run():
            count = 300
            direct.append(count / seconds(lambda: [mlflow.log_metric("a", 1.0, step=step) for step in range(300)]))
    pairs = ", ".join(f"{a:,.0f} against {b:.0f}" for a, b in zip(batched, direct, strict=True))
    print(f"metrics a second: {pairs}: {sum(batched) / sum(direct):.0f} times; aim: 40 times")


def large() -> None:
    """A corpus of 150,000 training utterances: what a plan, a sweep with all trials done and a trial's start take."""
    begun = {"small": train_seconds("data/corpus")}
    make_large(Path("data/corpus"), Path("data/large"))
    begun["large"] = train_seconds("data/large")
    specify("large", 6, set={"train.steps": 1, "model.modality": "video", "corpus.out": "data/large"})
    plan = [sys.executable, "-m", "pipeline.sweep", "large.yaml", "--plan"]
    planned = [seconds(lambda: subprocess.run(plan, env=environment(), check=True, capture_output=True)) for _ in "12"]
    for trial in trials_of_seeded_points(load_sweep("large.yaml")):
        if not trial.is_over:
            created = Trial.create(trial.params.train.runs, trial.params, planned_data(trial))
            created.finish(trial.evaluation, {"wer/validation": 0.5, "wer/test": 0.5})
    over = [sweep("large")[0] for _ in range(2)][1]
    print(
        f"{LARGE:,} utterances: plan {planned[0]:.1f} s, again {planned[1]:.1f} s, "
        f"all trials done {over:.1f} s; aim: 5 s"
    )
    print(f"  training of one step {begun['large']:.1f} s, of 6 utterances {begun['small']:.1f} s; aim: 15 s")


def train_seconds(corpus: str) -> float:
    """Seconds of `python -m pipeline.train` with one step, lips only."""
    words = [f"corpus.out={corpus}", "train.steps=1", "model.modality=video"]
    line = [sys.executable, "-m", "pipeline.train", *(word for setting in words for word in ("--set", setting))]
    return seconds(lambda: subprocess.run(line, env=environment(), check=True, stdout=subprocess.DEVNULL))


def make_large(source: Path, folder: Path) -> None:
    """A corpus and its features like those of `source`, with its training utterances again and again."""
    known = read_manifest(source)
    train = [u for u in known if u.split == "train"]
    more = [
        replace(train[n % len(train)], id=f"train/s{n % 4000}/{n}", snr=None, video_sha256=f"{n:064x}")
        for n in range(LARGE)
    ]
    write_manifest(folder, [*more, *(u for u in known if u.split != "train")])
    settings = read_json(source / "prepare.json", "")
    settings["corpus"]["out"] = str(folder)
    write_json(folder / "prepare.json", settings | {"manifest": file_sha256(folder / "manifest.jsonl")})
    params = load_params("params.yaml", [f"corpus.out={folder}"])
    index = read_index(feature_groups(params, "video", known)[0])
    vectors = np.random.default_rng(0).standard_normal((60, index["dimension"]))
    for group in feature_groups(params, "video", read_manifest(folder)):
        if not group.folder.exists():
            with group_writer(group, index["dimension"]) as writer:
                writer.append(dict.fromkeys(group.media, vectors))
                writer.finish(index["frame_rate"])


def main() -> None:
    """All sections, or those that are named."""
    chosen = sys.argv[1:] or SECTIONS
    weights = TESTS.parent / "data" / "weights"
    if not (weights / "whisper-tiny.en").exists():
        from pipeline.weights import prepare_weights

        prepare_weights(load_params(TESTS.parent / "params.yaml", [f"weights.out={weights}"]))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(make_project(Path(folder) / "project", weights))
        for stage in (["weights"], ["prepare"], ["features", "audio"], ["features", "video"]):
            words = [sys.executable, "-m", f"pipeline.{stage[0]}", *stage[1:]]
            subprocess.run(words, env=environment(), check=True, capture_output=True)
        print(f"{os.cpu_count()} cores; small trials of {SMALL['corpus.synthetic']['utterances']} utterances")
        for name in chosen:
            globals()[name]()
        os.chdir("/")


if __name__ == "__main__":
    main()
