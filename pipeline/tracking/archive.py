"""The archives of sources that trials keep."""

import io
import tarfile
from pathlib import Path
from typing import Any

from pipeline.common.files import file_sha256


def archived_sources(trial: Path, session: dict[str, Any]) -> dict[str, bytes] | None:
    """The sources that a session ran, by name; None where the archive is missing or not as it was written.

    Args:
        trial: the folder.
        session: of its `provenance.json`.
    """
    file = trial / session["source"]["file"]
    if not file.is_file() or file_sha256(file) != session["source"]["sha256"]:
        return None
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}
