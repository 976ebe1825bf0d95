from __future__ import annotations

from typing import Any

import pytest

from kleash.checks.gates import Check, verdict
from kleash.checks.judge_checks import judge_checks
from kleash.evals.estimates import Mean, Share, Slope
from kleash.evals.judging import JudgeReport, PeopleReport
from kleash.labels.judge_summary import Failures


def part(hits: int, pairs: int) -> Share:
    return Share.of([1] * hits + [0] * (pairs - hits))


def checked(
    *, agreed: int | None = 80, flips: int = 10, again: float = 0.8, failed: int = 0, pairs: int = 100
) -> list[Check]:
    """The checks of a good judge, with some figures changed."""
    people = None
    if agreed is not None:
        agreement = part(agreed, pairs)
        people = PeopleReport(pairs, agreement, agreement, agreement, 0.0, [], 0.5, 0.7, None, None)
    report = JudgeReport(
        labels=pairs, ties=0, flips=part(flips, pairs), first_before=part(pairs // 2, pairs),
        first_after=part(pairs // 2, pairs), order_effect=Mean(0.0, 0.01), self_consistency=Mean(again, 0.01),
        length_slope=Slope(None, None), people=people,
    )  # fmt: skip
    return judge_checks(report, Failures(pairs, failed, 0, []), max_failures=0.1)


def test_a_good_judge_passes_all() -> None:
    assert [check.passed for check in checked()] == [True] * 4


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"agreed": 38}, "agrees with people"),
        ({"flips": 70}, "judges the response and not its place"),
        ({"again": 0.52}, "says the same again"),
        ({"failed": 11}, "answers"),
    ],
)
def test_each_fault_is_refused_by_its_check_and_no_other(fault: dict[str, Any], name: str) -> None:
    checks = checked(**fault)
    assert [check.name for check in checks if check.passed is False] == [name]
    assert all(check.advice for check in checks if check.passed is False)
    assert not verdict(checks)["passed"]


def test_a_check_with_too_few_pairs_is_unknown() -> None:
    checks = {check.name: check.passed for check in checked(agreed=None, flips=52)}
    assert checks["agrees with people"] is None and checks["judges the response and not its place"] is None
    checks = {check.name: check.passed for check in checked(agreed=55, flips=48, again=0.61)}
    assert not any(checks[name] for name in checks if name != "answers") and False not in checks.values()


def test_labels_that_may_be_good_are_not_refused() -> None:
    assert verdict(checked(agreed=55))["passed"] is None


def test_no_label_at_all_fails_by_its_failures() -> None:
    for most in (0.1, 1.0):
        (check,) = judge_checks(None, Failures(5, 5, 0, []), max_failures=most)
        assert check.passed is False
