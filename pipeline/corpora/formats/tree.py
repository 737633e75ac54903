"""Files of a recorded corpus: listing them, and checks of the files and their names."""

import mimetypes
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.corpora.reader import MISSING, SkippedClip, Unusable, open_error

AUDIO_ENDINGS = (
    ".wav", ".flac", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".w64", ".voc", ".sph", ".wv", ".ape", ".tta",
    ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".m4a", ".m4b", ".aac", ".wma", ".amr", ".awb", ".ac3", ".eac3",
    ".dts", ".mka", ".weba", ".spx", ".gsm", ".ra",
)  # fmt: skip
"""Endings of audio files. Among files of the same name, the ending that comes first here is preferred."""
VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".ts", ".mts",
    ".m2ts", ".vob", ".3gp", ".3g2", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogm", ".mxf", ".dv", ".divx", ".mjpeg",
    ".h264", ".264", ".hevc", ".y4m", ".rm", ".rmvb",
)  # fmt: skip
"""Endings of video files, likewise."""
_ENDINGS = mimetypes.MimeTypes(filenames=())
"""Built-in types only, which are equal on every machine."""
REMEDY = "set corpus.root to the folder of the corpus"
MAX_NAME_BYTES = 200
"""Maximum bytes of a name. File systems allow 255, and media get longer names than their sources."""


def files_below(
    root: Path, skipped: list[SkippedClip], start: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each folder at or below `start`, as parts relative to the root, with its sorted files; without hidden files and
    folders.

    Cyclic links are not followed. Unreadable folders are added to `skipped`. PipelineError if the first folder cannot
    be read.
    """
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [(start, frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if parts == start:
                raise PipelineError(folder, f"cannot be read ({error.strerror})", REMEDY) from None
            skipped.append(open_error(folder, error).skip("/".join(parts), "train"))
            continue
        this = (status.st_dev, status.st_ino)
        if this in above:
            continue
        folders = [entry.name for entry in entries if not entry.name.startswith(".") and _is(entry.is_dir)]
        waiting += [((*parts, name), above | {this}) for name in reversed(folders)]
        files = [entry for entry in entries if not entry.name.startswith(".") and not _is(entry.is_dir)]
        for entry in files:
            if not _is(entry.is_file):
                fault = file_fault(folder / entry.name) or Unusable("not a file", entry.name)
                skipped.append(fault.skip("/".join([*parts, entry.name]), "train"))
        yield parts, [entry.name for entry in files if _is(entry.is_file)]


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:
        # A cyclic link, or a target without permission.
        return False


def preference(name: str) -> tuple[int, str]:
    """Sort key that puts the preferred file first among files that differ only in their ending."""
    ending = os.path.splitext(name)[1].lower()
    order = AUDIO_ENDINGS + VIDEO_ENDINGS
    return order.index(ending) if ending in order else len(order), name


def is_recording(name: str) -> bool:
    """Whether a file is audio or video by its ending, in a supported format or not."""
    ending = os.path.splitext(name)[1]
    media_type = _ENDINGS.guess_type(f"x{ending}")[0] or ""
    return ending.lower() in AUDIO_ENDINGS + VIDEO_ENDINGS or media_type.startswith(("audio/", "video/"))


def file_fault(path: Path) -> Unusable | None:
    """The reason to skip a clip because of this file; None if it is a regular file. It is not opened."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        return open_error(path, error)
    except ValueError:
        return Unusable(MISSING, path.name)
    # Opening a pipe would block.
    return None if stat.S_ISREG(kind) else Unusable("not a file", path.name)


def name_fault(names: Iterable[str]) -> Unusable | None:
    """The reason to skip a clip because of these names of folders and files; None if its media can have them."""
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            return Unusable("its name is not UTF-8", name)
        if any(unicodedata.category(character) == "Cc" for character in name):
            return Unusable("its name has a control character", name)
        if name in ("", ".", "..") or "/" in name:
            return Unusable("its path leads elsewhere", name)
        if (size := len(name.encode())) > MAX_NAME_BYTES:
            return Unusable("its name is too long", f"{size} bytes; at most {MAX_NAME_BYTES}")
    return None
