"""The gate out of a judge: are its labels worth training on? Figures in, checks out, as in `outcomes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kleash.checks.gates import Check

SWAMPED = 0.5
"""Share of pairs on which the judge chose the place and not the response. Two coins disagree on half of them."""

CONSISTENT = 0.6
"""Probability that a judge, asked again, says the same. A coin has 0.5; one that is 75 % sure has 0.625."""


def judge(report: Mapping[str, Any], *, max_failures: float) -> list[Check]:
    """The gate out of `kleash judge`.

    Args:
        report: of `kleash judge`: `failures` beside what `evals.judging.judge_report` gives.
        max_failures: share of pairs that may have stayed without a label.
    """
    failures = _failures(report["failures"], max_failures)
    if not report["labels"]:
        return [failures]
    return [_agrees(report["people"]), _position(report["flips"]), _consistent(report["self_consistency"]), failures]


def _agrees(people: Mapping[str, Any] | None) -> Check:
    name = "agrees with people"
    if people is None:
        return Check(
            name=name,
            passed=None,
            finding="no row carries a label by people, so nobody knows whether the judge is right",
            advice="label some of the pairs (`kleash label`), 100 or more, and judge those rows too",
        )
    found = people["agreement"]
    passed = found["low"] > 0.5
    return Check(
        name=name,
        passed=passed,
        finding=f"agrees with people on {found['share']:.0%} of {found['pairs']} pairs "
        f"(95 % interval {found['low']:.0%} to {found['high']:.0%}), where a coin has 50%",
        advice=""
        if passed
        else "take a stronger judge, a clearer principle, or more labelled pairs to show that it agrees",
        figures=dict(found),
    )


def _position(flips: Mapping[str, Any]) -> Check:
    passed = None if flips["low"] <= SWAMPED < flips["share"] else flips["share"] <= SWAMPED
    return Check(
        name="judges the response and not its place",
        passed=passed,
        finding=f"on {flips['share']:.0%} of {flips['pairs']} pairs the verdict turned with the order",
        advice="" if passed else "take a stronger judge: this one mostly prefers a place",
        figures=dict(flips),
    )


def _consistent(found: Mapping[str, Any]) -> Check:
    mean, error = found["mean"], found["se"] or 0.0
    passed = True if mean >= CONSISTENT else False if mean + 1.96 * error < CONSISTENT else None
    return Check(
        name="says the same again",
        passed=passed,
        finding=f"asked again it would say the same with probability {mean:.2f}, where a coin has 0.50",
        advice="" if passed else "take a stronger judge or a clearer principle: this one is undecided about most pairs",
        figures=dict(found),
    )


def _failures(found: Mapping[str, Any], most: float) -> Check:
    failed = found["unparsable"] + found["error"]
    passed = failed <= most * found["pairs"] and failed < found["pairs"]
    return Check(
        name="answers",
        passed=passed,
        finding=f"{failed} of {found['pairs']} pairs without a label ({found['unparsable']} unparsable, "
        f"{found['error']} errors)",
        advice="" if passed else "look at the reasons in the report; raise --max-failures if they do no harm",
        figures=dict(found),
    )
