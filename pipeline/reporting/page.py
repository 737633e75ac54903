"""The report of a sweep as one self-contained HTML page."""

import base64
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.comparison import rendering
from pipeline.comparison.claims import NOTES, claims
from pipeline.comparison.entries import Task
from pipeline.comparison.output import answers
from pipeline.comparison.quantities import sink_counts
from pipeline.comparison.search_result import SearchResult, search_text
from pipeline.comparison.table import Comparison
from pipeline.reporting.media import Players, data_url
from pipeline.reporting.parallel_coordinates import parallel_coordinates
from pipeline.reporting.provenance import shared_facts, trial_provenance
from pipeline.reporting.utterances import Extremes, extremes

TEMPLATES = Path(__file__).parent
BROAD = 1000
"""Width of a PNG in pixels above which the figure has several panels in a row."""
CAPTIONS = {
    "pareto_front": "Pareto front of the search: points that no other point dominates; bars are the standard deviation "
    "over seeds.",
    "against_keys": "Each metric against each searched key; points of the Pareto front in blue.",
    "overview": "Without and with the decorrelation loss: the largest activations after each layer, and the cosine of "
    "each token's hidden state to that of BOS.",
    "wer_against_rate": "Word error rate against the downsampling rate, with 95% intervals over speakers or "
    "utterances (or the standard deviation over seeds).",
    "against_weight": "Error rates and sink metrics against the decorrelation weight.",
    "largest_activations": "{task}: the three largest |h| and the median after each layer, mean over utterances.",
    "cosine_to_bos": "{task}: cosine to BOS after each layer, of intermediate sinks and of the other tokens.",
    "attention_to_sinks": "{task}: mean attention to BOS, and to the most attended other token, by layer and head.",
    "attention_map": "{task}: attention of one utterance, mean over the heads of a layer.",
    "activations": "{task}: |h| of one utterance by token and dimension.",
    "additions": "{task}: contribution of attention and MLP of each layer to the massive dimension.",
    "inside_mlp": "{task}: inside the MLP that writes the massive activation.",
    "sinks_at_thresholds": "{task}: number of sinks at each threshold.",
    "": "{task}",
}
"""Caption of a figure, by the beginning of its name, in the order of the page."""
_IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class MissingTrial:
    """A trial without metrics."""

    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class ReportSubject:
    """The sweep of a report."""

    name: str
    file: str
    """Path of the sweep file."""
    specification: str
    """Its text."""
    by: str
    """The metric that selects the best point, such as `wer/validation`."""
    best: Sequence[tuple[str, float]]
    """Name of the best point of each task, and its value."""
    names: dict[str, str]
    """Names of the trials by identity."""
    missing: tuple[MissingTrial, ...]
    remarks: tuple[str, ...] = ()
    """Sentences that are added to the notes below the table."""
    search: SearchResult | None = None
    """Outcome of its search; the comparison then has only its front and the trials at weight 0."""


def render_page(subject: ReportSubject, comparison: Comparison, figures: Sequence[Path], media: bool = True) -> str:
    """The report as HTML.

    The comparison has the trials that have started, `figures` are PNG and SVG files, of which the smaller of two with
    one name is embedded. Without `media` no utterance can be played, as the licence of a corpus may demand.
    PipelineError if a file of a trial is damaged.
    """
    search, players = subject.search, Players() if media else None
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    done = sum(not entry.gap for entry in comparison.entries)
    values = {
        "subject": subject,
        "done": len(subject.names) - len(subject.missing) if search else done,
        "sentences": [*answers(comparison), *_sentences(comparison)],
        "search_text": search_text(search) if search else "",
        "parallel": parallel_coordinates(search) if search else None,
        "script": script,
        # The only script that the page's security policy allows.
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "heads": [variant.parts for variant in comparison.variants],
        "groups": _row_groups(comparison),
        "notes": [*rendering.table_notes(comparison), *subject.remarks],
        "claims": claims(comparison),
        "claim_notes": NOTES,
        "latex": rendering.table_latex(comparison),
        "figures": list(_embedded_figures(figures, comparison.tasks)),
        "utterances": [_playable(group, comparison, players) for group in extremes(comparison)],
        "media_notes": players.notes if players else ["Audio and video were omitted on request (--no-media)."],
        "origins": trial_provenance(comparison.entries),
        "facts": shared_facts(comparison.entries),
        "style": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
    }
    return _template().render(values)


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja")


def _sentences(comparison: Comparison) -> Iterator[str]:
    """A sentence on the change of each weight on the clean test set."""
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            if change := cell.changes.get("test"):
                before, after = sink_counts(comparison.cell(task, variant.without_loss())), sink_counts(cell)
                sinks = f"; sinks per utterance: {before} → {after}" if before and after else ""
                yield f"{task}, {variant}: change of WER on test in points: {change}{sinks}."


def _row_groups(comparison: Comparison) -> list[dict[str, Any]]:
    """The table's rows by quantity; each cell is split into a value and its spread."""
    groups: list[dict[str, Any]] = []
    for quantity, task, cells in rendering.table_rows(comparison):
        if quantity:
            groups.append({"label": quantity.label, "indented": bool(quantity.detail), "rows": []})
        groups[-1]["rows"].append((task, [_split(cell) for cell in cells]))
    return groups


def _split(cell: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\S+) ([\[(±].*)", cell)
    return (match[1], match[2]) if match else (cell, "")


def _embedded_figures(figures: Sequence[Path], tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """The figures in the order of `CAPTIONS`: `caption`, `address` (a `data:` URL), and `broad`: whether it has several
    panels in a row, so that it must be scrolled on a phone."""
    by_name: dict[str, list[Path]] = {}
    for file in figures:
        if file.suffix in _IMAGE_TYPES:
            by_name.setdefault(file.stem, []).append(file)
    for beginning, caption in CAPTIONS.items():
        for name in sorted(name for name in by_name if name.startswith(beginning)):
            files = by_name.pop(name)
            smallest = min(files, key=lambda file: file.stat().st_size)
            yield {
                "caption": caption.format(task=_task_of(name, beginning, tasks)),
                "address": data_url(_IMAGE_TYPES[smallest.suffix], smallest.read_bytes()),
                "broad": any(_png_width(file) > BROAD for file in files if file.suffix == ".png"),
            }


def _png_width(file: Path) -> int:
    """In pixels, from the header."""
    with open(file, "rb") as opened:
        return int.from_bytes(opened.read(20)[16:], "big")


def _task_of(name: str, beginning: str, tasks: Sequence[Task]) -> str:
    """AVSR 16, 5 for `largest_activations_avsr_16_5`."""
    if not beginning:
        return name.replace("_", " ")
    ending = name.removeprefix(beginning).strip("_")
    return next((str(task) for task in tasks if task.file_name == ending), ending)


def _playable(group: Extremes, comparison: Comparison, players: Players | None) -> dict[str, Any]:
    entry = next(entry for entry in comparison.entries if entry.task == group.task and not entry.gap)
    parts = {
        title: [(example, players and players.of(entry, example.id, example.text)) for example in examples]
        for title, examples in (("Worst", group.worst), ("Best", group.best))
    }
    return {"title": f"{group.task}, {group.condition}", "parts": parts, "not_quoted": group.not_quoted}
