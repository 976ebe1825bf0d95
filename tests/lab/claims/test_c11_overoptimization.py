from __future__ import annotations

from kleash.lab.claims.c11_overoptimization import ARMS, law_table, peak_table, prediction_figures
from kleash.lab.experiment import Results


def analysis(result: str, *, law: float | None, early: float | None) -> dict:
    def fit(peak):
        return {"peak_distance": {"value": peak}, "cost_of_following_law": {"lost": {"mean": 0.25}}}

    return {
        "peak_test": {"outcome": result}, "peak": {"distance": 2.0}, "fit": fit(law),
        "early_fit": None if early is None else fit(early),
    }  # fmt: skip


def test_a_prediction_exists_only_where_gold_fell_and_the_law_has_a_peak():
    assert prediction_figures(analysis("not yet", law=2.0, early=1.0)) == {}
    assert prediction_figures(analysis("turned", law=None, early=1.0)) == {}
    assert prediction_figures(analysis("turned", law=2.0, early=None)) == {"fitted": 0.0}
    assert prediction_figures(analysis("turned", law=4.0, early=3.0)) == {
        "fitted": 1.0, "off the law's": 0.25, "off the measured": 0.5, "gold lost": 0.25,
    }  # fmt: skip


def test_the_tables_have_a_row_for_each_arm_and_count_peaks():
    figures = {
        "gold at its peak": 1.0, "gold at the end": 0.5, "KL at the peak": 2.0, "KL at the end": 9.0,
        "proxy at the end": 3.0, "turned": 1.0, **prediction_figures(analysis("turned", law=4.0, early=3.0)),
    }  # fmt: skip
    still = {**dict.fromkeys(figures, 0.0), "fitted": None}
    results = Results({arm.name: [figures, still] for arm in ARMS})
    lines = peak_table(results).splitlines()
    assert len(lines) == 2 + len(ARMS)
    assert lines[2] == (
        "| 1000 | single 1 | 0 | 0.50 ± 0.50 | 0.25 ± 0.25 | 1.00 ± 1.00 | 4.50 ± 4.50 | 1.50 ± 1.50 | 1 of 2 |"
    )
    assert law_table(results, [0, 1]).splitlines()[2:] == [
        *(f"| 0 | {beta} | 14 of 14 | 14 | 14 | 0 | 0.50 | 0.25 ± 0.00 |" for beta in ("0", "0.05", "0.2")),
        *(f"| others | {beta} | 0 of 14 | 0 | 0 | 0 | – | – |" for beta in ("0", "0.05", "0.2")),
    ]
