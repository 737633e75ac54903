"""Identity, trial folder and metrics log."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import auto_precision, is_bfloat16_faster, resolved_here
from pipeline.config import Params, load_params
from pipeline.trials import identity
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import evaluation_digest, identity_parts, training_identity
from pipeline.trials.metrics_log import MetricsLog
from pipeline.trials.results import ScoredHypothesis

ROOT = Path(__file__).resolve().parents[1]
DATA = {"llm": "a" * 64, "utterances/train": "b" * 64}


def params(*overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", overrides)


def identity_of(*overrides: str) -> str:
    return training_identity(params(*overrides), DATA)


@pytest.fixture(autouse=True)
def _code_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "code_digest", lambda *modules, **without: "c" * 64)


# Identity.


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.runs=elsewhere"],
        ["train.device=cpu", "train.precision=" + auto_precision("auto")],
        ["train.threads=1"],
        ["train.log_every=1", "train.checkpoint_every=7", "train.validate_every=3"],
        ["model.llm.weights=/another/place"],
        ["evaluate.beams=1", "sinks.tau=10", "sinks.every=5", "corpus.out=moved", "features.out=moved"],
        ["decorrelation.stop_gradient=true", "decorrelation.roles=[audio]"],
        ["model.lora.targets=[v_proj, up_proj, q_proj, k_proj, o_proj, gate_proj, down_proj]"],
        ["model.lora.alpha=64.0"],
        ["train.activation_checkpointing=true"],
        ["model.prompt={audiovisual: Transcribe speech to text., audio: Listen.}"],
    ],
)
def test_settings_without_effect_on_weights_keep_the_identity(overrides: list[str]) -> None:
    assert identity_of(*overrides) == identity_of()


@pytest.mark.parametrize(
    "override",
    ["train.seed=1", "train.steps=481", "model.rates.audio=4", "model.rates.video=2", "model.llm.blocks=15",
     "model.prompt=Listen.", "decorrelation.weight=0.1", "train.betas=[0.9, 0.99]", "model.lora.targets=[q_proj]",
     "model.modality=audio", "model.downsampling=stack", "train.group_by_length=true", "train.accumulate=2",
     "train.batch_frames=900"],
)  # fmt: skip
def test_settings_with_effect_on_weights_change_the_identity(override: str) -> None:
    assert identity_of(override) != identity_of()


def test_keys_of_unused_streams_do_not_count() -> None:
    audio = "model.modality=audio"
    assert identity_of(audio, "model.rates.video=2") == identity_of(audio)
    assert identity_of(audio, "model.rates.audio=4") != identity_of(audio)
    video = "model.modality=video"
    assert identity_of(video, "model.rates.audio=4") == identity_of(video)
    assert identity_of(video, "model.rates.video=2") != identity_of(video)


def test_decorrelation_options_count_only_if_it_is_used() -> None:
    on = "decorrelation.weight=0.1"
    assert identity_of(on, "decorrelation.stop_gradient=true") != identity_of(on)
    assert identity_of(on, "decorrelation.roles=[audio]") != identity_of(on)
    assert identity_of(on, "decorrelation.roles=[audio, video]") == identity_of(
        on, "decorrelation.roles=[video, audio]"
    )


def test_every_training_parameter_counts_unless_declared() -> None:
    def keys(values: dict, before: str = "") -> set[str]:
        return {
            key
            for name, value in values.items()
            for key in (keys(value, f"{before}{name}.") if isinstance(value, dict) else {before + name})
        }

    given = params("decorrelation.weight=0.1")
    counted = keys(identity_parts(given, DATA)["configuration"])
    there = keys(given.model_dump(mode="json", include=set(identity.TRAINING_SECTIONS)))
    assert counted == there - set(identity.KEYS_LEFT_OUT)
    evaluation = keys(given.model_dump(mode="json", include=set(identity.EVALUATION_SECTIONS)))
    assert set(identity.KEYS_LEFT_OUT) < there | evaluation
    assert all(identity.KEYS_LEFT_OUT.values())


def test_data_and_code_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_identity(params(), DATA | {"llm": "d" * 64}) != identity_of()
    before = identity_of()
    monkeypatch.setattr(identity, "code_digest", lambda *modules, **without: "e" * 64)
    assert identity_of() != before


@pytest.mark.parametrize("data", [{}, {"llm": ""}])
def test_a_missing_digest_is_an_error(data: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no digest of"):
        training_identity(params(), data)


def test_evaluation_has_its_own_digest() -> None:
    def evaluation(*overrides: str) -> str:
        return evaluation_digest(params(*overrides), DATA)

    assert evaluation("evaluate.beams=1") != evaluation()
    assert evaluation("sinks.tau=10") != evaluation()
    assert evaluation("train.seed=1", "model.rates.audio=4") == evaluation()
    assert evaluation_digest(params(), DATA | {"llm": "d" * 64}) != evaluation()


@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2 fma", False),
    ],
)
def test_bfloat16_is_used_on_cpus_where_it_is_faster(tmp_path: Path, vendor: str, flags: str, faster: bool) -> None:
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a core\nflags\t\t: fpu {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core * 2)
    assert is_bfloat16_faster(tmp_path / "cpuinfo") is faster


def test_bfloat16_is_not_used_on_unknown_cpus(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert not is_bfloat16_faster(tmp_path / "cpuinfo")
    assert not is_bfloat16_faster(tmp_path / "none")


def test_precision_agrees_with_torch() -> None:
    import torch

    capabilities = torch.cpu.get_capabilities()
    is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    on_cpu = bool(capabilities.get("amx_bf16") or (is_amd and capabilities.get("avx512_bf16")))
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    for device, native in (("auto", on_gpu if torch.cuda.is_available() else on_cpu), ("cpu", on_cpu)):
        expected = "bfloat16" if native else "float32"
        assert resolved_here(params("train.precision=auto", f"train.device={device}")).train.precision == expected
    assert resolved_here(params("train.precision=float32")).train.precision == "float32"
    assert identity_of("train.precision=float32") != identity_of("train.precision=bfloat16")


# Trial.


def done(runs: Path) -> Trial:
    """A trial with all that an evaluation leaves."""
    trial = Trial.create(runs, params(), DATA)
    trial.adapter.mkdir()
    line = {"id": "a", "split": "test", "condition": "clean", "reference": "one two", "hypothesis": "one too"}
    line |= {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 2}
    trial.hypotheses.write_text(f"{json.dumps(line)}\n")
    np.savez(trial.sinks, records=np.arange(6))
    trial.finish("e" * 64, {"wer/test": 0.1})
    return trial


def test_status_follows_the_files(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    assert trial.folder.name == identity_of()[:16]
    assert trial.identity == identity_of()
    assert Trial.at(tmp_path, trial.identity).status() is Status.NEW
    trial.metrics_log.append(1, {"loss/cross_entropy": 2.0})
    assert trial.status() is Status.TRAINING
    trial.adapter.mkdir()
    assert trial.status() is Status.TRAINED
    trial.finish("e" * 64, {"wer/test": 0.1}, {"beams": 4})
    assert trial.status() is Status.DONE
    assert trial.status("e" * 64) is Status.DONE
    assert trial.status("f" * 64) is Status.TRAINED
    assert trial.result() == {
        "identity": trial.identity, "evaluation": "e" * 64, "metrics": {"wer/test": 0.1}, "details": {"beams": 4},
    }  # fmt: skip


def test_config_is_valid_for_params(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params("train.seed=3", "train.precision=auto"), DATA)
    again = load_params(trial.config)
    assert training_identity(again, DATA) == trial.identity
    assert again.train.precision == auto_precision("auto")


def test_creating_an_existing_trial_keeps_its_files(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    trial.finish("e" * 64, {"wer/test": 0.1})
    before = trial.config.read_text()
    assert Trial.create(tmp_path, params("evaluate.beams=1"), DATA).status("e" * 64) is Status.DONE
    assert trial.config.read_text() == before


def test_an_evaluation_begins_with_its_own_parameters(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    trial.hypotheses.write_text("{}\n")
    trial.finish("e" * 64, {"wer/test": 0.1})
    trial.begin_evaluation(params("evaluate.beams=1"))
    assert not trial.metrics.exists()
    assert not trial.hypotheses.exists()
    assert load_params(trial.config).evaluate.beams == 1


def test_another_trial_in_the_folder_is_refused(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    other = Trial.create(tmp_path, params("train.seed=1"), DATA)
    shutil.copy(other.folder / "identity.json", trial.folder)
    with pytest.raises(PipelineError, match=f"holds the trial {other.identity}"):
        Trial.create(tmp_path, params(), DATA)


@pytest.mark.parametrize("damage", ["", "{", "[]", "cut", "nan", "empty", "foreign"])
def test_a_damaged_result_counts_as_missing(tmp_path: Path, capfd: pytest.CaptureFixture, damage: str) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    trial.adapter.mkdir()
    trial.finish("e" * 64, {"wer/test": 0.1})
    whole = trial.metrics.read_text()
    trial.metrics.write_text(
        {
            "cut": whole[:-20],
            "nan": whole.replace("0.1", "NaN"),
            "empty": json.dumps(json.loads(whole) | {"metrics": {}}),
            "foreign": whole.replace(trial.identity, "0" * 64),
        }.get(damage, damage)
    )
    assert trial.status() is Status.TRAINED
    assert f"warning: {trial.metrics}" in capfd.readouterr().err
    trial.discard_result()
    assert not trial.metrics.exists()
    assert (trial.folder / "metrics.json.damaged").exists()
    trial.finish("e" * 64, {"wer/test": 0.1})
    assert trial.status() is Status.DONE


def test_a_changed_metric_is_detected(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    trial = done(tmp_path)
    trial.metrics.write_text(trial.metrics.read_text().replace("0.1", "0.3"))
    assert trial.status() is Status.TRAINED
    assert (
        f"warning: {trial.metrics}: has changed since it was written; evaluate the trial again"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize("name", ["hypotheses.jsonl", "sinks.npz"])
@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "gone"])
def test_a_trial_whose_results_are_damaged_is_evaluated_again(
    tmp_path: Path, capfd: pytest.CaptureFixture, name: str, damage: str
) -> None:
    trial = done(tmp_path)
    file = trial.folder / name
    whole = file.read_bytes()
    file.write_bytes({"byte": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-1]}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    assert trial.status("e" * 64) is Status.TRAINED
    assert trial.result()["metrics"] == {"wer/test": 0.1}, "the metrics themselves are intact"
    with pytest.raises(PipelineError, match=f"{name}: .*; evaluate the trial again"):
        trial.read_hypotheses() if name == "hypotheses.jsonl" else trial.read_sinks()
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f"warning: {file}: ")]
    assert len(warnings) == 1
    trial.begin_evaluation(params())
    assert not file.exists()


def test_results_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    trial = done(tmp_path)
    result = trial.result()
    trial.metrics.write_text(json.dumps(result))
    trial.config.write_text(trial.config.read_text().partition("\n")[2])
    assert trial.status("e" * 64) is Status.DONE
    assert trial.result() == result
    assert trial.read_hypotheses() == {"test": {"a": ScoredHypothesis("one two", "one too", 1, 2, None)}}
    assert list(trial.read_sinks()) == ["records"]
    trial.require_config()
    earlier = {"features_bos": [1.0], "features_intermediate": [2.0], "exemplar_features": [3]}
    np.savez(trial.sinks, records=[4], **earlier)
    arrays = {name: array.tolist() for name, array in trial.read_sinks().items()}
    now = {"dimensions_bos": [1.0], "dimensions_intermediate": [2.0], "exemplar_dimensions": [3]}
    assert arrays == {"records": [4], **now}
    trial.sinks.write_bytes(trial.sinks.read_bytes()[:-30])
    with pytest.raises(PipelineError, match=r"sinks\.npz: cannot be read .*; evaluate the trial again"):
        trial.read_sinks()


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"{", b"null", b'{"identity": "0"}'])
def test_a_damaged_identity_is_written_again(tmp_path: Path, content: bytes) -> None:
    trial = done(tmp_path)
    file = trial.folder / "identity.json"
    whole = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(PipelineError, match=r"identity\.json: .*; remove .*; the trial is created again"):
        trial.identity_parts()
    assert Trial.create(tmp_path, params(), DATA).status("e" * 64) is Status.DONE
    assert file.read_bytes() == whole


def test_a_changed_identity_or_configuration_is_an_error(tmp_path: Path) -> None:
    trial = done(tmp_path)
    trial.require_config()
    for text in (trial.config.read_text().replace("beams: ", "beams: 1"), "", "\0\0"):
        trial.config.write_text(text)
        with pytest.raises(PipelineError, match=r"config\.yaml: has changed since it was written"):
            trial.require_config()
    file = trial.folder / "identity.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(PipelineError, match=r"identity\.json: has changed since it was written"):
        trial.identity_parts()


@pytest.mark.parametrize("metrics", [{}, {"wer/test": float("nan")}, {"wer/test": None}])
def test_a_result_needs_finite_metrics(tmp_path: Path, metrics: dict) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    with pytest.raises(PipelineError):
        trial.finish("e" * 64, metrics)
    assert not trial.metrics.exists()


def test_the_status_of_a_thousand_trials_is_fast(tmp_path: Path) -> None:
    trials = [Trial.create(tmp_path, params(f"train.seed={seed}"), DATA) for seed in range(20)]
    for trial in trials:
        trial.finish("e" * 64, {"wer/test": 0.1})
    began = time.process_time()
    assert all(trial.status("e" * 64) is Status.DONE for trial in trials * 50)
    assert time.process_time() - began < 2.0


# MetricsLog.


def steps_of(log: MetricsLog) -> list[float]:
    return [record["step"] for record in log.read()[0]]


def test_the_metrics_log_returns_appended_records(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    assert log.read() == ([], 0)
    log.append(1, {"loss/cross_entropy": 2.5}, at=100.5)
    records, position = log.read()
    assert records == [{"time": 100.5, "step": 1, "loss/cross_entropy": 2.5}]
    log.append(2, {"loss/cross_entropy": 2.0})
    later, end = log.read(position)
    assert [record["step"] for record in later] == [2]
    assert abs(later[0]["time"] - time.time()) < 60
    assert log.read(end) == ([], end)


def test_an_incomplete_last_line_is_not_read_and_then_replaced(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, {"a": 1.0})
    with open(log.path, "a") as opened:
        opened.write('{"time": 1, "st')
    records, position = log.read()
    assert [record["step"] for record in records] == [1]
    log.append(2, {"a": 2.0})
    assert steps_of(log) == [1, 2]
    assert [record["step"] for record in log.read(position)[0]] == [2]


def test_truncation_removes_later_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        log.append(step, {"a": float(step)})
    position = log.read()[1]
    kept = log.path.read_text().splitlines()[:4]
    log.truncate_after(4)
    assert log.path.read_text().splitlines() == kept
    assert len(log.read(position)[0]) == 4, "a reader that was further reads all"
    log.append(5, {"a": 50.0})
    assert steps_of(log) == [1, 2, 3, 4, 5]
    MetricsLog(tmp_path / "none.jsonl").truncate_after(3)
    assert not (tmp_path / "none.jsonl").exists()
    log.path.write_bytes(b"\xff\n" + log.path.read_bytes())
    log.truncate_after(0)
    assert log.read() == ([], 0), "a new training needs no old lines"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, value: float) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(PipelineError, match=r"loss/cross_entropy is (nan|inf) at step 7.*learning_rate"):
        log.append(7, {"loss/cross_entropy": value})
    assert not log.path.exists()


@pytest.mark.parametrize("line", ["no json", "[]", '{"step": 1}', '{"time": 1, "step": "one"}'])
def test_a_complete_line_that_is_not_a_record_is_an_error(tmp_path: Path, line: str) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, {"a": 1.0})
    with open(log.path, "a") as opened:
        opened.write(line + "\n")
    with pytest.raises(PipelineError, match=r"metrics\.jsonl:2: .* is not a record"):
        log.read()


def test_a_damaged_line_is_named_by_its_number_in_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.append(step, {"a": 1.0})
    _, position = log.read()
    log.append(3, {"a": 1.0})
    with open(log.path, "a") as opened:
        opened.write("GARBAGE\n")
    with pytest.raises(PipelineError, match=r"metrics\.jsonl:4: "):
        log.read(position)


def test_a_killed_writer_loses_no_complete_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.trials.metrics_log import MetricsLog\n"
        "log, step = MetricsLog(sys.argv[1]), 0\n"
        "while True: step += 1; log.append(step, {'a': 1.0 * step}); print(step, flush=True)"
    )
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for _ in range(200):
        printed = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    steps = steps_of(MetricsLog(path))
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= printed
