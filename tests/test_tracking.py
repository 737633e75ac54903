"""Identity, trial folder and spool: what is one trial, how far it has come, what it measured."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import is_bfloat16_faster, native_precision, with_precision
from pipeline.config import Params, load_params
from pipeline.trials import identity
from pipeline.trials.folder import State, Trial
from pipeline.trials.identity import evaluation_digest, identity_parts, training_identity
from pipeline.trials.metrics_log import Spool

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
        ["train.device=cpu", "train.precision=" + native_precision("auto")],
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
def test_what_changes_no_weights_changes_no_identity(overrides: list[str]) -> None:
    assert identity_of(*overrides) == identity_of()


@pytest.mark.parametrize(
    "override",
    ["train.seed=1", "train.steps=481", "model.rates.audio=4", "model.rates.video=2", "model.llm.blocks=15",
     "model.prompt=Listen.", "decorrelation.weight=0.1", "train.betas=[0.9, 0.99]", "model.lora.targets=[q_proj]",
     "model.modality=audio", "model.downsampling=stack", "train.group_by_length=true", "train.accumulate=2",
     "train.batch_frames=900"],
)  # fmt: skip
def test_what_changes_weights_changes_the_identity(override: str) -> None:
    assert identity_of(override) != identity_of()


def test_keys_that_a_modality_does_not_use_do_not_count() -> None:
    audio = "model.modality=audio"
    assert identity_of(audio, "model.rates.video=2") == identity_of(audio)
    assert identity_of(audio, "model.rates.audio=4") != identity_of(audio)
    video = "model.modality=video"
    assert identity_of(video, "model.rates.audio=4") == identity_of(video)
    assert identity_of(video, "model.rates.video=2") != identity_of(video)


def test_options_of_the_decorrelation_count_where_it_is_on() -> None:
    on = "decorrelation.weight=0.1"
    assert identity_of(on, "decorrelation.stop_gradient=true") != identity_of(on)
    assert identity_of(on, "decorrelation.roles=[audio]") != identity_of(on)
    assert identity_of(on, "decorrelation.roles=[audio, video]") == identity_of(
        on, "decorrelation.roles=[video, audio]"
    )


def test_every_training_parameter_counts_unless_it_is_declared_left_out() -> None:
    def keys(values: dict, before: str = "") -> set[str]:
        return {
            key
            for name, value in values.items()
            for key in (keys(value, f"{before}{name}.") if isinstance(value, dict) else {before + name})
        }

    given = params("decorrelation.weight=0.1")
    counted = keys(identity_parts(given, DATA)["configuration"])
    there = keys(given.model_dump(mode="json", include=set(identity.TRAINING_SECTIONS)))
    assert counted == there - set(identity.LEFT_OUT)
    evaluation = keys(given.model_dump(mode="json", include=set(identity.EVALUATION_SECTIONS)))
    assert set(identity.LEFT_OUT) < there | evaluation
    assert all(identity.LEFT_OUT.values())


def test_data_and_code_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_identity(params(), DATA | {"llm": "d" * 64}) != identity_of()
    before = identity_of()
    monkeypatch.setattr(identity, "code_digest", lambda *modules, **without: "e" * 64)
    assert identity_of() != before


@pytest.mark.parametrize("data", [{}, {"llm": ""}])
def test_a_missing_digest_is_no_digest(data: dict[str, str]) -> None:
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
def test_bfloat16_is_taken_where_it_is_faster(tmp_path: Path, vendor: str, flags: str, faster: bool) -> None:
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a core\nflags\t\t: fpu {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core * 2)
    assert is_bfloat16_faster(tmp_path / "cpuinfo") is faster


def test_bfloat16_is_not_taken_where_the_cpu_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert not is_bfloat16_faster(tmp_path / "cpuinfo")
    assert not is_bfloat16_faster(tmp_path / "none")


def test_precision_is_what_torch_says() -> None:
    import torch

    capabilities = torch.cpu.get_capabilities()
    is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    on_cpu = bool(capabilities.get("amx_bf16") or (is_amd and capabilities.get("avx512_bf16")))
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    for device, native in (("auto", on_gpu if torch.cuda.is_available() else on_cpu), ("cpu", on_cpu)):
        expected = "bfloat16" if native else "float32"
        assert with_precision(params("train.precision=auto", f"train.device={device}")).train.precision == expected
    assert with_precision(params("train.precision=float32")).train.precision == "float32"
    assert identity_of("train.precision=float32") != identity_of("train.precision=bfloat16")


# Trial.


def done(runs: Path) -> Trial:
    """A trial with all that an evaluation leaves."""
    trial = Trial.create(runs, params(), DATA)
    trial.adapter.mkdir()
    trial.hypotheses.write_text('{"id": "a", "split": "test", "condition": "clean"}\n')
    np.savez(trial.sinks, records=np.arange(6))
    trial.finish("e" * 64, {"wer/test": 0.1})
    return trial


def test_states_follow_the_files(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    assert trial.folder.name == identity_of()[:16]
    assert trial.identity == identity_of()
    assert Trial.at(tmp_path, trial.identity).state() is State.NEW
    trial.spool.append(1, {"loss/cross_entropy": 2.0})
    assert trial.state() is State.TRAINING
    trial.adapter.mkdir()
    assert trial.state() is State.TRAINED
    trial.finish("e" * 64, {"wer/test": 0.1}, {"beams": 4})
    assert trial.state() is State.DONE
    assert trial.state("e" * 64) is State.DONE
    assert trial.state("f" * 64) is State.TRAINED
    assert trial.result() == {
        "identity": trial.identity, "evaluation": "e" * 64, "metrics": {"wer/test": 0.1}, "details": {"beams": 4},
    }  # fmt: skip


def test_config_can_be_given_to_a_command(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params("train.seed=3", "train.precision=auto"), DATA)
    again = load_params(trial.config)
    assert training_identity(again, DATA) == trial.identity
    assert again.train.precision == native_precision("auto")


def test_creating_again_keeps_what_is_there(tmp_path: Path) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    trial.finish("e" * 64, {"wer/test": 0.1})
    before = trial.config.read_text()
    assert Trial.create(tmp_path, params("evaluate.beams=1"), DATA).state("e" * 64) is State.DONE
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


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "cut", "nan", "empty", "foreign"])
def test_a_damaged_result_is_none(tmp_path: Path, capfd: pytest.CaptureFixture, spoilt: str) -> None:
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
        }.get(spoilt, spoilt)
    )
    assert trial.state() is State.TRAINED
    assert f"warning: {trial.metrics}" in capfd.readouterr().err
    trial.discard_result()
    assert not trial.metrics.exists()
    assert (trial.folder / "metrics.json.damaged").exists()
    trial.finish("e" * 64, {"wer/test": 0.1})
    assert trial.state() is State.DONE


def test_a_changed_figure_is_noticed(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    trial = done(tmp_path)
    trial.metrics.write_text(trial.metrics.read_text().replace("0.1", "0.3"))
    assert trial.state() is State.TRAINED
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
    assert trial.state("e" * 64) is State.TRAINED
    assert trial.result()["metrics"] == {"wer/test": 0.1}, "the figures themselves are whole"
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
    assert trial.state("e" * 64) is State.DONE
    assert trial.result() == result
    assert trial.read_hypotheses() == [{"id": "a", "split": "test", "condition": "clean"}]
    assert list(trial.read_sinks()) == ["records"]
    trial.require_config()
    trial.sinks.write_bytes(trial.sinks.read_bytes()[:-30])
    with pytest.raises(PipelineError, match=r"sinks\.npz: cannot be read .*; evaluate the trial again"):
        trial.read_sinks()


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"{", b"null", b'{"identity": "0"}'])
def test_an_identity_that_a_power_cut_spoilt_is_written_again(tmp_path: Path, content: bytes) -> None:
    trial = done(tmp_path)
    file = trial.folder / "identity.json"
    whole = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(PipelineError, match=r"identity\.json: .*; remove .*; the trial is made again"):
        trial.identity_parts()
    assert Trial.create(tmp_path, params(), DATA).state("e" * 64) is State.DONE
    assert file.read_bytes() == whole


def test_a_changed_identity_or_configuration_is_named(tmp_path: Path) -> None:
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
def test_no_result_without_numbers(tmp_path: Path, metrics: dict) -> None:
    trial = Trial.create(tmp_path, params(), DATA)
    with pytest.raises(PipelineError):
        trial.finish("e" * 64, metrics)
    assert not trial.metrics.exists()


def test_a_thousand_trials_are_looked_at_quickly(tmp_path: Path) -> None:
    trials = [Trial.create(tmp_path, params(f"train.seed={seed}"), DATA) for seed in range(20)]
    for trial in trials:
        trial.finish("e" * 64, {"wer/test": 0.1})
    began = time.process_time()
    assert all(trial.state("e" * 64) is State.DONE for trial in trials * 50)
    assert time.process_time() - began < 2.0


# Spool.


def steps_of(spool: Spool) -> list[float]:
    return [record["step"] for record in spool.read()[0]]


def test_spool_reads_what_was_appended(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "new" / "metrics.jsonl")
    assert spool.read() == ([], 0)
    spool.append(1, {"loss/cross_entropy": 2.5}, at=100.5)
    records, position = spool.read()
    assert records == [{"time": 100.5, "step": 1, "loss/cross_entropy": 2.5}]
    spool.append(2, {"loss/cross_entropy": 2.0})
    later, end = spool.read(position)
    assert [record["step"] for record in later] == [2]
    assert abs(later[0]["time"] - time.time()) < 60
    assert spool.read(end) == ([], end)


def test_a_torn_last_line_is_left_and_then_replaced(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append(1, {"a": 1.0})
    with open(spool.path, "a") as opened:
        opened.write('{"time": 1, "st')
    records, position = spool.read()
    assert [record["step"] for record in records] == [1]
    spool.append(2, {"a": 2.0})
    assert steps_of(spool) == [1, 2]
    assert [record["step"] for record in spool.read(position)[0]] == [2]


def test_cut_back_removes_what_comes_after_a_checkpoint(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        spool.append(step, {"a": float(step)})
    position = spool.read()[1]
    kept = spool.path.read_text().splitlines()[:4]
    spool.cut_back(4)
    assert spool.path.read_text().splitlines() == kept
    assert len(spool.read(position)[0]) == 4, "a reader that was further begins anew"
    spool.append(5, {"a": 50.0})
    assert steps_of(spool) == [1, 2, 3, 4, 5]
    Spool(tmp_path / "none.jsonl").cut_back(3)
    assert not (tmp_path / "none.jsonl").exists()
    spool.path.write_bytes(b"\xff\n" + spool.path.read_bytes())
    spool.cut_back(0)
    assert spool.read() == ([], 0), "a training that begins anew needs nothing of it"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_one_clear_error(tmp_path: Path, value: float) -> None:
    spool = Spool(tmp_path / "metrics.jsonl")
    with pytest.raises(PipelineError, match=r"loss/cross_entropy is (nan|inf) at step 7.*learning_rate"):
        spool.append(7, {"loss/cross_entropy": value})
    assert not spool.path.exists()


@pytest.mark.parametrize("line", ["no json", "[]", '{"step": 1}', '{"time": 1, "step": "one"}'])
def test_a_whole_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append(1, {"a": 1.0})
    with open(spool.path, "a") as opened:
        opened.write(line + "\n")
    with pytest.raises(PipelineError, match="line 2"):
        spool.read()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append(1, {"a": 1.0})
    size = spool.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            spool.append(2, {"a": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert spool.path.stat().st_size == size
    spool.append(2, {"a": 2.0})
    assert steps_of(spool) == [1, 2]


def test_a_killed_writer_loses_no_whole_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.trials.metrics_log import Spool\n"
        "spool, step = Spool(sys.argv[1]), 0\n"
        "while True: step += 1; spool.append(step, {'a': 1.0 * step}); print(step, flush=True)"
    )
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for _ in range(200):
        said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    steps = steps_of(Spool(path))
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= said
