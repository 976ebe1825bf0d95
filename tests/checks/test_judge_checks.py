from __future__ import annotations

from typing import Any

import pytest

from kleash.checks.gates import check_report
from kleash.checks.judge_checks import judge
from kleash.evals.judging import share


def report(
    *, agreed: int | None = 80, flips: int = 10, again: float = 0.8, failed: int = 0, pairs: int = 100
) -> dict[str, Any]:
    people = None if agreed is None else {"agreement": share([1] * agreed + [0] * (pairs - agreed))}
    return {
        "labels": pairs,
        "people": people,
        "flips": share([1] * flips + [0] * (pairs - flips)),
        "self_consistency": {"mean": again, "se": 0.01},
        "failures": {"pairs": pairs, "unparsable": failed, "error": 0, "reasons": []},
    }


def test_a_good_judge_passes_all() -> None:
    assert [check.passed for check in judge(report(), max_failures=0.1)] == [True] * 4


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"agreed": 55}, "agrees with people"),  # its interval holds one half
        ({"flips": 70}, "judges the response and not its place"),
        ({"again": 0.52}, "says the same again"),
        ({"failed": 11}, "answers"),
    ],
)
def test_each_fault_is_refused_by_its_check_and_no_other(fault: dict[str, Any], name: str) -> None:
    checks = judge(report(**fault), max_failures=0.1)
    assert [check.name for check in checks if check.passed is False] == [name]
    assert all(check.advice for check in checks if check.passed is False)
    assert not check_report(checks)["passed"]


def test_what_too_few_pairs_cannot_tell_is_unknown() -> None:
    checks = {check.name: check.passed for check in judge(report(agreed=None, flips=52), max_failures=0.1)}
    assert checks["agrees with people"] is None and checks["judges the response and not its place"] is None


def test_no_label_at_all_fails_by_its_failures() -> None:
    found = {"labels": 0, "failures": {"pairs": 5, "unparsable": 5, "error": 0, "reasons": []}}
    for most in (0.1, 1.0):
        (check,) = judge(found, max_failures=most)
        assert check.passed is False
