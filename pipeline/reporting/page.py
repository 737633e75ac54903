"""One page of a sweep: everything that its comparison knows, as HTML that needs nothing else, and as Markdown."""

import base64
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import markdown as markdown_text
from pipeline.common.errors import PipelineError
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION
from pipeline.comparison import front, rendering
from pipeline.comparison.answer import answers
from pipeline.comparison.claims import NOTES, claims, markdown
from pipeline.comparison.conditions import condition_name
from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.front import SearchResult
from pipeline.comparison.quantities import change_text, rounded
from pipeline.comparison.table import Cell, Comparison
from pipeline.reporting.media import clip, corpus_of
from pipeline.reporting.parallel import parallel_coordinates
from pipeline.reporting.provenance import origins, shared_facts
from pipeline.reporting.utterances import Extremes, extremes

TEMPLATES = Path(__file__).parent
MEDIA_LIMIT = 8_000_000
"""Bytes of sound and video in a page; utterances beyond have none."""
BROAD = 1000
"""Pixels of a figure's PNG above which it has several panels in a row."""
CAPTIONS = {
    "pareto_front": "Pareto front of the search: points that no other beats in one metric without losing in another; "
    "bars are the standard deviation over seeds.",
    "against_keys": "Each metric against each searched key; points of the Pareto front in blue.",
    "overview": "Without and with the decorrelation loss: the largest activations after each layer, and the cosine of "
    "each token's hidden state to that of BOS.",
    "wer_against_rate": "Word error rate against the rate of compression, with 95% intervals over utterances (or the "
    "standard deviation over seeds).",
    "against_weight": "Error rates and sink metrics against the weight of the decorrelation loss.",
    "largest_activations": "{task}: the three largest |h| and the median after each layer, mean over utterances.",
    "cosine_to_bos": "{task}: cosine to BOS after each layer, of intermediate sinks and of the other tokens.",
    "importance": "{task}: mean attention to BOS, and to the strongest other token, by layer and head.",
    "attention_map": "{task}: attention of one utterance, mean over the heads of a layer.",
    "activations": "{task}: |h| of one utterance by token and dimension.",
    "additions": "{task}: what attention and the MLP of each layer add to the massive dimension.",
    "inside_mlp": "{task}: inside the MLP that writes the massive activation.",
    "sinks_at_thresholds": "{task}: how many sinks there are at each threshold.",
    "": "{task}",
}
"""What a figure shows, by the beginning of its name; in this order they stand on the page, others last."""


@dataclass(frozen=True)
class Missing:
    """A trial without figures."""

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Subject:
    """What a report is about, beside the comparison."""

    name: str
    file: str
    """Where the specification lies."""
    specification: str
    """Its text."""
    by: str
    """What the best trial is chosen by, such as `wer/validation`."""
    names: dict[str, str]
    """What each trial is called, by identity."""
    missing: tuple[Missing, ...]
    remarks: tuple[str, ...] = ()
    """Sentences that go with the notes below the table."""
    search: SearchResult | None = None
    """What its search tried; then the comparison has the trials of the front."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    file: str
    """Relative to the page's folder."""
    caption: str
    address: str
    """All of it, as a `data:` address."""
    broad: bool
    """Whether it has several panels in a row, so that a phone must scroll it to show letters that can be read."""


@dataclass(frozen=True)
class Player:
    """Sound or video of the page."""

    kind: str
    """`audio` or `video`: the element that plays it."""
    address: str


def pages(
    subject: Subject, comparison: Comparison, figures: Sequence[Path], folder: Path, media: bool = True
) -> dict[str, str]:
    """The report in its forms.

    Args:
        subject: what it is about.
        comparison: of the trials that have begun.
        figures: PNG and SVG files; of two with one name the smaller is embedded.
        folder: where the page will lie; `figures` lie in it.
        media: whether utterances can be played; the licence of a corpus may forbid to pass them on.

    Returns:
        By ending: `html`, self-contained, and `md`, which shows the figures that lie beside it.

    Raises:
        PipelineError: a record of a trial is damaged.
    """
    players = _Players() if media else None
    found = claims(comparison)
    utterances = [_playable(group, comparison, players) for group in extremes(comparison)]
    values = {
        "subject": subject,
        "best": _best(subject, comparison),
        "done": len(subject.names) - len(subject.missing)
        if subject.search
        else sum(not entry.gap for entry in comparison.entries),
        "sentences": [*answers(comparison), *_sentences(comparison)],
        "search_table": front.markdown(subject.search) if subject.search else "",
        "search_text": front.text(subject.search) if subject.search else "",
        "parallel": parallel_coordinates(subject.search) if subject.search else None,
        "script": (script := (TEMPLATES / "page.js").read_text(encoding="utf-8")),
        # The one script that the page may run.
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "heads": [variant.parts for variant in comparison.variants],
        "blocks": _blocks(comparison),
        "notes": [*rendering.notes(comparison), *subject.remarks],
        "claims": found,
        "claim_notes": NOTES,
        "claim_table": markdown(found),
        "table": rendering.markdown(comparison),
        "latex": rendering.latex(comparison),
        "figures": list(_pictures(figures, folder, comparison.tasks)),
        "utterances": utterances,
        "media_notes": players.notes if players else ["Sound and video were left out on request."],
        "origins": origins(comparison.entries),
        "facts": shared_facts(comparison.entries),
        "style": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
    }
    return {ending: _environment().get_template(f"page.{ending}.jinja").render(values) for ending in ("html", "md")}


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.startswith("page.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown_text.plain, "code": markdown_text.code, "block": markdown_text.block}
    return environment


def _best(subject: Subject, comparison: Comparison) -> tuple[str, float] | None:
    """The trial with the lowest value of what is chosen by."""
    values = [(e.metrics[subject.by], subject.names[e.identity]) for e in comparison.entries if subject.by in e.metrics]
    return (min(values)[1], min(values)[0]) if values else None


def _sentences(comparison: Comparison) -> Iterator[str]:
    """What each weight changes of its task, in a sentence each."""
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            for condition in [c for c in comparison.conditions if c in cell.changes and c == "test"]:
                before = comparison.cell(task, variant.without_loss())
                change = change_text(cell.changes[condition])
                sinks = _from_to(before, cell)
                yield f"{task}, {variant}: WER {change} points on {condition_name(condition)}{sinks}."


def _from_to(before: Cell, after: Cell) -> str:
    kinds = [
        f"by {kind} {rounded(before.figures[name].value, None)} → {rounded(after.figures[name].value, None)}"
        for kind, name in (("activation", BY_ACTIVATION), ("attention", BY_ATTENTION))
        if name in before.figures and name in after.figures
    ]
    return f"; sinks per utterance, {', '.join(kinds)}" if kinds else ""


def _blocks(comparison: Comparison) -> list[dict[str, Any]]:
    """The table's rows by quantity; each cell is a figure and what stands behind it in small."""
    blocks: list[dict[str, Any]] = []
    for label, task, cells in rendering.rows(comparison):
        if label:
            blocks.append({"label": label.strip(), "indented": label.startswith(rendering.INDENT), "rows": []})
        blocks[-1]["rows"].append((task, [_parts(cell) for cell in cells]))
    return blocks


def _parts(cell: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\S+) ([\[(±].*)", cell)
    return (found[1], found[2]) if found else (cell, "")


def _pictures(figures: Sequence[Path], folder: Path, tasks: Sequence[Task]) -> Iterator[Picture]:
    """The figures in the order of `CAPTIONS`, overviews before the single tasks."""
    by_name: dict[str, list[Path]] = {}
    for file in figures:
        if file.suffix in _IMAGE_TYPES:
            by_name.setdefault(file.stem, []).append(file)
    for beginning, caption in CAPTIONS.items():
        for name in sorted(name for name in by_name if name.startswith(beginning)):
            files = by_name.pop(name)
            smallest = min(files, key=lambda file: file.stat().st_size)
            yield Picture(
                file=smallest.relative_to(folder).as_posix(),
                caption=caption.format(task=_task_of(name, beginning, tasks)),
                address=_address(_IMAGE_TYPES[smallest.suffix], smallest.read_bytes()),
                broad=any(_png_width(file) > BROAD for file in files if file.suffix == ".png"),
            )


def _png_width(file: Path) -> int:
    """In pixels, as the header of a PNG says."""
    with open(file, "rb") as opened:
        return int.from_bytes(opened.read(20)[16:], "big")


_IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def _task_of(name: str, beginning: str, tasks: Sequence[Task]) -> str:
    """`largest_activations_avsr_16_5` belongs to AVSR 16, 5."""
    if not beginning:
        return name.replace("_", " ")
    ending = name.removeprefix(beginning).strip("_")
    return next((str(task) for task in tasks if task.file_name == ending), ending)


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


class _Players:
    """Sound and video of utterances, as long as there is room in the page."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """What could not be embedded, in a line each."""
        self._left = MEDIA_LIMIT
        self._corpora: dict[str, Any] = {}

    def of(self, entry: Entry, id: str, reference: str) -> Player | None:
        """The player of an utterance as the trial's corpus has it; None if it has changed since, or there is none."""
        try:
            folder, utterances = self._corpus(entry)
            utterance = utterances.get(id)
            if utterance is None or utterance.text != reference:
                self._note(f"The corpus in {folder} is no longer that of these trials: some utterances are silent.")
                return None
            made = clip(folder, utterance, entry.task.modality)
        except PipelineError as error:
            self._note(f"Some utterances are silent: {error}.")
            return None
        if len(made.content) > self._left:
            self._note(f"Sound and video end after {MEDIA_LIMIT / 1e6:g} MB; further utterances are silent.")
            return None
        self._left -= len(made.content)
        return Player(made.kind, _address(made.media_type, made.content))

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _corpus(self, entry: Entry) -> Any:
        name = entry.trial.folder.name
        if name not in self._corpora:
            self._corpora[name] = corpus_of(entry.trial)
        return self._corpora[name]


def _playable(group: Extremes, comparison: Comparison, players: _Players | None) -> dict[str, Any]:
    entry = next(entry for entry in comparison.entries if entry.task == group.task and not entry.gap)
    parts = {
        title: [(example, players and players.of(entry, example.id, example.text)) for example in examples]
        for title, examples in (("Worst", group.worst), ("Best", group.best))
    }
    return {"title": f"{group.task}, {group.condition}", "parts": parts, "left_out": group.left_out}
