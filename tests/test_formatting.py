"""Numbers and tables as text."""

import pytest

from pipeline.common.formatting import markdown_table, signed, text_table


@pytest.mark.parametrize(("value", "text"), [(1.25, "+1.2"), (-0.3, "-0.3"), (-0.04, "+0.0"), (0, "+0.0")])
def test_a_difference_that_rounds_to_zero_has_a_plus(value: float, text: str) -> None:
    assert signed(value, decimals=1) == text


def test_columns_of_a_text_table_are_aligned_under_a_rule_that_fits() -> None:
    rows = [["no sinks", "1.5"], ["BOS", "12.25"]]
    assert text_table(["test", "WER"], rows, width=80) == [
        "test      WER",
        "───────────────",
        "no sinks  1.5",
        "BOS       12.25",
    ]
    assert text_table(["test", "WER"], rows, width=4)[1] == "────"


def test_a_row_of_another_length_than_the_heads_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        text_table(["test", "WER"], [["no sinks"]], width=80)


def test_cells_cannot_break_a_markdown_table() -> None:
    assert markdown_table(["a|b", ""], [["x\ny", 1]]) == ["| a\\|b |  |", "| --- | --- |", "| x y | 1 |"]
