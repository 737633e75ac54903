"""A sweep on a small project under a real Ray: after each interruption its results are the same."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import psutil
from project import command, environment, start, wait_until
from sweeps import (
    SWEEP,
    checkpoint_of,
    descendants,
    is_alive,
    make_inputs,
    newest_checkpoint,
    results,
    sessions,
    specify,
    table,
    temporary,
    trials,
    worker,
)

from pipeline.common.verified import read_sealed
from pipeline.sweeping.status import PLAN_FILE, TRIALS_FILE

HEAVY = ("ray", "torch", "mlflow", "transformers", "dvc")


def test_a_sweep_runs_its_trials_and_compares_them(swept):
    assert len(trials(swept)) == 2
    printed = (swept / "printed.txt").read_text()
    assert "requested 0.5 GPUs per trial, none available; running on CPU" in printed
    assert printed.count("  starts") == printed.count("  done") == 2
    assert table(swept) in printed
    for ending in ("md", "csv", "tex"):
        assert (swept / f"results/sweeps/small/table.{ending}").read_text()
    assert "Traceback" not in printed
    assert "warning" not in printed
    assert all("Warning" not in (trial / "log.txt").read_text() for trial in trials(swept))
    assert not any(path.name.startswith(".stop") for path in (swept / "runs").iterdir())


def test_repeated_it_prints_the_same_and_imports_nothing_heavy(swept):
    program = (
        "import sys; sys.argv = ['sweep', 'sweep.yaml']\n"
        "from pipeline.sweep import main; main()\n"
        f"print('loaded', *set({HEAVY}) & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=swept, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *shown, audio, both, charts, where, page, look, hear, last = ran.stdout.splitlines()
    assert audio.startswith("best by wer/validation: ASR 4")
    assert both.startswith("best by wer/validation: AVSR ")
    assert charts.startswith("charts in MLflow: make ui, then http://127.0.0.1:5000/#/experiments/")
    assert where.startswith("results: results/sweeps/small (table.txt, ")
    assert page.split() == ["next:", "make", "report", "SWEEP=sweep.yaml"]
    named = {trial.name for trial in trials(swept)}
    assert look.partition("--trial ")[2].split()[0] in named
    assert hear.partition("--trial ")[2] in named
    assert shown == table(swept).splitlines()
    assert last == "loaded"


def test_the_plan_shows_done_shared_and_remaining_trials(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "project", symlinks=True)
    specify(folder, axes=SWEEP["axes"] | {"model.rates.video": [5, 2]})
    planned = command(folder, "sweep", "sweep.yaml", "--plan")
    assert planned.returncode == 0, planned.stderr
    *lines, count, cost = planned.stdout.splitlines()
    assert [line.split("  ")[1:] for line in lines if "done" in line] != []
    audio, fast, slow = lines
    assert "done  shared by 2 combinations" in audio
    assert fast.endswith("done")
    assert slow.endswith("new")
    assert count == "4 combinations share trials: 3 trials, 2 done, 1 to do"
    assert "the rest takes about" in cost
    assert len(trials(folder)) == 2
    narrowed = command(folder, "sweep", "sweep.yaml", "--plan", "--only", "modality=audio")
    assert "2 combinations share trials: 1 trials, 1 done, 0 to do" in narrowed.stdout


def test_another_evaluation_trains_nothing_and_updates_the_table(swept, bare, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "project", symlinks=True)
    ran = command(folder, "sweep", "sweep.yaml", "--set", "evaluate.max_new_tokens=1")
    assert ran.returncode == 0, ran.stderr
    for trial in trials(folder):
        assert sessions(trial) == ["finished"]
        assert sessions(trial, "evaluate") == ["finished", "finished"]
    assert table(folder) != table(swept)
    assert table(folder) in ran.stdout


def status(folder):
    """The lines of `--status`."""
    shown = command(folder, "sweep", "sweep.yaml", "--status")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.splitlines()


def test_the_status_of_an_ended_sweep_needs_no_inputs(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "project", symlinks=True, ignore=shutil.ignore_patterns("data"))
    first, second, counts, who = status(folder)
    assert re.fullmatch(r"ASR 4 .*  done  wer/validation \d\.\d{3}", first)
    assert "  done  wer/validation " in second
    assert counts == "2 trials: 2 done"
    assert " ended " in who
    specify(folder, name="other")
    unknown = command(folder, "sweep", "sweep.yaml", "--status")
    assert unknown.returncode == 1
    assert "this sweep has run no trial yet; start it, or see --plan" in unknown.stderr


def test_a_sweep_with_nothing_left_to_do_is_recorded(swept, bare, tmp_path):
    """Another sweep, or one with another `--set`, may have been recorded in its folder."""
    folder = shutil.copytree(swept, tmp_path / "project", symlinks=True)
    for name in (PLAN_FILE, TRIALS_FILE):
        (folder / "results/sweeps/small" / name).unlink()
    again = command(folder, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert status(folder)[2] == "2 trials: 2 done"


def test_killed_worker_killed_driver_and_damaged_files_lose_a_checkpoint_interval_at_most(project, swept, bare):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    first, second, counts, who = status(project)
    assert re.fullmatch(r"ASR 4 .*  step \d+/240  loss .* utterances/s  on \S+, process \d+", first)
    assert second.endswith("  waiting")
    assert counts == "2 trials: 1 running, 1 waiting"
    assert who.startswith(f"driver: process {driver.pid} on ")
    assert " runs since " in who
    os.kill(worker(project), signal.SIGKILL)
    (trial,) = trials(project)
    wait_until(lambda: len(sessions(trial)) == 2, driver, "another worker")
    wait_until(lambda: checkpoint_of(project, 20), driver, "a checkpoint after the worker was killed")
    files, processes, orphan = temporary(driver), descendants(driver), worker(project)
    assert files.exists()
    driver.kill()
    printed, _ = driver.communicate()
    assert "is retried after: its worker was killed" in printed
    wait_until(lambda: not is_alive(orphan), None, "the worker ends with its driver", 120)
    wait_until(lambda: not any(is_alive(one.pid) for one in processes), None, "all of Ray ends with its driver", 120)
    wait_until(lambda: not files.exists(), None, "nothing is left of its files", 30)
    first, _, counts, who = status(project)
    assert re.search(r"  waiting; training, step \d+$", first)
    assert counts == "2 trials: 2 waiting"
    assert " was killed; it started " in who
    assert max(json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()) >= 20

    newest = max((trial / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    weights = newest / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert "resumes" in again.stdout
    assert "the one before it, if any, is used" in (trial / "log.txt").read_text()
    assert sessions(trial) == ["running", "running", "finished"]
    assert results(project) == results(swept)
    assert table(project) == table(swept)

    cut = trial / "metrics.json"
    cut.write_text(cut.read_text()[:200])
    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert "invalid JSON" in again.stderr
    assert sessions(trial)[-1] == "finished"
    assert sessions(trial, "evaluate") == ["finished", "finished"]
    assert results(project) == results(swept)
    assert table(project) == table(swept)


def test_interrupted_it_ends_after_a_checkpoint_and_two_drivers_finish_it_once(project, swept, bare):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    driver.send_signal(signal.SIGINT)
    printed, errors = driver.communicate(timeout=240)
    assert driver.returncode == 130, errors
    assert "stopping: each trial ends after a checkpoint" in printed
    assert "continues from there" in errors
    (trial,) = trials(project)
    step = newest_checkpoint(project)
    assert step == json.loads((trial / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert sessions(trial) == ["interrupted"]
    assert f"waits after step {step}" in printed
    assert "1 trial has not started" in printed
    assert printed.count("  starts") == 1

    drivers = [start(project, "sweep", "sweep.yaml") for _ in range(2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
    for trial in trials(project):
        assert sessions(trial).count("finished") == 1
        assert sessions(trial, "evaluate") == ["finished"]
    assert results(project) == results(swept)
    assert table(project) == table(swept)


def test_one_diverges_another_is_interrupted_twice_and_ray_keeps_to_itself(project, bare, tmp_path):
    """The temporary folder is that of a batch job, whose path is too long for sockets; no file is left there or in the
    home folder."""
    home, job = tmp_path / "home", tmp_path / "slurm_jobdir/1355700/tmp.node0016"
    for folder in (home, job):
        folder.mkdir(parents=True)
    specify(
        project,
        axes={
            "model.modality": ["audio"],
            "task": [
                {"train.learning_rate": 1e30, "train.gradient_clip": 1e30},
                {"train.learning_rate": 1e-3, "train.steps": 5000},
            ],
        },
        retries=0,
    )
    driver = start(project, "sweep", "sweep.yaml", env=environment() | {"HOME": str(home), "TMPDIR": str(job)})
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint of the second trial")
    require_only_this_machine(driver)
    holder = worker(project)
    driver.send_signal(signal.SIGINT)
    log = project / "results/sweeps/small/log.txt"
    wait_until(lambda: "stopping" in log.read_text(), driver, "the first interrupt is understood")
    driver.send_signal(signal.SIGINT)
    printed, errors = driver.communicate(timeout=240)
    assert driver.returncode == 130, errors
    assert not (home / ".ray").exists()
    assert list(job.iterdir()) == []
    assert "failed: step" in printed
    (mark,) = project.glob("runs/*/failed.json")
    failure = json.loads(mark.read_text())
    assert "the loss is nan; lower train.learning_rate" in failure["reason"]
    assert any("in settle" in line for line in failure["traceback"])
    # Ended by the first or the second interrupt.
    assert not is_alive(holder)

    # Again, with fewer steps: one trial is done, the other fails.
    specify(project, axes={"model.modality": ["audio"], "train.learning_rate": [1e30, 1e-3]}, retries=1)
    again = command(project, "sweep", "sweep.yaml", "--set", "train.gradient_clip=1e30", "--set", "train.steps=8")
    assert again.returncode == 1
    assert "is retried after: step" in again.stdout
    assert "1 of 2 trials are not done" in again.stderr
    assert "failed" in table(project)


def require_only_this_machine(driver):
    """Ray listens on the loopback device only, and its control store requires the token."""
    pids = {process.pid for process in descendants(driver)}
    heard = [socket for socket in psutil.net_connections("inet") if socket.pid in pids and socket.status == "LISTEN"]
    assert len(heard) > 3
    assert {socket.laddr.ip.removeprefix("::ffff:") for socket in heard} <= {"127.0.0.1", "::1"}
    (port,) = [s.laddr.port for s in heard if psutil.Process(s.pid).name() == "gcs_server"]
    program = f"from ray._raylet import GcsClient; GcsClient(address='127.0.0.1:{port}')"
    stranger = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "guessed"}
    refused = subprocess.run([sys.executable, "-c", program], env=stranger, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stderr


def test_missing_features_are_an_error_if_stages_may_not_run(project):
    shutil.rmtree(project / "data/features")
    refused = command(project, "sweep", "sweep.yaml", "--no-repro")
    assert refused.returncode == 1
    assert "are missing or stale: features@audio" in refused.stderr
    assert "start the sweep without --no-repro or --sync" in refused.stderr
    planned = command(project, "sweep", "sweep.yaml", "--plan")
    assert "stages that run first: features@audio features@video" in planned.stdout


def test_a_wrong_lora_target_is_an_error_before_anything_runs(project):
    targets = [{"model.lora.targets": ["q_proj", "v_proj"]}, {"model.lora.targets": ["q_proj", "c_attn"]}]
    specify(project, axes={"targets": targets})
    for words in (["--plan"], []):
        refused = command(project, "sweep", "sweep.yaml", *words)
        assert refused.returncode == 1
        assert (
            "model.lora.targets: the LLM in data/weights/llm has no c_attn, which trials such as AVSR" in refused.stderr
        )
        assert "down_proj" in refused.stderr
        assert "  starts" not in refused.stdout
    assert not (project / "runs").exists()


def test_a_sync_runs_no_stage(project):
    shutil.rmtree(project / "data/corpus")
    refused = command(project, "sweep", "sweep.yaml", "--sync")
    assert refused.returncode == 1
    assert "are missing or stale: prepare" in refused.stderr
    assert not (project / "data/corpus").exists()


def test_no_corpus_replaces_another(project):
    """Neither that of params.yaml nor that of another sweep, on which trials were trained."""
    corpus = project / "data/corpus/manifest.jsonl"
    before = corpus.read_bytes()
    seed = {"corpus.seed": 7}
    specify(project, set=seed)
    planned = command(project, "sweep", "sweep.yaml", "--plan")
    assert planned.returncode == 1
    assert (
        "two corpora would be written to data/corpus, one of them that of params.yaml; give each its own"
        in planned.stderr
    )
    mine = {"corpus.out": "data/mine", "corpus.video": False, "train.steps": 2}
    axes = {"model.modality": ["audio"]}
    specify(project, set=seed | mine, axes=axes)
    planned = command(project, "sweep", "sweep.yaml", "--plan")
    assert "stages that run first: features@audio prepare\nASR 16 weight 0 seed 0\n" in planned.stdout
    assert not (project / "data/mine").exists()
    make_inputs(project)
    specify(project, set={"corpus.seed": 8} | mine, axes=axes)
    refused = command(project, "sweep", "sweep.yaml")
    assert refused.returncode == 1
    assert "data/mine: was prepared with corpus.seed=7, not 8; set another corpus.out" in refused.stderr
    assert corpus.read_bytes() == before


def test_inputs_of_an_axis_are_prepared_and_used(project):
    specify(project, axes={"features.video.coefficients": [6], "model.modality": ["video"]})
    make_inputs(project)
    assert "1 trials, 0 done, 1 to do" in command(project, "sweep", "sweep.yaml", "--plan").stdout
    settings = ("features.video.coefficients=6", "model.modality=video", "train.steps=2")
    trained = command(project, "train", *[word for setting in settings for word in ("--set", setting)])
    assert trained.returncode == 0, trained.stderr


def test_trials_that_are_stopped_early_stay_stopped(project, bare):
    halving = {"kind": "asha", "grace": 4, "factor": 2}
    axes = {"model.modality": ["audio"], "train.learning_rate": [3e-3, 1e-9]}
    specify(project, set={"train.steps": 16}, axes=axes, seeds=[0, 1], scheduler=halving)
    first = command(project, "sweep", "sweep.yaml", "--only", "learning_rate=3e-3")
    assert first.returncode == 0, first.stderr
    assert "seed 0 learning_rate 0.003  waits for the other seeds at step 4" in first.stdout
    # Another driver, started after the first trials were measured.
    whole = command(project, "sweep", "sweep.yaml")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("stopped early after step 4") == 2
    assert whole.stdout.count("stopped early: ") == 2
    marks = [read_sealed(path, "")[0] for path in project.glob("runs/*/stopped.json")]
    assert marks == [{"rule": halving, "step": 4}] * 2
    planned = command(project, "sweep", "sweep.yaml", "--plan")
    assert "4 trials, 2 done, 2 stopped early, 0 to do" in planned.stdout
    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0
    assert "  starts" not in again.stdout
    assert "resumes" not in again.stdout

    # Without the rule they continue from their checkpoints.
    specify(project, set={"train.steps": 16}, axes=axes, seeds=[0, 1])
    ended = command(project, "sweep", "sweep.yaml")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("resumes") == 2
    assert [sessions(trial) for trial in trials(project)].count(["finished", "finished"]) >= 2


def test_a_scheduler_requires_comparable_trials(project):
    specify(project, scheduler={"kind": "asha", "grace": 4})
    refused = command(project, "sweep", "sweep.yaml", "--plan")
    assert "compares trials of [10, 240] steps" in refused.stderr
    specify(project, axes={"train.seed": [1]}, seeds=None, scheduler={"kind": "asha", "grace": 3})
    refused = command(project, "sweep", "sweep.yaml", "--plan")
    assert "compares after 3 steps, and train.validate_every is 4" in refused.stderr
