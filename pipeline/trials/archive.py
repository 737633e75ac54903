"""The archives of sources that trials keep. They may come from a stranger: nothing is unpacked here."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.common.files import file_sha256

LIMIT = 64 << 20
"""Bytes of all sources; more is damage, or meant to fill the memory."""


def archived_sources(trial: Path, session: dict[str, Any]) -> dict[str, bytes] | None:
    """The sources that a session ran, by name; links and devices are left out.

    Args:
        trial: the folder.
        session: of its `provenance.json`.

    Returns:
        None where the archive is missing, or not as it was written.
    """
    kept = session.get("source") or {}
    file = trial / (kept.get("file") or "source.tar.gz")
    if not file.is_file() or file_sha256(file) != kept.get("sha256"):
        return None
    try:
        with gzip.open(file) as zipped:
            content = zipped.read(LIMIT + 1)
        if len(content) > LIMIT:
            return None
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive.getmembers() if member.isreg())
            return {name: file.read() for name, file in files if file is not None}
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError):
        return None
