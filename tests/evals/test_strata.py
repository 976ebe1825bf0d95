from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kleash.evals.strata import quartiles, strata_report


def test_the_test_is_pearsons_chi_square_of_the_table() -> None:
    hits = np.repeat([1.0, 0.0, 1.0, 0.0], [70, 30, 40, 60])
    (row,) = strata_report(hits, {"kind": ["a"] * 100 + ["b"] * 100})
    expected = stats.chi2_contingency([[70, 30], [40, 60]], correction=False)
    assert (row.chi2, row.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert [(cell.value, cell.pairs, cell.accuracy) for cell in row.cells] == [
        ("a", 100, pytest.approx(0.7)),
        ("b", 100, pytest.approx(0.4)),
    ]


def test_small_strata_and_partitions_of_one_are_left_out() -> None:
    hits = np.ones(60)
    assert strata_report(hits, {"one": ["a"] * 60, "small": ["a"] * 45 + ["b"] * 15}) == []


def test_equal_strata_are_found_different_as_often_as_stated_over_all_partitions() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        hits = (rng.random(300) < 0.7).astype(float)
        rows = strata_report(hits, {str(i): rng.choice(list("abc"), size=300).tolist() for i in range(5)})
        found += any(row.p_holm < 0.05 for row in rows)
    assert 0.02 < found / 400 < 0.09


def test_quartiles_are_named_in_order_and_equal_values_share_one() -> None:
    names = quartiles(np.array([0.0, 0, 0, 0, 1, 2, 3, 10]), " tokens")
    assert names[:4] == ["0 tokens"] * 4 and names[-1] == "3 to 10 tokens"
    hits = np.ones(100)
    (row,) = strata_report(hits, {"length": quartiles(np.arange(100.0)[::-1])})
    assert [cell.value for cell in row.cells] == ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
