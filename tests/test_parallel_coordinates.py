"""Parallel coordinates on the page of a search: drawing, brushing, and escaping."""

from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, browser
from trials import finish, make_trial

from pipeline.comparison.search_result import SearchPoint, SearchResult
from pipeline.comparison.table import compare
from pipeline.reporting.page import ReportSubject, render_page
from pipeline.reporting.parallel_coordinates import BELOW, parallel_coordinates

WER, SINKS = "wer/validation", "sinks/intermediate_tokens_per_utterance/validation"
HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture
def result() -> SearchResult:
    points = [
        SearchPoint(
            number,
            f"point {number} {HOSTILE if number == 1 else ''}",
            {"decorrelation.weight": (0, 0.01, 0.1, 1)[number], "model.prompt": HOSTILE if number == 1 else "a"}
            | ({"model.rates.video": number} if number < 3 else {}),
            {WER: (number / 10,), SINKS: (3 - number,)},
            "done",
        )
        for number in range(4)
    ]
    return SearchResult("tpe", 4, (WER, SINKS), tuple(points), {})


def test_each_point_has_its_place_on_each_axis(result):
    weight, prompt, video, wer, sinks = parallel_coordinates(result)["axes"]
    assert weight["positions"] == [0, 0.2, 0.6, 1]
    assert [words for _, words in weight["ticks"]] == ["0", "0.01", "0.1", "1"]
    assert prompt["positions"] == [1, 0, 1, 1]
    assert video["positions"] == [0, 0.5, 1, BELOW]
    assert (BELOW, "not used") in video["ticks"]
    assert wer["positions"] == sinks["positions"][::-1]
    assert parallel_coordinates(SearchResult("tpe", 4, (WER,), result.points[:1], {})) is None


def test_axes_can_be_brushed_and_no_other_script_runs(result, tmp_path: Path):
    trial = finish(make_trial(tmp_path / "runs", "model.modality=audio"), {"test": [1, 0]})
    subject = ReportSubject("s", "s.yaml", "name: s", WER, [("audio", 0.1)], {trial.identity: "audio"}, (), (), result)
    file = tmp_path / "report.html"
    file.write_text(render_page(subject, compare([trial]), [], False))
    assert "search by tpe: 4 of 4 points done" in file.read_text()
    with browser(tmp_path / "profile") as page:
        for size in (PHONE, DESKTOP):
            page.open_file(file, size)
        assert page.value("document.querySelectorAll('polyline').length") == 4
        assert page.value("document.scripts.length") == 1
        # Along the upper half of the first axis: weights 0.1 and 1.
        page.value("document.getElementById('parallel').scrollIntoView({block: 'center'})")
        box = page.value(
            "(b => [b.x + b.width / 2, b.y, b.bottom])(document.querySelector('.axis line').getBoundingClientRect())"
        )
        middle = (box[1] + box[2]) / 2
        press = {"x": box[0], "button": "left", "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type="mousePressed", y=middle, **press)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", y=box[1] - 5, **press)
        page.call("Input.dispatchMouseEvent", type="mouseReleased", y=box[1] - 5, **press)
        page.wait_for("document.querySelectorAll('polyline.faded').length === 2")
        assert page.value("document.getElementById('kept').innerText").startswith("2 of 4 points: point 2")
        page.screenshot(tmp_path / "brushed.png")
        page.call("Input.dispatchMouseEvent", type="mousePressed", y=middle, **press)
        page.call("Input.dispatchMouseEvent", type="mouseReleased", y=middle, **press)
        page.wait_for("document.querySelectorAll('polyline.faded').length === 0")
        assert page.requested == [f"file://{file}"]
        assert page.complaints == []
