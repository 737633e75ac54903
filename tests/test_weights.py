import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from published import weights_params

from pipeline.common.errors import PipelineError
from pipeline.config import Params, load_params
from pipeline.pretrained.ctranslate2 import read_tensors
from pipeline.pretrained.folder import verify_weights, weights_digest
from pipeline.pretrained.gguf import convert_gguf
from pipeline.training.inputs import Inputs
from pipeline.weights import prepare_weights

ROOT = Path(__file__).resolve().parents[1]
TEXT = (
    "The weather in London was cold and grey, and people walked quickly along the river with their umbrellas. "
    "It had rained all morning, and nobody wanted to stay outside longer than they had to."
)


def params_for(out: Path, source: dict, format: str = "ctranslate2_whisper") -> Params:
    return weights_params(out, source, format)


@pytest.fixture
def whisper(real_sources, tmp_path) -> Path:
    """A copy of the CTranslate2 folder, which tests may change."""
    return Path(shutil.copytree(real_sources["whisper-tiny.en"], tmp_path / "whisper"))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local package index with one wheel. Returns a function for its source section."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("toy/model/model.safetensors", "tensors")
        made.writestr("toy/model/config.json", "{}")
        made.writestr(
            "toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: nosuch\n"
        )
        made.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("toy-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    usual = {"kind": "wheel", "package": "toy", "version": "1.0", "sha256": sha256, "member": "toy/model"}
    return lambda **changes: usual | changes


def test_converted_language_model_equals_the_gguf(real_weights, real_sources):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, folder = real_sources["smollm2-135m"], real_weights / "smollm2-135m"
    original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(converted).__name__ == "LlamaForCausalLM"
    assert not hasattr(converted.config, "quantization_config")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    assert tokenizer.decode(tokens[0, 1:]) == TEXT
    with torch.inference_mode():
        expected, found = original(tokens).logits, converted(tokens).logits
    assert (found - expected).norm() / expected.norm() < 2e-3
    divergence = torch.nn.functional.kl_div(found.log_softmax(-1), expected.softmax(-1), reduction="sum")
    assert divergence / tokens.shape[1] < 1e-4
    tensors = converted.state_dict()
    assert all(torch.equal(tensors[name], tensor.half().float()) for name, tensor in original.state_dict().items())
    perplexity = torch.nn.functional.cross_entropy(found[0, 10:-1], tokens[0, 11:]).exp()
    assert perplexity < 40


def test_complete_weights_are_kept(whisper, tmp_path):
    params = params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)})
    prepare_weights(params)
    file = tmp_path / "out" / "w" / "model.safetensors"
    made = file.stat().st_mtime_ns
    prepare_weights(params)
    assert file.stat().st_mtime_ns == made
    assert file.stat().st_mode & 0o044 == 0o044
    shutil.rmtree(whisper)
    prepare_weights(params)
    assert file.stat().st_mtime_ns == made


def test_damage_is_noticed_and_repaired(whisper, tmp_path):
    params = params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)})
    prepare_weights(params)
    folder = tmp_path / "out" / "w"
    file = folder / "model.safetensors"
    whole, digest = file.read_bytes(), weights_digest(folder)

    file.write_bytes(whole[:-1])
    with pytest.raises(PipelineError, match=rf"{len(whole) - 1} bytes instead of {len(whole)}.*pipeline\.weights"):
        weights_digest(folder)
    prepare_weights(params)
    assert file.read_bytes() == whole

    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    prepare_weights(params)
    assert file.read_bytes() == whole

    (folder / "config.json").unlink()
    prepare_weights(params)
    assert weights_digest(folder) == digest

    (folder / "weights.json").write_text("{")
    prepare_weights(params)
    assert weights_digest(folder) == digest


def test_a_changed_source_is_converted_again(whisper, tmp_path, capsys):
    params = params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)})
    prepare_weights(params)
    before = weights_digest(tmp_path / "out" / "w")
    content = bytearray((whisper / "model.bin").read_bytes())
    content[content.index(b"encoder/conv1/weight\0") + 60] ^= 1
    (whisper / "model.bin").write_bytes(content)
    prepare_weights(params)
    assert "has another source or converter" in capsys.readouterr().out
    assert weights_digest(tmp_path / "out" / "w") != before


def test_a_change_below_a_file_of_the_same_name_is_noticed(tmp_path, capsys):
    source = tiny.make_llm(tmp_path / "llm")
    (source / "1_Pooling").mkdir()
    shutil.copy(source / "config.json", source / "1_Pooling")
    params = params_for(tmp_path / "out", {"kind": "path", "path": str(source)}, "huggingface")
    prepare_weights(params)
    os.utime(source / "config.json", (0, 0))
    prepare_weights(params)
    assert "has another source or converter" in capsys.readouterr().out


def test_the_digest_depends_only_on_content(whisper, tmp_path):
    prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)}))
    made = tmp_path / "out" / "w"
    plain = Path(shutil.copytree(made, tmp_path / "plain"))
    (plain / "weights.json").unlink()
    assert weights_digest(plain) == weights_digest(made)
    with pytest.raises(PipelineError, match=r"nowhere: has no weights.*python -m pipeline\.weights"):
        weights_digest(tmp_path / "nowhere")


def test_files_of_a_hugging_face_folder_are_linked(whisper, tmp_path):
    prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)}))
    made = tmp_path / "out" / "w"
    mode = (made / "model.safetensors").stat().st_mode
    prepare_weights(params_for(tmp_path / "linked", {"kind": "path", "path": str(made)}, "huggingface"))
    linked = tmp_path / "linked" / "w"
    assert (linked / "model.safetensors").is_symlink()
    assert (made / "model.safetensors").stat().st_mode == mode
    assert weights_digest(linked) == weights_digest(made)


@pytest.fixture
def llm(tmp_path) -> Path:
    """A folder of stage `weights`, without links."""
    source = tiny.make_llm(tmp_path / "llm")
    prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(source)}, "huggingface"))
    shutil.copytree(tmp_path / "out" / "w", tmp_path / "w")
    return tmp_path / "w"


def test_verification_covers_all_files(llm):
    verify_weights(llm)
    known, remedy = weights_digest(llm), "run: python -m pipeline.weights"
    names = {file.name for file in llm.iterdir()} - {"weights.json"}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    for name in names:
        file = llm / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        assert weights_digest(llm) == known, "the digest reads no files"
        with pytest.raises(PipelineError, match=f"{name}: has changed: .*; {remedy}"):
            verify_weights(llm)
        file.write_bytes(whole)
    verify_weights(llm)
    (llm / "adapter_config.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"adapter_config\.json: is not listed in weights\.json"):
        verify_weights(llm)


@pytest.mark.parametrize("content", ["", "\0\0", "{}", "[]", '{"files": 3, "digest": "0"}', "other"])
def test_a_damaged_record_is_an_error(llm, content):
    record = llm / "weights.json"
    whole = record.read_text()
    first = json.loads(whole)["files"]["config.json"]["sha256"]
    record.write_text(whole.replace(first, "0" * 64) if content == "other" else content)
    with pytest.raises(PipelineError, match=r"weights\.json: .*; run: python -m pipeline\.weights"):
        weights_digest(llm)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 300, b"\xff\xfe"])
def test_a_damaged_llm_without_a_record_is_an_error(tmp_path, name, content):
    from pipeline.training.build import build_model

    folder = tiny.make_llm(tmp_path / "llm")
    (folder / name).write_bytes(content)
    params = load_params(ROOT / "params.yaml", ["train.device=cpu", f"model.llm={{weights: {folder}, blocks: null}}"])
    inputs = Inputs((), {}, {"llm": weights_digest(folder)})
    with pytest.raises(PipelineError, match=r"llm\S*: .+; use a "):
        build_model(params, inputs)


def test_a_member_of_a_wheel_is_copied_without_dependencies(index, tmp_path):
    prepare_weights(params_for(tmp_path / "out", index(), "huggingface"))
    assert (tmp_path / "out" / "w" / "model.safetensors").read_text() == "tensors"
    assert not (tmp_path / "out" / "w" / "model.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, r"toy-1\.0.*has SHA-256 [0-9a-f]{64} instead of 0{64}"),
        ({"member": "toy/other"}, "has no member toy/other"),
        ({"version": "2.0"}, r"toy==2\.0.*from versions: 1\.0.*kind: path"),
        ({"package": "nosuchpackage"}, "nosuchpackage==1.0: pip cannot fetch it.*kind: path"),
    ],
)
def test_an_unexpected_wheel_is_an_error(index, tmp_path, changes, message):
    with pytest.raises(PipelineError, match=message):
        prepare_weights(params_for(tmp_path / "out", index(**changes), "huggingface"))
    assert not any((tmp_path / "out").glob("*"))


def test_an_error_of_the_network_has_a_remedy(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(PipelineError, match=r"pip cannot fetch it.*check the network.*kind: path"):
        prepare_weights(params_for(tmp_path / "out", index()))


def test_an_unavailable_hub_is_one_error(tmp_path):
    source = "{kind: hub, repository: some/model, revision: abcdef0}"
    script = "from pipeline.common.command import run_command; from pipeline.weights import main; run_command(main)"
    command = [sys.executable, "-c", script, "--set", f"weights.out={tmp_path}"]
    command += ["--set", f"weights.sources=[{{name: w, format: huggingface, source: {source}}}]"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: some/model@abcdef0: cannot be fetched")
    assert "does not exist; preparing it from the hub's some/model at abcdef0" in ended.stdout
    assert "kind: path" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(PipelineError, match="nowhere: does not exist"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("size", [0, 3, 1000, 20_000_000])
def test_a_truncated_ctranslate2_file_is_an_error(whisper, tmp_path, size):
    os.truncate(whisper / "model.bin", size)
    with pytest.raises(PipelineError, match=rf"model\.bin: ends at byte {size}.*fetch it again"):
        read_tensors(whisper / "model.bin")
    with pytest.raises(PipelineError, match=r"model\.bin"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)}))
    assert not (tmp_path / "out" / "w").exists()


def test_integer_weights_are_refused(whisper, tmp_path):
    content = bytearray((whisper / "model.bin").read_bytes())
    # The type follows the name, the rank and three dimensions.
    content[content.index(b"encoder/conv1/weight\0") + 21 + 1 + 12] = 2
    (whisper / "model.bin").write_bytes(content)
    with pytest.raises(PipelineError, match=r"has conv1\.weight as int16"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)}))


@pytest.mark.parametrize("size", [0, 100, 60_000_000])
def test_a_truncated_gguf_is_an_error(real_sources, tmp_path, size):
    with open(real_sources["smollm2-135m"], "rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(size))
    with pytest.raises(PipelineError, match=r"cut\.gguf: cannot be read as GGUF"):
        convert_gguf(tmp_path / "cut.gguf", tmp_path / "out")


def test_a_full_disk_is_one_error_without_leftovers(whisper, tmp_path):
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from pipeline.common.command import run_command; from pipeline.weights import main; run_command(main)"
    )
    source = f"{{kind: path, path: {whisper}}}"
    command = [sys.executable, "-c", script, "--set", f"weights.out={tmp_path / 'out'}"]
    command += ["--set", f"weights.sources=[{{name: w, format: ctranslate2_whisper, source: {source}}}]"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".4711.llm").mkdir()
    (tmp_path / ".4711.llm" / "model.safetensors").touch()
    prepare_weights(load_params(ROOT / "params.yaml", [f"weights.out={tmp_path}", "weights.sources=[]"]))
    assert not list(tmp_path.iterdir())


def test_torch_is_not_imported_without_work(real_weights):
    script = (
        "import sys; from pipeline.weights import main; main()\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, "--set", f"weights.out={real_weights}"]
    subprocess.run(command, check=True, cwd=ROOT)


def test_nothing_that_somebody_else_wrote_is_replaced(whisper, tmp_path):
    """Such as a source that was downloaded to the very folder of its weights."""
    own = Path(shutil.copytree(whisper, tmp_path / "out" / "w" / "download"))
    before = {file.name: file.read_bytes() for file in own.iterdir()}
    with pytest.raises(PipelineError, match=r"is the source of w, and lies where its weights go; move it"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(own)}))
    with pytest.raises(PipelineError, match=r"out/w: has files, but no weights\.json; move it"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(whisper)}))
    assert {file.name: file.read_bytes() for file in own.iterdir()} == before


def test_a_file_is_no_hugging_face_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"some")
    with pytest.raises(PipelineError, match=r"model\.safetensors: is a file; name the folder that it is in"):
        prepare_weights(params_for(tmp_path / "out", {"kind": "path", "path": str(file)}, "huggingface"))
