"""A comparison as files: the table in every form, and the figures, drawn again only where something has changed."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, read_json, write_json, write_text, written_whole
from pipeline.common.verified import fault, sha256_of
from pipeline.comparison import front, rendering
from pipeline.comparison.answer import answers
from pipeline.comparison.claims import claims, markdown, summary
from pipeline.comparison.front import SearchResult
from pipeline.comparison.table import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = "figures.json"
"""Names the figures and what they were drawn from."""


def write_comparison(comparison: Comparison, folder: Path, search: SearchResult | None = None) -> list[Path]:
    """Write tables and figures into `folder`; those of an earlier comparison there are replaced.

    `table.txt`, `table.md`, `table.tex`, `table.csv` (a line for each task and variant), `metrics.csv` (a line for each
    trial and metric), `claims.md` (what the paper says of sinks, held against the trials), and each figure as PNG, PDF
    and SVG. Loads matplotlib only if there is something to draw.

    Args:
        comparison: the table.
        folder: made if it is new.
        search: what a search tried; then `comparison` has the trials of its front. Adds `search.md` and `search.csv`
            (a line for each point), its figures, and its table above that of `table.txt`.

    Returns:
        All files of the comparison.
    """
    found = claims(comparison)
    tables = {
        "table.txt": f"{headline(comparison, search)}{rendering.text(comparison)}\n{summary(found)}",
        "table.md": rendering.markdown(comparison),
        "table.tex": rendering.latex(comparison),
        "table.csv": rendering.csv_table(comparison),
        "metrics.csv": rendering.long_csv(comparison),
        "claims.md": markdown(found),
    }
    if search:
        tables |= {"search.md": front.markdown(search), "search.csv": front.csv_text(search)}
    for name, content in tables.items():
        write_text(folder / name, content)
    return [folder / name for name in tables] + _figures(comparison, folder, search)


def headline(comparison: Comparison, search: SearchResult | None = None) -> str:
    """What stands above the table: the answer, and what a search tried."""
    blocks = ["".join(f"{line}\n" for line in answers(comparison)), front.text(search) if search else ""]
    return "".join(f"{block}\n" for block in blocks if block)


def _figures(comparison: Comparison, folder: Path, search: SearchResult | None) -> list[Path]:
    source = _source(comparison, search)
    known = _known(folder)
    files = [folder / name for name in known["files"]]
    if known["source"] == source and not any(fault(folder / name, sha) for name, sha in known["files"].items()):
        return files
    from pipeline.comparison.figures import comparison_figures
    from pipeline.sinks.figures import save

    drawn = []
    figures = comparison_figures(comparison)
    if search:
        from pipeline.comparison.front_figures import search_figures

        figures |= search_figures(search)
    for name, figure in figures.items():
        drawn += [*save(figure, folder / name), _save_svg(figure, folder / f"{name}.svg")]
    for file in set(files) - set(drawn):
        file.unlink(missing_ok=True)
    write_json(folder / DRAWN, {"source": source, "files": {file.name: sha256_of(file) for file in drawn}})
    return drawn


def _save_svg(figure: "Figure", file: Path) -> Path:
    """For a page: letters as shapes, so that it looks alike everywhere. Equal figures give equal files."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": file.stem}), written_whole(file) as beside:
        figure.savefig(beside, metadata={"Date": None})
    return file


def _known(folder: Path) -> dict:
    try:
        known = read_json(folder / DRAWN, "")
        return {"source": known["source"], "files": dict(known["files"])}
    except (PipelineError, KeyError, TypeError, ValueError):
        # Missing, spoilt, or of an earlier version.
        return {"source": None, "files": {}}


def _source(comparison: Comparison, search: SearchResult | None) -> str:
    """Digest of all that the figures show: the table, the arrays, the code that draws."""
    arrays = {e.identity: sha256_of(e.trial.sinks) for e in comparison.entries if e.trial.sinks.exists()}
    drawn = [rendering.csv_table(comparison), arrays, code_digest("pipeline.comparison.figures")]
    if search:
        drawn += [front.csv_text(search), code_digest("pipeline.comparison.front_figures")]
    return digest(drawn)
