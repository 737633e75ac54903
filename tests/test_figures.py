"""Figures: shared scales, conditions for each figure, and reproducible files."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from planted import llama, replace_tau, streamed, utterances
from trials import finish, make_trial, write_sinks

from pipeline.common.drawing import save
from pipeline.comparison.figures import against_weight, overview, summary_figures, task_figures, wer_against_rate
from pipeline.comparison.output import write_comparison
from pipeline.comparison.table import Comparison, compare
from pipeline.sinks.figures import Panel, attention_to_sinks, cosine_figure, largest_activations
from pipeline.sinks.origin_figures import additions, inside_mlp, sinks_at_thresholds
from pipeline.sinks.sequence_figures import activation_bars, attention_maps, token_name
from pipeline.tracking.selection import named_trials
from pipeline.trials import marks

OF_SEQUENCES = (attention_maps, activation_bars, additions, inside_mlp, sinks_at_thresholds)
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


@pytest.fixture(scope="module")
def measured() -> list[Panel]:
    """Measured arrays of a model with sinks, and of the same model with a threshold above all of them."""
    return [
        Panel(name, streamed(llama(), [utterances()], settings).arrays)
        for name, settings in (("before", replace_tau(300.0)), ("after", replace_tau(1e9)))
    ]


def trial_of(runs: Path, weight: float, *settings: str, validation: list[int] = FEW, drawn: bool = True) -> None:
    trial = make_trial(runs, f"decorrelation.weight={weight}", *settings)
    finish(trial, {"test": MANY, "validation": validation}, **{COUNT: 5 - weight})
    if drawn:
        write_sinks(trial, 20000 / (1 + weight), sinks=weight == 0)


def compared(runs: Path) -> Comparison:
    return compare(named_trials([str(runs)], runs))


def figures_of(comparison: Comparison) -> dict[str, Figure]:
    figures = [task_figures(comparison, task) for task in comparison.tasks]
    return {name: figure for drawn in (*figures, summary_figures(comparison)) for name, figure in drawn.items()}


@pytest.mark.parametrize("draw", [largest_activations, cosine_figure])
def test_panels_share_their_scale(panels: list[Panel], draw) -> None:
    before, after = draw(panels).axes
    assert before.get_ylim() == after.get_ylim()
    assert [before.get_title(), after.get_title()] == ["before", "after"]


def test_maps_share_their_colours(panels: list[Panel]) -> None:
    images = [axes.images[0] for axes in attention_to_sinks(panels).axes if axes.images]
    assert len(images) == 4
    highest = max(
        panel.arrays[name].max() for panel in panels for name in ("importance_bos", "importance_intermediate")
    )
    assert {image.get_clim() for image in images} == {(0, highest)}


def test_the_writing_layer_is_annotated(panels: list[Panel]) -> None:
    before, after = largest_activations(panels).axes
    assert [text.get_text() for text in before.texts] == ["layer 2\nwrites BOS and sinks"]
    assert [text.get_text() for text in after.texts] == ["layer 2\nwrites BOS"]


def test_without_known_origins_no_layer_is_annotated(panels: list[Panel]) -> None:
    arrays = {name: value for name, value in panels[0].arrays.items() if not name.startswith("origin")}
    assert not largest_activations([Panel("", arrays)]).axes[0].texts


def test_missing_sinks_are_annotated(panels: list[Panel]) -> None:
    before, after = cosine_figure(panels).axes
    assert not before.texts
    assert [text.get_text() for text in after.texts] == ["no intermediate sinks"]
    assert [len(axes.lines) for axes in (before, after)] == [2, 1]


def test_maps_and_bars_share_their_scale_and_are_labelled(measured: list[Panel]) -> None:
    maps = [axes for axes in attention_maps(measured).axes if axes.images]
    assert {axes.images[0].get_clim() for axes in maps} == {(1e-3, 1)}
    names = [tick.get_text() for tick in maps[0].get_xticklabels()]
    assert names == ["BOS", "audio", "prompt", "response"]
    before, after = activation_bars(measured).axes
    assert before.get_zlim() == after.get_zlim()
    assert "BOS" in {text.get_text() for text in before.texts}
    assert before.get_title().startswith("before\n|h| after layer ")


def test_tokens_are_named_by_role_and_number() -> None:
    roles = np.array([1, 2, 3, 3, 4, 8, 8, 9])
    assert [token_name(roles, token) for token in (0, 1, 3, 6)] == ["BOS", "<audio>", "audio 2", "prompt 2"]


def test_additions_are_drawn_for_bos_and_for_other_sinks(measured: list[Panel]) -> None:
    bos, others = additions(measured[:1]).axes
    for group, axes in enumerate((bos, others)):
        attention, mlp = ([bar.get_height() for bar in container] for container in axes.containers)
        np.testing.assert_allclose(attention, measured[0].arrays["origin_attention"][:, group])
        np.testing.assert_allclose(mlp, measured[0].arrays["origin_mlp"][:, group])
    assert [text.get_text() for text in additions(measured).axes[1].texts] == ["none"]


def test_the_threshold_in_use_is_marked(measured: list[Panel]) -> None:
    above, below = sinks_at_thresholds(measured[:1]).axes
    assert above.lines[-1].get_xdata()[0] == 300
    assert below.lines[-1].get_xdata()[0] == pytest.approx(0.15)


@pytest.mark.parametrize("draw", OF_SEQUENCES)
def test_figures_of_measured_arrays_are_saved(measured: list[Panel], tmp_path: Path, draw) -> None:
    assert all(file.stat().st_size > 5000 for file in save(draw(measured[:1]), tmp_path / "figure"))


def test_trials_with_an_exemplar_have_its_figures(tmp_path: Path, measured: list[Panel]) -> None:
    trial = finish(make_trial(tmp_path), {"test": MANY})
    np.savez(trial.sinks, **measured[0].arrays)
    names = {name.removesuffix("_avsr_16_5") for name in figures_of(compared(tmp_path))}
    assert names >= {"attention_map", "activations", "additions", "inside_mlp", "sinks_at_thresholds"}


def test_figures_of_one_of_several_seeds_say_which(tmp_path: Path, measured: list[Panel]) -> None:
    for seed in (3, 4):
        trial = finish(make_trial(tmp_path, f"train.seed={seed}"), {"test": MANY})
        np.savez(trial.sinks, **measured[0].arrays)
    several = figures_of(compared(tmp_path))
    assert "drawn: seed 3" in several["attention_map_avsr_16_5"].axes[0].get_title()
    shutil.rmtree(trial.folder)
    alone = figures_of(compared(tmp_path))
    assert "drawn" not in alone["attention_map_avsr_16_5"].axes[0].get_title()


@pytest.mark.parametrize("count", [1, 4, 5])
def test_many_panels_are_wrapped(panels: list[Panel], count: int) -> None:
    assert len(largest_activations(panels[:1] * count).axes) == count
    assert len([axes for axes in attention_to_sinks(panels[:1] * count).axes if axes.images]) == 2 * count


def test_equal_figures_are_equal_files(panels: list[Panel], tmp_path: Path) -> None:
    first = [file.read_bytes() for file in save(largest_activations(panels), tmp_path / "one")]
    again = [file.read_bytes() for file in save(largest_activations(panels), tmp_path / "two")]
    assert first == again
    assert sorted(file.name for file in tmp_path.glob("one.*")) == ["one.pdf", "one.png"]


def test_names_of_all_figures(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    trial_of(tmp_path, 1)
    trial_of(tmp_path, 0, "model.rates.audio=4")
    of_task = ("largest_activations", "cosine_to_bos", "attention_to_sinks")
    names = {f"{name}_avsr_{rates}" for name in of_task for rates in ("16_5", "4_5")}
    assert set(figures_of(compared(tmp_path))) == names | {"wer_against_rate", "against_weight", "overview"}


def test_a_single_trial_has_no_comparing_figure(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    comparison = compared(tmp_path)
    assert (wer_against_rate(comparison), against_weight(comparison), overview(comparison)) == (None, None, None)


def test_trials_without_arrays_or_metrics_are_skipped(tmp_path: Path) -> None:
    trial_of(tmp_path, 0, drawn=False)
    trial_of(tmp_path, 1, drawn=False)
    make_trial(tmp_path, "decorrelation.weight=2")
    assert set(figures_of(compared(tmp_path))) == {"against_weight"}


def test_a_trial_without_finite_activations_has_no_panel(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    trial_of(tmp_path, 1, drawn=False)
    np.savez(make_trial(tmp_path, "decorrelation.weight=1").sinks)
    assert overview(compared(tmp_path)) is None


def test_the_overview_shows_the_weight_that_validation_prefers(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    trial_of(tmp_path, 0.5, validation=MANY)
    trial_of(tmp_path, 2, validation=FEW)
    before, after, *_ = overview(compared(tmp_path)).axes
    assert before.get_title() == "weight 0\nWER % 16.7 [13.3, 20.0]\nsinks per utterance: 5.00 by activation"
    assert after.get_title().splitlines()[0] == "weight 2"
    assert before.get_ylim() == after.get_ylim()


def test_the_overview_is_of_the_task_with_most_sinks(tmp_path: Path) -> None:
    for weight in (0, 2):
        trial_of(tmp_path, weight, "model.modality=audio")
        trial = make_trial(tmp_path, f"decorrelation.weight={weight}")
        finish(trial, {"test": MANY, "validation": FEW}, **{COUNT: 0.5})
        write_sinks(trial, 300.0)
    assert overview(compared(tmp_path)).get_suptitle().startswith("ASR 16 ")


def test_the_overview_also_shows_the_weight_that_moves_the_sink(tmp_path: Path) -> None:
    for weight, share in ((0, 0.3), (0.5, 0.0), (2, 0.9), (5, 0.8)):
        trial = make_trial(tmp_path, f"decorrelation.weight={weight}")
        finish(trial, {"test": MANY, "validation": FEW}, **{"sinks/relocated_share": share})
        write_sinks(trial, 300.0)
    titles = [axes.get_title() for axes in overview(compared(tmp_path)).axes[:3]]
    assert [title.splitlines()[0] for title in titles] == ["weight 0", "weight 0.5", "weight 2"]
    assert titles[2].endswith("BOS not dominant: 90% by attention")


def test_a_sink_is_relocated_by_one_measure_whatever_the_other_was_at_weight_0(tmp_path: Path) -> None:
    for weight, by_ratio, by_attention in ((0, 0.5, 0.0), (1, 0.0, 0.4), (2, 0.5, 0.0)):
        trial = make_trial(tmp_path, f"decorrelation.weight={weight}")
        shares = {"sinks/relocated_share/ratio": by_ratio, "sinks/relocated_share": by_attention}
        finish(trial, {"test": MANY, "validation": FEW}, **shares)
        write_sinks(trial, 300.0)
    titles = [axes.get_title() for axes in overview(compared(tmp_path)).axes[:3]]
    assert [title.splitlines()[0] for title in titles] == ["weight 0", "weight 2", "weight 1"]


def test_each_line_has_its_own_style_and_skips_gaps(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    for weight in (0.1, 1):
        trial_of(tmp_path, weight, "decorrelation.stop_gradient=true")
    trial_of(tmp_path, 1, "decorrelation.stop_gradient=false")
    axes = next(
        axes
        for axes in against_weight(compared(tmp_path)).axes
        if axes.get_title().startswith("sinks / utterance, by activation")
    )
    lines = [container.lines[0] for container in axes.containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    assert sorted(line.get_ydata().tolist() for line in lines) == [[5, 4], [5, 4.9, 4]]


def test_lines_against_the_weight_begin_at_the_trial_without_the_loss(tmp_path: Path) -> None:
    trial_of(tmp_path, 0)
    for weight in (0.1, 1):
        for stop in ("true", "false"):
            trial_of(tmp_path, weight, f"decorrelation.stop_gradient={stop}")
    axes = next(
        axes
        for axes in against_weight(compared(tmp_path)).axes
        if axes.get_title().startswith("sinks / utterance, by activation")
    )
    drawn = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert drawn == [[5, 4.9, 4]] * 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.1", "1"]


def test_panels_of_ratios_share_a_scale_although_an_error_bar_reaches_below_0(tmp_path: Path) -> None:
    for weight in (0, 0.1):
        for seed, ratio in enumerate([1.0, 900.0]):
            trial = make_trial(tmp_path, f"decorrelation.weight={weight}", f"train.seed={seed}")
            finish(trial, {"test": [1]}, **{"sinks/max_ratio/bos": 2000.0, "sinks/max_ratio/intermediate": ratio})
    panels = [axes for axes in against_weight(compared(tmp_path)).axes if axes.get_title().startswith("largest ratio")]
    assert len(panels) == 2
    assert panels[0].get_ylim() == panels[1].get_ylim()


def test_a_metric_that_no_line_has_gets_no_panel(tmp_path: Path) -> None:
    """A task with a single weight has no line; here it alone has sinks, and so their cosine."""
    for weight in (0, 0.1):
        trial_of(tmp_path, weight, "model.modality=audio", "model.rates.audio=16", drawn=False)
    alone = make_trial(tmp_path, "model.modality=audio", "model.rates.audio=32")
    finish(alone, {"test": MANY}, **{COUNT: 3, "sinks/bos_cosine/sink": 0.99})
    titles = [axes.get_title() for axes in against_weight(compared(tmp_path)).axes]
    assert "cosine to BOS, sinks" not in titles
    assert "sinks / utterance, by activation" in titles


def test_a_modality_without_done_trials_has_an_empty_panel(tmp_path: Path) -> None:
    for rate in (4, 16):
        trial_of(tmp_path, 0, f"model.rates.audio={rate}", "model.modality=audio")
    for rate in (2, 5):
        make_trial(tmp_path, "model.modality=video", f"model.rates.video={rate}")
    assert [len(axes.containers[0].lines[0].get_ydata()) for axes in wer_against_rate(compared(tmp_path)).axes] == [
        2,
        0,
    ]


def test_error_rates_are_drawn_in_percent_with_their_interval(tmp_path: Path) -> None:
    for rate in (4, 16):
        trial_of(tmp_path, 0, f"model.rates.audio={rate}", "model.modality=audio")
    (axes,) = wer_against_rate(compared(tmp_path)).axes
    line, caps, _ = axes.containers[0].lines
    assert line.get_ydata() == pytest.approx([100 / 6] * 2)
    assert caps[0].get_ydata() == pytest.approx([80 / 6] * 2)
    assert axes.get_ylabel() == "WER %, test"


def test_figures_are_redrawn_only_after_changes(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    trial_of(runs, 0, drawn=False)
    trial_of(runs, 1, drawn=False)
    files = write_comparison(compared(runs), out)
    assert all(file.exists() for file in files)
    assert {file.name for file in files} >= {"table.md", "table.tex", "table.csv", "metrics.csv", "against_weight.png"}
    before = (out / "against_weight.png").stat().st_mtime_ns
    assert set(write_comparison(compared(runs), out)) == set(files)
    assert (out / "against_weight.png").stat().st_mtime_ns == before
    (out / "against_weight.png").unlink()
    write_comparison(compared(runs), out)
    assert (out / "against_weight.png").exists()
    # Figures that no longer apply are removed.
    write_comparison(compare(named_trials([], runs)[:1]), out)
    assert not list(out.glob("against_weight.*"))


def test_figures_drawn_in_parallel_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial_of(tmp_path / "runs", 0)
    marks.write_failure(make_trial(tmp_path / "runs", "model.modality=video").folder, "no memory", "")
    alone = write_comparison(compared(tmp_path / "runs"), tmp_path / "alone")
    monkeypatch.setattr("pipeline.comparison.output.MAX_TASKS_ALONE", 0)
    monkeypatch.setattr("pipeline.comparison.output.available_cores", lambda: 2)
    parallel = write_comparison(compared(tmp_path / "runs"), tmp_path / "parallel")
    assert [file.name for file in parallel] == [file.name for file in alone]
    assert [file.read_bytes() for file in parallel] == [file.read_bytes() for file in alone]


def test_a_second_comparison_loads_no_matplotlib(tmp_path: Path) -> None:
    trial_of(tmp_path / "runs", 0)
    # The first one in a fork, the second one in the process itself.
    program = (
        "import os, sys, pipeline.compare as command\n"
        "os.fork() and os.wait(); command.main(); print('matplotlib' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    written = f"written: {tmp_path / 'out'}"
    first, second = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert [first[-2:], second[-2:]] == [[written, "True"], [written, "False"]], ran.stderr


def test_several_seeds_are_drawn_as_their_mean(tmp_path: Path) -> None:
    for seed in (0, 1):
        for weight in (0, 1):
            trial_of(tmp_path, weight, f"train.seed={seed}", drawn=False)
    titles = [axes.get_title() for axes in against_weight(compared(tmp_path)).axes]
    assert titles.count("WER %, test") == 1
    assert not any(title.startswith(" ") for title in titles)
