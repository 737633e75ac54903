"""A comparison as files: the table in every form, and the figures, drawn again only where something has changed."""

from pathlib import Path

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256, read_json, write_json, write_text
from pipeline.comparison.table import Comparison

DRAWN = "figures.json"
"""Names the figures and what they were drawn from."""


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write tables and figures into `folder`; those of an earlier comparison there are replaced.

    `table.txt`, `table.md`, `table.tex`, `table.csv` (a line for each task and variant), `metrics.csv` (a line for each
    trial and metric), and each figure as PNG and PDF. Loads matplotlib only if there is something to draw.

    Returns:
        All files of the comparison.
    """
    tables = {
        "table.txt": comparison.text(),
        "table.md": comparison.markdown(),
        "table.tex": comparison.latex(),
        "table.csv": comparison.csv(),
        "metrics.csv": comparison.long_csv(),
    }
    for name, content in tables.items():
        write_text(folder / name, content)
    return [folder / name for name in tables] + _figures(comparison, folder)


def _figures(comparison: Comparison, folder: Path) -> list[Path]:
    source = _source(comparison)
    known = _known(folder)
    files = [folder / name for name in known["files"]]
    if known["source"] == source and all(file.exists() for file in files):
        return files
    from pipeline.comparison.figures import write_figures

    drawn = write_figures(comparison, folder)
    for file in set(files) - set(drawn):
        file.unlink(missing_ok=True)
    write_json(folder / DRAWN, {"source": source, "files": sorted(file.name for file in drawn)})
    return drawn


def _known(folder: Path) -> dict:
    try:
        return read_json(folder / DRAWN, "")
    except PipelineError:
        return {"source": None, "files": []}


def _source(comparison: Comparison) -> str:
    """Digest of all that the figures show: the table, the arrays, the code that draws."""
    arrays = {e.identity: file_sha256(e.trial.sinks) for e in comparison.entries if e.trial.sinks.exists()}
    return digest([comparison.csv(), arrays, code_digest("pipeline.comparison.figures")])
