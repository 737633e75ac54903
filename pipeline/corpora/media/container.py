"""Detection of truncated media files, by the sizes in their container (wav, AVI, AIFF, mp4 and mov, Matroska), or by
their last packet.

The decoding libraries silently read a truncated file as a shorter one.
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO

from pipeline.common.errors import PipelineError
from pipeline.corpora.manifest import PREPARE_AGAIN
from pipeline.corpora.media.packets import truncated_packet

RIFF = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">", b"FORM": ">"}
"""First bytes of formats that consist of chunks, and the byte order of their sizes."""
LARGE = {b"RF64", b"BW64"}
"""Wavs that may exceed 4 GB; a separate chunk has the 64-bit sizes, if the writer filled them in."""
SAMPLES = {b"data", b"SSND"}
"""Chunks of samples, in a wav and in an AIFF."""
BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx"}
"""First boxes of an mp4 or a mov."""
NEEDED_BOXES = {b"moov", b"moof", b"mdat"}
MATROSKA, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
PLACEHOLDERS = (0x80000000, (1 << 32) - 1, (1 << 64) - 1)
"""Upper bounds of the placeholder sizes of a file that was written to a pipe."""
HEADER = 1 << 12
"""Maximum bytes of a placeholder below its bound: the header, or rounding to whole blocks."""


def require_complete(path: Path) -> None:
    """Check the sizes that a container states; a container without sizes passes.

    Raises:
        PipelineError: the file is truncated.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        fault = None
        if head[:4] in RIFF and len(head) == 12:
            fault = _truncated_chunk(file, head, path.stat().st_size)
        elif head[4:8] in BOXES:
            fault = _truncated_box(file, path.stat().st_size)
        elif head[:4] == MATROSKA:
            fault = _truncated_segment(file, path.stat().st_size)
        else:
            fault = truncated_packet(file, head, path.stat().st_size)
    if fault is not None:
        raise PipelineError(path, f"truncated: {fault}", PREPARE_AGAIN)


def is_wav(path: Path) -> bool:
    """Whether a file starts like a wav of any size and byte order."""
    with open(path, "rb") as file:
        head = file.read(12)
    return len(head) == 12 and head[:4] in RIFF and head[8:] == b"WAVE"


def repaired_wav(path: Path) -> BinaryIO | None:
    """A wav with a corrected size in memory; None if libsndfile reads the file itself to its end.

    It does not if the header has no sample count but the file continues, and for BW64.
    """
    if not is_wav(path):
        return None
    with open(path, "rb") as file:
        head, size = file.read(12), path.stat().st_size
        order = RIFF[head[:4]]
        name, length, large = b"", 0, 0
        while name != b"data" and len(header := file.read(8)) == 8:
            name, length = struct.unpack(f"{order}4sI", header)
            large = _large(file) if name == b"ds64" else large
            if name != b"data":
                file.seek(length + length % 2, 1)
        begin = file.tell()
        (stated,) = struct.unpack(f"{order}I", head[4:8])
        end = begin if _is_placeholder(stated) else max(stated + 8, begin)
        is_open = (length == 0 and size > end) or (head[:4] in LARGE and length == 0xFFFFFFFF and not large)
        if name != b"data" or not (is_open or head[:4] == b"BW64"):
            return None
        file.seek(0)
        content = bytearray(file.read())
    content[:4] = b"RIFX" if order == ">" else b"RIFF"
    samples = size - begin if is_open else min(large or length, size - begin)
    struct.pack_into(f"{order}I", content, begin - 4, min(samples, 0xFFFFFFFF))
    return io.BytesIO(content)


def _large(file: BinaryIO) -> int:
    """The size of the samples according to a chunk `ds64` at this position; 0 if not filled in."""
    content = file.read(16)
    file.seek(-len(content), 1)
    size = int.from_bytes(content[8:], "little")
    return 0 if size == PLACEHOLDERS[-1] else size


def _truncated_chunk(file: BinaryIO, head: bytes, size: int) -> str | None:
    order, large = RIFF[head[:4]], 0
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", header)
        left = size - file.tell()
        large = _large(file) if name == b"ds64" else large
        if name in SAMPLES and large and length == 0xFFFFFFFF:
            length = large
        if length > left:
            # An AVI plays without its index and the chunks after it.
            is_open = name in SAMPLES and _is_placeholder(length)
            is_spare = head[8:] == b"AVI " and name not in (b"LIST", b"RIFF")
            return None if is_open or is_spare else _missing("chunk", name, left, length)
        if name in SAMPLES:
            return None
        file.seek(length + length % 2, 1)
    return "there is no data chunk" if head[8:] == b"WAVE" else None


def _is_placeholder(length: int) -> bool:
    return any(0 <= bound - length <= HEADER for bound in PLACEHOLDERS)


def _truncated_box(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        begin = file.tell() - 8
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:
            # 0 is up to the end of the file; a shorter size is invalid.
            return None
        if length > size - begin:
            return _missing("box", name, size - begin, length) if name in NEEDED_BOXES else None
        file.seek(begin + length)
    return None


def _truncated_segment(file: BinaryIO, size: int) -> str | None:
    file.seek(len(MATROSKA))
    header = _variable_size(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return None
    length, left = _variable_size(file), size - file.tell()
    return None if length is None or length <= left else _missing("segment", b"", left, length)


def _variable_size(file: BinaryIO) -> int | None:
    """An EBML size, whose first set bit gives its number of bytes; None if unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _missing(kind: str, name: bytes, present: int, length: int) -> str:
    label = f"{kind} {name.decode('ascii', 'replace')!r}" if name else kind
    return f"{label} has {present} of {length} bytes"
