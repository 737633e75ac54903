"""Verification of files: seals, folders, journals, and caching."""

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common import verified
from pipeline.common.errors import PipelineError
from pipeline.common.journal import append_values, read_journal
from pipeline.common.verified import (
    cached_read,
    folder_fault,
    is_seal_line_wrong,
    read_sealed,
    require_sha256,
    seal_folder,
    sha256_fault,
    with_seal_line,
    write_sealed,
)
from pipeline.trials.metrics_log import MetricsLog

VALUE = {"metrics": {"wer/test": 1e-05, "seal": "x"}, "name": "Zürich"}


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def test_a_sealed_file_is_read_as_written(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", VALUE)
    assert read_sealed(tmp_path / "a.json", "create it") == (VALUE, True)
    (tmp_path / "old.json").write_text(json.dumps(VALUE))
    assert read_sealed(tmp_path / "old.json", "create it") == (VALUE, False)


def test_each_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    unsealed, errors = [], set()
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        try:
            value, sealed = read_sealed(path, "create it")
        except PipelineError as error:
            errors.add(str(error).partition(": ")[0] + str(error)[-len("; create it") :])
        else:
            assert not sealed, "a changed file that says it is sealed"
            unsealed.append(value)
    assert errors == {f"{path}; create it"}
    # The key `seal` itself was changed: a reader that requires a seal, or knows the keys, refuses the file.
    assert all(value.keys() - VALUE.keys() for value in unsealed)


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_truncated_file_gives_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(PipelineError, match=r"a\.json: .*; create it"):
        read_sealed(tmp_path / "a.json", "create it")


def test_each_bit_below_a_seal_line_counts() -> None:
    text = with_seal_line("beams: 15\nruns: runs\n")
    assert not is_seal_line_wrong(text)
    assert not is_seal_line_wrong("beams: 15\n")
    begin = 8 * (text.index("\n") + 1)
    assert all(is_seal_line_wrong(flipped(text.encode(), bit).decode("latin-1")) for bit in range(begin, 8 * len(text)))
    assert is_seal_line_wrong(text[:-1])


def test_changes_to_a_sealed_folder_are_detected(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    for name in ("a.bin", "video/b.bin"):
        (tmp_path / name).write_bytes(b"weights")
    seal_folder(tmp_path)
    assert folder_fault(tmp_path) is None
    (tmp_path / "video/b.bin").write_bytes(b"weighus")
    assert folder_fault(tmp_path).startswith("video/b.bin has changed: its SHA-256 was ")
    (tmp_path / "video/b.bin").unlink()
    assert folder_fault(tmp_path) == "files are missing or were added: video/b.bin"
    (tmp_path / "video/b.bin").write_bytes(b"weights")
    (tmp_path / "c.bin").touch()
    assert folder_fault(tmp_path) == "files are missing or were added: c.bin"
    (tmp_path / "c.bin").unlink()
    (tmp_path / "complete.json").write_bytes(b"")
    assert folder_fault(tmp_path).startswith("complete.json: invalid JSON: ")
    (tmp_path / "complete.json").write_text("{}")
    assert folder_fault(tmp_path) == "complete.json lists no files"
    (tmp_path / "complete.json").unlink()
    assert folder_fault(tmp_path) == "complete.json: the file is missing"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "a", []

    def read(path: Path) -> bytes:
        reads.append(path)
        return path.read_bytes()

    file.write_bytes(b"one")
    assert [cached_read(read, file) for _ in range(3)] == [b"one"] * 3
    assert len(reads) == 3, "it is so new that it may change again within one tick of the clock"
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1)
    assert [cached_read(read, file) for _ in range(3)] == [b"one"] * 3
    assert len(reads) == 4
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_read(read, file) == b"two", "size and time of writing are as before; the time of change is not"


def test_faults_of_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert sha256_fault(tmp_path / "none", "0" * 64) == "is missing"
    assert sha256_fault(tmp_path / "folder", "0" * 64) == "is not a file"
    (tmp_path / "a").touch()
    with pytest.raises(
        PipelineError, match=r"a: has changed: its SHA-256 was 000000000000 and is e3b0c44298fc; create it"
    ):
        require_sha256(tmp_path / "a", "0" * 64, "create it")


# Journal.


def test_a_journal_resumes_after_any_number_of_kills(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number in range(3):
        assert read_journal(path) == [[str(before), "wörter\u2028"] for before in range(number)]
        append_values(path, [str(number), "wörter\u2028"])
        assert path.read_bytes().endswith(b"\n")
        with open(path, "ab") as opened:
            opened.write(b'[["3", "wo')
    assert read_journal(path) == [[str(number), "wörter\u2028"] for number in range(3)]


def test_a_corrupt_line_of_a_journal_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    append_values(path, ["a", "yes"], ["b", "no"], ["c", "perhaps"])
    whole = path.read_bytes()
    first = 8 * whole.index(b"\n")
    for bit in range(first):
        path.write_bytes(flipped(whole, bit))
        assert read_journal(path) == [["b", "no"], ["c", "perhaps"]]
    for content in (b"", b"\0" * 99, b"\0" * 99 + b"\n", b"null\n1\n[1]\n\xff\n"):
        path.write_bytes(content)
        assert read_journal(path) == []


@pytest.mark.parametrize(
    ("append", "read"),
    [
        (append_values, read_journal),
        (
            lambda path, step: MetricsLog(path).append(step, {"a": 1.0}),
            lambda path: [record["step"] for record in MetricsLog(path).read()[0]],
        ),
    ],
)
def test_a_full_disk_leaves_complete_lines(tmp_path: Path, append: Callable, read: Callable) -> None:
    path = tmp_path / "lines"
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    append(path, 1)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            append(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert path.stat().st_size == size
    append(path, 2)
    assert read(path) == [1, 2]
