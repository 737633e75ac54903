"""The files of a recorded corpus on disk: finding them, and checking that they and their names can be used."""

import mimetypes
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.corpora.reader import SkippedClip, Unusable, refused, shown

AUDIO = (
    ".wav", ".flac", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".w64", ".voc", ".sph", ".wv", ".ape", ".tta",
    ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".m4a", ".m4b", ".aac", ".wma", ".amr", ".awb", ".ac3", ".eac3",
    ".dts", ".mka", ".weba", ".spx", ".gsm", ".ra",
)  # fmt: skip
"""Endings of files with sound alone. Of files of one name, that whose ending comes first here is taken."""
VIDEO = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".ts", ".mts",
    ".m2ts", ".vob", ".3gp", ".3g2", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".ogm", ".mxf", ".dv", ".divx", ".mjpeg",
    ".h264", ".264", ".hevc", ".y4m", ".rm", ".rmvb",
)  # fmt: skip
"""Endings of files with a picture, likewise."""
_ENDINGS = mimetypes.MimeTypes(filenames=())
"""Python's own, as they are on every machine."""
REMEDY = "name the folder of the corpus as corpus.root"
LONGEST_NAME = 200
"""Bytes of a name. A disk takes 255, and what is made of a file has a longer name than its own."""


def files_below(
    root: Path, skipped: list[SkippedClip], start: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each folder at or below `start`, as names from the root, with its files but for hidden ones, all sorted.

    A link in a folder to itself or to one above is not followed. A folder that cannot be read is added to `skipped`.

    Raises:
        PipelineError: the first folder cannot be read.
    """
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [(start, frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        try:
            about = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if parts == start:
                raise PipelineError(folder, f"cannot be read ({error.strerror})", REMEDY) from None
            skipped.append(refused(folder, error).skip("/".join(parts), "train"))
            continue
        this = (about.st_dev, about.st_ino)
        if this in above:
            continue
        folders = [entry.name for entry in entries if _is(entry.is_dir)]
        waiting += [((*parts, name), above | {this}) for name in reversed(folders)]
        others = [entry for entry in entries if not entry.name.startswith(".") and not _is(entry.is_dir)]
        for entry in others:
            if not _is(entry.is_file):
                fault = missing(folder / entry.name) or Unusable("not a file", shown(entry.name))
                skipped.append(fault.skip("/".join([*parts, entry.name]), "train"))
        yield parts, [entry.name for entry in others if _is(entry.is_file)]


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:
        # A link that leads to itself, or to where one may not look.
        return False


def preference(name: str) -> tuple[int, str]:
    """What files are sorted by, so that the first is taken where several have one name but for its ending."""
    ending = os.path.splitext(name)[1].lower()
    order = AUDIO + VIDEO
    return order.index(ending) if ending in order else len(order), name


def is_recording(name: str) -> bool:
    """Whether a file is one of sound or picture by its ending, in a format that is read or not."""
    return os.path.splitext(name)[1].lower() in AUDIO + VIDEO or bool(
        re.match("(audio|video)/", _ENDINGS.guess_type(f"x{os.path.splitext(name)[1]}")[0] or "")
    )


def missing(path: Path) -> Unusable | None:
    """The reason to skip a clip of which a file cannot be read; None if the file is there. It is not opened."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        return refused(path, error)
    except ValueError:
        return Unusable("a file is missing", shown(path.name))
    # A pipe would be waited for.
    return None if stat.S_ISREG(kind) else Unusable("not a file", shown(path.name))


def unusable_name(names: Iterable[str]) -> Unusable | None:
    """The reason to skip a clip whose media cannot have a name that is made of these, of folders and files."""
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            return Unusable("its name is not UTF-8", shown(name))
        if any(unicodedata.category(character) == "Cc" for character in name):
            return Unusable("its name has a control character", shown(name))
        if name in ("", ".", "..") or "/" in name:
            return Unusable("its path leads elsewhere", shown(name))
        if (size := len(name.encode())) > LONGEST_NAME:
            return Unusable("its name is too long", f"{size} bytes; at most {LONGEST_NAME}")
    return None
