import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from project import no_more_files, wait_until
from published import small_whisper
from trials import write_manifest

from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.files import file_sha256
from pipeline.common.process_pool import KILLED
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.media.read_write import read_audio, read_video_gray, write_audio, write_video
from pipeline.corpora.utterance_media import evaluation_utterances
from pipeline.encoders.protocol import encoder_kind
from pipeline.encoders.resumable import group_writer
from pipeline.encoders.store import Features, feature_groups
from pipeline.encoders.whisper import Whisper
from pipeline.features import _Remote, encoder_shape, extract_features
from pipeline.model.online_encoders import FrozenEncoder

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
COUNTS = {"train": 8, "validation": 2, "test": 4}


def utterance(folder: Path, split: str, number: int, snr: float | None, seed: int) -> Utterance:
    random = np.random.default_rng(seed)
    frames = 10 + 3 * number
    noisy = "" if snr is None else f"+{snr:g}dB"
    audio, video = f"{split}/{number}{noisy}.wav", f"{split}/{number}.mp4"
    write_audio(folder / audio, 0.1 * random.standard_normal(frames * 640).astype(np.float32))
    if snr is None:
        write_video(folder / video, random.integers(0, 256, (frames, 96, 96, 3), dtype=np.uint8))
    return Utterance(
        id=f"{split}/s/{number}{noisy}", split=split, speaker="s", text="yes", audio=audio, video=video,
        audio_seconds=frames / 25, video_frames=frames, snr=snr,
        audio_sha256=file_sha256(folder / audio), video_sha256=file_sha256(folder / video),
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A corpus with a noisy copy of its test split, and a small random Whisper."""
    folder = tmp_path_factory.mktemp("original")
    conditions = [(split, None) for split in COUNTS] + [("test", 0.0)]
    numbered = [(split, number, snr) for split, snr in conditions for number in range(COUNTS[split])]
    write_manifest(folder / "corpus", [utterance(folder / "corpus", *n, seed) for seed, n in enumerate(numbered)])
    small_whisper(folder / "weights", encoder_layers=1)
    return folder


@pytest.fixture(scope="module")
def finished(original, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Arrays of an uninterrupted run, by stream."""
    made = {}
    for stream in ("audio", "video"):
        folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("finished") / stream))
        extract_features(load_params(ROOT / "params.yaml", overrides(folder)), stream)
        made[stream] = contents(folder)
    return made


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "work"))


@pytest.fixture
def params(folder) -> Params:
    return load_params(ROOT / "params.yaml", overrides(folder))


def overrides(folder: Path) -> list[str]:
    return [
        f"corpus.out={folder / 'corpus'}",
        f"features.out={folder / 'features'}",
        f"features.audio.weights={folder / 'weights'}",
        "features.batch_size=2",
    ]


def words(folder: Path, *streams: str) -> list[str]:
    sets = [word for override in overrides(folder) for word in ("--set", override)]
    return ["-m", "pipeline.features", "--params", str(ROOT / "params.yaml"), *sets, *streams]


def begin(folder: Path, *streams: str) -> warm.Process:
    return warm.Process(words(folder, *streams), folder, ENVIRONMENT)


def run(folder: Path, *streams: str) -> subprocess.CompletedProcess:
    return warm.run(words(folder, *streams), folder, ENVIRONMENT)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in sorted((folder / "features").glob("*/features.f16"))}


@pytest.mark.parametrize("stream", ["audio", "video"])
def test_cached_features_are_those_of_the_encoder(params, folder, stream):
    utterances = read_manifest(params.corpus.out)
    extract_features(params, stream)
    features = Features(feature_groups(params, stream, utterances))
    settings = getattr(params.features, stream)
    encoder = encoder_kind(settings.encoder)(settings)
    assert len(features) == len(utterances) == 18
    assert (features.dimension, features.frame_rate) == (encoder.dimension, encoder.frame_rate)
    for u in utterances:
        path = folder / "corpus" / (u.audio if stream == "audio" else u.video)
        (expected,) = encoder.encode([read_audio(path) if stream == "audio" else read_video_gray(path)])
        assert features[u.id].dtype == np.float16
        assert np.array_equal(features[u.id], expected.astype(np.float16))


def test_each_pass_of_whisper_is_full(folder, monkeypatch):
    """On a GPU it runs on a fixed number of windows; on a CPU, where that is one, the bits need not be the same."""
    passes, initialise, run_pass = [], Whisper.__init__, Whisper._pass

    def as_on_a_gpu(encoder, *arguments):
        initialise(encoder, *arguments)
        encoder.windows = 4

    def counted(encoder, windows):
        passes.append(len(windows))
        return run_pass(encoder, windows)

    monkeypatch.setattr(Whisper, "__init__", as_on_a_gpu)
    monkeypatch.setattr(Whisper, "_pass", counted)
    arrays = []
    for size in (1, 3, 5):
        own = load_params(ROOT / "params.yaml", [*overrides(folder), f"features.batch_size={size}"])
        folders = extract_features(own, "audio")
        assert sorted(passes) == [2, 4, 4, 4, 4]
        arrays.append(contents(folder))
        passes.clear()
        for made in folders:
            shutil.rmtree(made)
    assert arrays[0] == arrays[1] == arrays[2]


def test_a_batch_can_be_lowered_only_where_that_saves_memory(params):
    class Pool:
        def run(self, function, jobs, in_order=False):
            yield from ((job, function(*job) if function is encoder_shape else KILLED) for job in jobs)

    for size, remedy in ((6, r"lower features\.batch_size to 3, or start Ray with fewer CPUs"), (1, "; start Ray")):
        own = params.model_copy(update={"features": params.features.model_copy(update={"batch_size": size})})
        remote = _Remote(own, own.features.video, "video", Pool())
        with pytest.raises(PipelineError, match=f"out of memory.*{remedy}"):
            list(remote.encode({"sha256": read_manifest(params.corpus.out)[0]}))


def test_groups_depend_only_on_their_own_media(params):
    utterances = read_manifest(params.corpus.out)
    every = {group.name: group.digest for group in feature_groups(params, "audio", utterances)}
    assert list(every) == ["train/clean", "validation/clean", "test/clean", "test/snr_0"]
    clean = feature_groups(params, "audio", [u for u in utterances if u.snr is None])
    assert {group.name: group.digest for group in clean} == {k: v for k, v in every.items() if k != "test/snr_0"}
    backwards = {group.name: group.digest for group in feature_groups(params, "audio", utterances[::-1])}
    assert backwards == every
    changed = [replace(u, audio_sha256="0" * 64) if u.id == "train/s/0" else u for u in utterances]
    others = {group.name: group.digest for group in feature_groups(params, "audio", changed)}
    assert [name for name in every if others[name] != every[name]] == ["train/clean"]


def test_digests_follow_the_encoder(params, folder):
    utterances = read_manifest(params.corpus.out)

    def digest(stream: str, *more: str) -> str:
        changed = load_params(ROOT / "params.yaml", overrides(folder) + list(more))
        return feature_groups(changed, stream, utterances)[0].digest

    usual = digest("audio")
    assert digest("audio", "features.batch_size=5", "features.video.coefficients=7") == usual
    precisions = {digest("audio", f"features.audio.precision={p}") for p in ("float32", "bfloat16")}
    assert usual in precisions
    assert len(precisions) == 2
    assert digest("video", "features.video.coefficients=7") != digest("video")
    shutil.copytree(folder / "weights", folder / "elsewhere")
    assert digest("audio", f"features.audio.weights={folder / 'elsewhere'}") == usual
    tensors = folder / "elsewhere" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    (folder / "elsewhere").rename(folder / "other")
    assert digest("audio", f"features.audio.weights={folder / 'other'}") != usual


def test_a_new_condition_adds_only_its_own_group(params):
    utterances = read_manifest(params.corpus.out)
    before = extract_features(params, "audio", [u for u in utterances if u.snr is None])
    times = [(path / "features.f16").stat().st_mtime_ns for path in before]
    after = extract_features(params, "audio", utterances)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    assert [(path / "features.f16").stat().st_mtime_ns for path in before] == times


def test_noisy_copies_share_a_video(params):
    utterances = read_manifest(params.corpus.out)
    extract_features(params, "video")
    groups = feature_groups(params, "video", utterances)
    features = Features(groups)
    assert [group.name for group in groups] == ["train", "validation", "test"]
    index = json.loads((groups[2].folder / "index.json").read_text())
    assert len(index["media"]) == COUNTS["test"]
    assert np.shares_memory(features["test/s/1"], features["test/s/1+0dB"])
    clean = feature_groups(params, "video", [u for u in utterances if u.snr is None])
    assert [group.digest for group in clean] == [group.digest for group in groups]


def test_without_audio_noisy_copies_are_not_evaluated(params):
    utterances = read_manifest(params.corpus.out)
    heard = evaluation_utterances(utterances, ["test"], ("audio", "video"))
    assert [u.condition for u in heard] == ["clean"] * COUNTS["test"] + ["snr_0"] * COUNTS["test"]
    clean = [u for u in utterances if u.split == "test" and u.snr is None]
    assert list(evaluation_utterances(utterances, ["test"], ("video",))) == clean
    assert list(evaluation_utterances(utterances[::-1], ["test"], ("video",))) == clean[::-1]
    # Without a clean version, one noisy copy is evaluated as clean.
    noisy = [u for u in utterances if u.condition == "snr_0"]
    louder = [replace(u, id=f"{u.id}-", snr=-5.0) for u in noisy]
    seen = evaluation_utterances(noisy + louder, ["test"], ("video",))
    assert [(u.id, u.condition) for u in seen] == [(u.id, "clean") for u in noisy]
    digests = {group.digest for group in feature_groups(params, "video", clean)}
    assert digests == {group.digest for group in feature_groups(params, "video", heard)}


class Counting:
    """An encoder whose results depend on the batch size."""

    def __init__(self) -> None:
        self.network, self.given = torch.nn.Linear(1, 1), []

    def vectors(self, inputs):
        self.given.append(len(inputs))
        return [torch.full((len(one), 2), float(one.sum()) + len(inputs)) for one in inputs]

    def encode(self, inputs):
        return [vectors.numpy() for vectors in self.vectors(inputs)]


def test_online_encoding_encodes_a_video_once_for_all_noisy_copies():
    encoder = Counting()
    encoding = FrozenEncoder(encoder)
    first, second, third = (np.full((3 + n, 4, 4), n, np.uint8) for n in range(3))
    batches = [[first, second], [second.copy(), third], [third.copy()]]
    found = [encoding.encode_cached(batch) for batch in batches]
    assert encoder.given == [1, 1, 1]
    assert torch.equal(found[0][1], found[1][0])
    assert torch.equal(found[1][1], found[2][0])
    # In training every batch is encoded.
    encoding(batches[0])
    assert encoder.given[3:] == [2]


def test_the_command_writes_results_and_is_idempotent(folder):
    first = run(folder)
    assert first.returncode == 0, first.stderr
    results = {s: json.loads((folder / "results" / "features" / f"{s}.json").read_text()) for s in ("audio", "video")}
    for groups in results.values():
        for group in groups.values():
            assert file_sha256(Path(group["folder"]) / "features.f16") == group["sha256"]
    assert results["video"]["test"]["utterances"] == 2 * COUNTS["test"]
    made = contents(folder)
    assert len(made) == 7
    script = (
        "import sys; from pipeline.features import main; main()\n"
        "assert not {'torch', 'transformers', 'scipy.signal', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, *words(folder)[2:]], check=True, cwd=folder, env=ENVIRONMENT)
    assert contents(folder) == made


def journals(folder: Path) -> Iterator[Path]:
    return (folder / "features").glob("*.partial/journal.jsonl")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_stopped_run_is_resumed(params, folder, finished, number, code):
    going = begin(folder, "audio")
    wait_until(lambda: any(len(j.read_bytes().splitlines()) >= 2 for j in journals(folder)), going, "two", every=0.001)
    going.send_signal(number)
    assert going.wait(timeout=240) == code
    (partial,) = (folder / "features").glob("*.partial")
    assert 2 <= len((partial / "journal.jsonl").read_bytes().splitlines()) < 8
    # Possible after a power cut: half a line, and rows without a line.
    with open(partial / "journal.jsonl", "ab") as journal, open(partial / "features.f16", "ab") as array:
        journal.write(b'["0123')
        array.write(b"abc")
    inode = (partial / "features.f16").stat().st_ino
    extract_features(params, "audio")
    assert contents(folder) == finished["audio"]
    assert inode in [file.stat().st_ino for file in (folder / "features").glob("*/features.f16")]
    assert not list((folder / "features").glob("*.partial"))


def test_two_processes_extract_features_once(folder, finished):
    both = [begin(folder, "audio") for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert contents(folder) == finished["audio"]
    assert not list((folder / "features").glob("*.partial"))


def test_missing_and_truncated_features_are_extracted_again(params):
    utterances = read_manifest(params.corpus.out)
    with pytest.raises(PipelineError, match=r"no audio features of train/clean.*python -m pipeline\.features audio"):
        Features(feature_groups(params, "audio", utterances))
    (path, *_) = extract_features(params, "audio")
    array = path / "features.f16"
    whole = array.read_bytes()
    array.write_bytes(whole[:-2])
    message = rf"features\.f16: has {len(whole) - 2} bytes instead of {len(whole)}; .*pipeline\.features audio"
    with pytest.raises(PipelineError, match=message):
        Features(feature_groups(params, "audio", utterances))
    extract_features(params, "audio")
    assert array.read_bytes() == whole
    (path / "index.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"index\.json: .*run: python -m pipeline.features"):
        Features(feature_groups(params, "audio", utterances))
    extract_features(params, "audio")
    assert array.read_bytes() == whole


def flip(file: Path, position: int) -> bytes:
    """Flip a bit; returns the original content."""
    whole = file.read_bytes()
    file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    return whole


def test_a_flipped_bit_in_an_array_is_noticed_at_its_use_and_repaired(params):
    utterances = read_manifest(params.corpus.out)
    path = {group.name: group.folder for group in feature_groups(params, "audio", utterances)}
    extract_features(params, "audio")
    array = path["train/clean"] / "features.f16"
    whole = flip(array, 77)
    features = Features(feature_groups(params, "audio", utterances))
    assert features["test/s/1"].any(), "the group of the test split is intact"
    with pytest.raises(PipelineError, match=r"features\.f16: has changed: .*; .*python -m pipeline\.features audio"):
        features["train/s/0"]
    # Then they count as missing, so a sweep extracts them before its trials.
    with pytest.raises(PipelineError, match="the file is missing"):
        Features(feature_groups(params, "audio", utterances))
    extract_features(params, "audio")
    assert array.read_bytes() == whole
    assert Features(feature_groups(params, "audio", utterances))["train/s/0"].any()


def test_features_that_cannot_be_opened_now_are_not_removed(params):
    utterances = read_manifest(params.corpus.out)
    extract_features(params, "audio")
    features = Features(feature_groups(params, "audio", utterances))
    with no_more_files(), pytest.raises(UnreadableError, match=r"cannot be read \(Too many open files\)"):
        features["train/s/0"]
    assert Features(feature_groups(params, "audio", utterances))["train/s/0"].any()


def test_a_flipped_digit_in_an_index_is_noticed_and_repaired(params):
    utterances = read_manifest(params.corpus.out)
    (path, *_) = extract_features(params, "audio")
    index = path / "index.json"
    whole = index.read_text()
    for change in (whole.replace('"frame_rate": 50', '"frame_rate": 51'), whole.replace("      0", "      1", 1)):
        assert change != whole
        index.write_text(change)
        with pytest.raises(PipelineError, match=r"index\.json: has changed since it was written; run: "):
            Features(feature_groups(params, "audio", utterances))
        extract_features(params, "audio")
        assert index.read_text() == whole


def test_rows_that_changed_during_a_run_are_encoded_again(params, folder, finished, monkeypatch):
    dct, calls = encoder_kind("dct"), []
    encode = dct.encode

    def dying(self, inputs: list) -> list:
        calls.append(len(inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, inputs)

    monkeypatch.setattr(dct, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        extract_features(params, "video")
    (partial,) = (folder / "features").glob("*.partial")
    assert len((partial / "journal.jsonl").read_bytes().splitlines()) == 6
    flip(partial / "features.f16", (partial / "features.f16").stat().st_size // 2)
    extract_features(params, "video")
    assert contents(folder) == finished["video"]


@pytest.mark.parametrize(("stream", "file"), [("audio", "test/2.wav"), ("video", "test/2.mp4")])
def test_a_damaged_file_is_one_error_and_finished_work_is_kept(folder, stream, file):
    os.truncate(folder / "corpus" / file, 600)
    ended = run(folder, stream)
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert file in line
    assert "pipeline.prepare" in line
    assert "Traceback" not in ended.stderr
    assert len(contents(folder)) == 3
    assert len(list((folder / "features").glob("*.partial"))) == 1


def test_a_file_that_changed_since_the_manifest_is_refused(params, folder):
    write_audio(folder / "corpus" / "train" / "3.wav", np.full(16_000, 0.1, np.float32))
    with pytest.raises(PipelineError, match=r"train/3\.wav: differs from its SHA-256 in the manifest"):
        extract_features(params, "audio")


def test_a_corpus_without_video(params, folder):
    silent = [replace(u, video=None, video_sha256=None, video_frames=None) for u in read_manifest(params.corpus.out)]
    with pytest.raises(PipelineError, match=r"utterance train/s/0: has no video; set model\.modality to audio"):
        feature_groups(params, "video", silent)
    write_manifest(folder / "corpus", silent)
    assert run(folder).returncode == 0
    assert [file.name for file in (folder / "results" / "features").iterdir()] == ["audio.json"]
    # As DVC calls it, for every corpus.
    ended = run(folder, "video")
    assert (ended.returncode, ended.stdout) == (0, "video: the corpus has none\n")
    assert json.loads((folder / "results" / "features" / "video.json").read_text()) == {}


def test_a_group_that_cannot_be_moved_is_not_encoded_again(params):
    group = feature_groups(params, "audio", read_manifest(params.corpus.out))[0]
    rows = {"a": np.ones((3, 4), np.float16), "b": np.zeros((2, 4), np.float16)}
    with group_writer(group, 4) as writer:
        writer.append(rows)
        group.folder.touch()
        with pytest.raises(NotADirectoryError):
            writer.finish(50)
    group.folder.unlink()
    with group_writer(group, 4) as writer:
        assert writer.media == {"a": [0, 3], "b": [3, 2]}
        writer.finish(50)
    assert sorted(path.name for path in group.folder.iterdir()) == ["features.f16", "index.json"]


def test_a_run_after_a_full_disk_resumes(folder, finished):
    limit = 9000
    ended = subprocess.run(
        [sys.executable, *words(folder, "video")], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert ended.returncode == 1
    assert "features.f16: cannot be written" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    ended = run(folder, "video")
    assert ended.returncode == 0, ended.stderr
    assert contents(folder) == finished["video"]


def test_a_disk_that_is_too_small_is_refused_first(params, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(PipelineError, match=r"video features of train needs .* [kM]B and 1\.0 kB are free"):
        extract_features(params, "video")


def test_an_unknown_stream_is_refused(folder):
    ended = run(folder, "smell")
    assert ended.returncode == 2
    assert "unknown stream 'smell'" in ended.stderr
