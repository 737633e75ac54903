"""Figures: one scale for before and after, what is drawn when, and that equal numbers give equal files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trials import finish, make_trial, write_sinks

from pipeline.comparison.figures import comparison_figures, overview
from pipeline.comparison.output import write_comparison
from pipeline.comparison.selection import named_trials
from pipeline.comparison.table import Comparison, compare
from pipeline.comparison.trends import against_weight, wer_against_rate
from pipeline.sinks.figures import Panel, cosine_to_bos, importance_maps, largest_activations, save

ROOT = Path(__file__).resolve().parents[1]
MANY = [0, 1, 2, 0, 3, 0, 1, 1, 0, 2]
FEW = [0, 0, 1, 0, 1, 0, 0, 1, 0, 0]
COUNT = "sinks/intermediate_tokens_per_utterance"


def arrays_of(runs: Path, massive: float, sinks: bool) -> dict[str, np.ndarray]:
    trial = make_trial(runs)
    write_sinks(trial, massive, sinks=sinks)
    with np.load(trial.sinks) as stored:
        return dict(stored)


@pytest.fixture
def panels(tmp_path: Path) -> list[Panel]:
    return [Panel("before", arrays_of(tmp_path, 20000.0, True)), Panel("after", arrays_of(tmp_path, 300.0, False))]


def trial_of(runs: Path, weight: float, *settings: str, validation: list[int] = FEW, drawn: bool = True) -> None:
    trial = make_trial(runs, f"decorrelation.weight={weight}", *settings)
    finish(trial, {"test": MANY, "validation": validation}, **{COUNT: 5 - weight})
    if drawn:
        write_sinks(trial, 20000 / (1 + weight), sinks=weight == 0)


def compared(runs: Path) -> Comparison:
    return compare(named_trials([str(runs)], runs))


@pytest.mark.parametrize("draw", [largest_activations, cosine_to_bos])
def test_panels_share_their_scale(panels: list[Panel], draw) -> None:
    before, after = draw(panels).axes
    assert before.get_ylim() == after.get_ylim()
    assert [before.get_title(), after.get_title()] == ["before", "after"]


def test_maps_share_their_colours(panels: list[Panel]) -> None:
    images = [axes.images[0] for axes in importance_maps(panels).axes if axes.images]
    assert len(images) == 4
    highest = max(
        panel.arrays[name].max() for panel in panels for name in ("importance_bos", "importance_intermediate")
    )
    assert {image.get_clim() for image in images} == {(0, highest)}


def test_the_writing_block_is_named(panels: list[Panel]) -> None:
    before, after = largest_activations(panels).axes
    assert [text.get_text() for text in before.texts] == ["block 2\nwrites BOS and sinks"]
    assert [text.get_text() for text in after.texts] == ["block 2\nwrites BOS"]


def test_without_known_origins_no_block_is_named(panels: list[Panel]) -> None:
    arrays = {name: value for name, value in panels[0].arrays.items() if not name.startswith("origin")}
    assert not largest_activations([Panel("", arrays)]).axes[0].texts


def test_no_sinks_is_said(panels: list[Panel]) -> None:
    before, after = cosine_to_bos(panels).axes
    assert not before.texts
    assert [text.get_text() for text in after.texts] == ["no intermediate sinks"]
    assert [len(axes.lines) for axes in (before, after)] == [2, 1]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_many_panels_are_wrapped(panels: list[Panel], count: int) -> None:
    assert len(largest_activations(panels[:1] * count).axes) == count
    assert len([axes for axes in importance_maps(panels[:1] * count).axes if axes.images]) == 2 * count


def test_equal_figures_are_equal_files(panels: list[Panel], tmp_path: Path) -> None:
    first = [file.read_bytes() for file in save(largest_activations(panels), tmp_path / "one")]
    again = [file.read_bytes() for file in save(largest_activations(panels), tmp_path / "two")]
    assert first == again
    assert sorted(file.name for file in tmp_path.glob("one.*")) == ["one.pdf", "one.png"]


def test_names_of_all_figures(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    trial_of(tmp_path, 1)
    trial_of(tmp_path, 0, "model.rates.audio=4")
    of_task = ("largest_activations", "cosine_to_bos", "importance")
    names = {f"{name}_avsr_{rates}" for name in of_task for rates in ("16_5", "4_5")}
    assert set(comparison_figures(compared(tmp_path))) == names | {"wer_against_rate", "against_weight", "overview"}


def test_one_trial_alone_has_no_figure_that_compares(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    comparison = compared(tmp_path)
    assert (wer_against_rate(comparison), against_weight(comparison), overview(comparison)) == (None, None, None)


def test_trials_without_arrays_or_with_gaps_are_passed_over(tmp_path: Path) -> None:
    trial_of(tmp_path, 0, drawn=False)
    trial_of(tmp_path, 1, drawn=False)
    make_trial(tmp_path, "decorrelation.weight=2")
    assert set(comparison_figures(compared(tmp_path))) == {"against_weight"}


def test_the_overview_shows_the_weight_that_validation_prefers(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    trial_of(tmp_path, 0.5, validation=MANY)
    trial_of(tmp_path, 2, validation=FEW)
    before, after, *_ = overview(compared(tmp_path)).axes
    assert before.get_title() == "weight 0\nWER % 16.7 [13.3, 20.0]\n5.0 intermediate sinks per utterance"
    assert after.get_title().splitlines()[0] == "weight 2"
    assert before.get_ylim() == after.get_ylim()


def test_lines_against_the_weight_begin_at_the_trial_without_the_loss(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    for weight in (0.1, 1):
        for stop in ("true", "false"):
            trial_of(tmp_path, weight, f"decorrelation.stop_gradient={stop}")
    axes = next(axes for axes in against_weight(compared(tmp_path)).axes if axes.get_title().startswith("intermediate"))
    drawn = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert drawn == [[5, 4.9, 4]] * 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.1", "1"]


def test_error_rates_are_drawn_in_percent_with_their_interval(tmp_path: Path) -> None:
    for rate in (4, 16):
        trial_of(tmp_path, 0, f"model.rates.audio={rate}", "model.modality=audio")
    (axes,) = wer_against_rate(compared(tmp_path)).axes
    line, caps, _ = axes.containers[0].lines
    assert line.get_ydata() == pytest.approx([100 / 6] * 2)
    assert caps[0].get_ydata() == pytest.approx([80 / 6] * 2)
    assert axes.get_ylabel() == "WER %, test"


def test_files_are_drawn_again_only_where_something_changed(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    trial_of(runs, 0)
    trial_of(runs, 1)
    files = write_comparison(compared(runs), out)
    assert all(file.exists() for file in files)
    assert {file.name for file in files} >= {"table.md", "table.tex", "table.csv", "metrics.csv", "overview.png"}
    before = (out / "overview.png").stat().st_mtime_ns
    assert set(write_comparison(compared(runs), out)) == set(files)
    assert (out / "overview.png").stat().st_mtime_ns == before
    (out / "overview.png").unlink()
    write_comparison(compared(runs), out)
    assert (out / "overview.png").exists()
    # What no longer compares does not stay behind.
    write_comparison(compare(named_trials([], runs)[:1]), out)
    assert not (out / "overview.png").exists()
    assert not (out / "overview.pdf").exists()


def test_the_command_writes_and_the_second_time_loads_no_matplotlib(tmp_path: Path) -> None:
    trial_of(tmp_path / "runs", 0)
    program = "import sys, pipeline.compare as c; c.main(); print('matplotlib' in sys.modules)"
    words = [sys.executable, "-c", program, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    ran = [subprocess.run(words, cwd=ROOT, capture_output=True, text=True) for _ in range(2)]
    assert [one.stdout.splitlines()[-2:] for one in ran] == [
        [f"written: {tmp_path / 'out'}", loaded] for loaded in ("True", "False")
    ], ran[0].stderr
