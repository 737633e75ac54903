"""Detection of truncated Ogg, MP3 and MPEG program stream files by their last packet.

These formats do not state the size of the file; an interrupted copy or download ends inside a packet.
"""

import io
from collections.abc import Callable
from typing import BinaryIO

OGG, ID3, PACK = b"OggS", b"ID3", b"\x00\x00\x01\xba"
LAST_PAGE = 0x04
"""Flag of the last page of an Ogg stream."""
START_CODE = b"\x00\x00\x01"
PACK_CODE, END_CODE, FIRST_STREAM = 0xBA, 0xB9, 0xBB
"""Start codes of MPEG program streams: pack header, end, and the lowest code of a packet that states its length."""
SAMPLE_RATES = (44100, 48000, 32000)
BIT_RATES = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s of layer III by index, for MPEG-1 and for MPEG-2 and 2.5."""
SIZE_STATED = 0x02
"""Flag of the Xing header: the number of bytes follows."""


def truncated_packet(file: BinaryIO, head: bytes, size: int) -> str | None:
    """Describe how the last packet is incomplete; None if it is complete, or the file has another format. The file is
    open for reading, at any position; `head` are its first 12 bytes, and `size` is its size in bytes."""
    walk: Callable[[BinaryIO, int], str | None] | None = None
    if head[:4] == OGG:
        walk = _truncated_ogg
    elif head[:4] == PACK:
        walk = _truncated_program_stream
    elif head[:3] == ID3 or _frame_bytes(head[:4]):
        walk = _truncated_mp3
    if walk is None:
        return None
    file.seek(0)
    return walk(file, size)


def _truncated_ogg(file: BinaryIO, size: int) -> str | None:
    is_last = False
    while len(header := file.read(27)) == 27 and header[:4] == OGG:
        lengths = file.read(header[26])
        is_last = bool(header[5] & LAST_PAGE)
        length = sum(lengths)
        if len(lengths) < header[26] or length > size - file.tell():
            return "its last page is incomplete"
        file.seek(length, io.SEEK_CUR)
    return "its last page is incomplete" if 0 < len(header) < 27 and not is_last else None


def _truncated_program_stream(file: BinaryIO, size: int) -> str | None:
    while len(code := file.read(4)) == 4 and code[:3] == START_CODE and code[3] != END_CODE:
        if code[3] == PACK_CODE:
            first = file.read(1)
            is_mpeg2 = bool(first) and first[0] >> 6 == 1
            rest = file.read(9 if is_mpeg2 else 7)
            stuffing = rest[-1] & 7 if is_mpeg2 and rest else 0
            file.seek(stuffing, io.SEEK_CUR)
        elif code[3] >= FIRST_STREAM:
            length = int.from_bytes(file.read(2), "big")
            if length > (left := size - file.tell()):
                return f"its last packet has {max(left, 0)} of {length} bytes"
            file.seek(length, io.SEEK_CUR)
        else:
            return None
    return None


def _truncated_mp3(file: BinaryIO, size: int) -> str | None:
    """Fewer bytes than stated, and an incomplete last frame; one that ends between frames counts as whole."""
    begin = 0
    if (tag := file.read(10))[:3] == ID3:
        begin = 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(tag[6:10]))
    file.seek(begin)
    stated = _stated_bytes(file.read(64))
    if stated is None or stated <= size - begin:
        return None
    place = begin
    while True:
        file.seek(place)
        length = _frame_bytes(file.read(4))
        if not length:
            return None
        if place + length > size:
            return f"it has {size - begin} of {stated} bytes"
        place += length


def _stated_bytes(frame: bytes) -> int | None:
    """Size of all frames according to the Xing header of the first frame."""
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or len(frame) < place + 16:
        return None
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    if not flags & SIZE_STATED:
        return None
    # The number of frames comes first, if stated.
    offset = place + 8 + 4 * (flags & 1)
    return int.from_bytes(frame[offset : offset + 4], "big")


def _frame_bytes(header: bytes) -> int:
    """Length of a layer III frame with its header; 0 without a valid header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bit_index, rate_index = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_index in (0, 15) or rate_index == 3:
        return 0
    is_first = version == 3
    sample_rate = SAMPLE_RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if is_first else 72) * 1000 * BIT_RATES[is_first][bit_index] // sample_rate + (header[2] >> 1 & 1)
