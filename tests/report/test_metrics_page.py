from __future__ import annotations

from pathlib import Path

import pytest

from kleash.errors import DataError
from kleash.report.metrics_page import fields_of, with_tables

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_holds_the_docstrings_of_the_reports() -> None:
    page = PAGE.read_text()
    assert page.count("<!-- fields of ") == page.count("<!-- end -->") > 10
    assert page == with_tables(page), "run `python -m kleash.report.metrics_page docs/metrics.md`"


def test_a_field_and_its_formula_are_in_one_row() -> None:
    marker = "<!-- fields of kleash.evals.preference_report:AgainstLength -->"
    table = with_tables(f"before\n{marker}\nold\n<!-- end -->\nafter\n").splitlines()
    assert table[0] == "before" and table[-1] == "after" and "old" not in table
    assert [row.split("`")[1] for row in table if row.startswith("| `")] == ["wins", "losses", "differ", "p_value"]


def test_a_formula_with_bars_does_not_break_its_row() -> None:
    assert r"\|m\|" in fields_of("kleash.evals.preference_report", "ReliabilityBin")["confidence"]


@pytest.mark.parametrize("where", ["kleash.evals.nowhere:A", "kleash.evals.preference_report:Nothing"])
def test_a_marker_that_names_nothing_is_an_error(where: str) -> None:
    with pytest.raises(DataError, match="does not exist; correct the marker"):
        with_tables(f"<!-- fields of {where} -->\n<!-- end -->\n")
