"""Checks of a judge's labels: are they good enough to train on?"""

from __future__ import annotations

from dataclasses import asdict

from kleash.checks.check import Check
from kleash.errors import GateError
from kleash.evals.estimates import Mean, Share
from kleash.evals.intervals import above, below, wilson
from kleash.evals.judging import JudgeReport, PeopleReport
from kleash.labels.judge_summary import Failures

MOST_FLIPS = 0.5
"""Share of pairs on which the judge chose a position instead of a response. Random labels give one half."""

LEAST_CONSISTENCY = 0.6
"""Probability that a judge repeats its answer. Random answers of two have 0.5; a judge that is 75 % sure has 0.625."""


def judge_checks(report: JudgeReport | None, failures: Failures, *, max_failures: float) -> list[Check]:
    """The checks of `kleash judge`.

    Args:
        report: of the pairs that have a label; None where no pair has one.
        failures: pairs without a label.
        max_failures: largest share of pairs without a label.
    """
    answers = _answers(failures, max_failures)
    if report is None:
        return [answers]
    return [_agreement(report.people), _position(report.flips), _consistency(report.self_consistency), answers]


def stop_above(most: float, failed: int, done: int, total: int, reason: str) -> None:
    """End a run as soon as too many rows failed: by their number so far, or by the interval of their share.

    Raises:
        GateError: the message names a reason.
    """
    if failed > most * total or (failed and wilson(failed, done)[0] > most):
        raise GateError(
            f"{failed} of the first {done} rows of {total} failed, and at most {most:.0%} may: {reason}; correct that "
            "and run the same command again (replies so far are cached), or raise --max-failures"
        )


def _agreement(people: PeopleReport | None) -> Check:
    name = "agrees with people"
    if people is None:
        return Check(
            name=name,
            passed=None,
            finding="no row has a label by people, so it is unknown whether the judge is right",
            advice="label some of the pairs (`kleash label`), 100 or more, and judge those rows too",
        )
    agreement = people.agreement
    passed = above(agreement.interval, 0.5)
    return Check(
        name=name,
        passed=passed,
        finding=f"agrees with people on {agreement.share:.0%} of {agreement.pairs} pairs "
        f"(95 % interval {agreement.low:.0%} to {agreement.high:.0%}), chance is 50%",
        advice=""
        if passed
        else "choose a stronger judge, a clearer principle, or more labelled pairs to show that it agrees",
        figures=asdict(agreement),
    )


def _position(flips: Share) -> Check:
    passed = below(flips.interval, MOST_FLIPS)
    return Check(
        name="judges the response and not its place",
        passed=passed,
        finding=f"on {flips.share:.0%} of {flips.pairs} pairs the label turned with the order "
        f"(95 % interval {flips.low:.0%} to {flips.high:.0%})",
        advice=""
        if passed
        else "choose a stronger judge: this one mostly prefers a position"
        if passed is False
        else "judge more pairs to tell whether it prefers a position",
        figures=asdict(flips),
    )


def _consistency(consistency: Mean) -> Check:
    mean, error = consistency.mean, consistency.se
    if mean is None or error is None:
        passed, finding = None, "one answer a pair does not tell whether it would give the same answer again"
    else:
        passed = above((mean - 1.96 * error, mean + 1.96 * error), LEAST_CONSISTENCY)
        finding = f"asked again it would give the same answer with probability {mean:.2f} ± {1.96 * error:.2f}"
    return Check(
        name="says the same again",
        passed=passed,
        finding=finding,
        advice=""
        if passed
        else "choose a stronger judge or a clearer principle: this one is undecided about most pairs",
        figures=asdict(consistency),
    )


def _answers(failures: Failures, most: float) -> Check:
    failed = failures.unparsable + failures.error
    passed = failed <= most * failures.pairs and failed < failures.pairs
    return Check(
        name="answers",
        passed=passed,
        finding=f"{failed} of {failures.pairs} pairs without a label ({failures.unparsable} unparsable, "
        f"{failures.error} errors)",
        advice="" if passed else "read the reasons in the report; raise --max-failures if they do no harm",
        figures=asdict(failures),
    )
