"""Checks of a policy: its metrics in, checks out. Pure functions; thresholds are constants with their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from kleash.checks.check import Check, answer
from kleash.checks.reward_checks import beyond_length, of_pairs
from kleash.checks.sft_checks import ENDS
from kleash.evals.intervals import Interval, above, below, difference_interval, wilson
from kleash.evals.preference_report import PreferenceReport
from kleash.evals.report_values import MeanSE

ENTROPY_LEFT = 0.2
"""A drop of entropy below this share of the first rollout's is reported."""

LONGER = 2.0
"""A change of response length by more than this factor is reported."""

OVERSHOOT = 1.25
"""Factor by which a policy may exceed its KL budget."""

OUTSIDE = 0.5
"""Of the samples that lie within the range that the reward model was trained on as the run starts, the share that may
leave it: beyond, its scores are unreliable."""

MOVED = 0.01
"""KL from the reference, in nats a response, below which a policy is still its reference: no probability of a set of
responses differs by more than √(KL/2), 0.07."""

SUREST = 0.51
"""Mean confidence of the surest tenth of preferences, below which a policy prefers nothing."""


def policy(rows: Sequence[Mapping[str, Any]], *, prompts: int, kl_budget: float | None, advice: str) -> list[Check]:
    """The checks of a policy that was trained against a reward.

    KL, entropy and length by themselves do not tell reward hacking from benign convergence, so a change of them is
    reported without failing the check. Exceeding the KL budget fails it, and so does a validation reward that fell
    while the reward rose.

    Args:
        rows: of metrics.jsonl, one per rollout.
        prompts: of a rollout. Intervals of shares count prompts, since the responses to one are not independent.
        kl_budget: largest KL from the reference, nats a response; None: no limit.
        advice: what to try where responses do not end.
    """
    rows = [row for row in rows if row.get("kl") is not None]
    first, last = rows[0], rows[-1]
    low, high = _of_prompts(last["end_rate"], prompts)
    checks = [
        answer(
            "responses end",
            above((low, high), ENDS),
            f"{last['end_rate']:.0%} of the last rollout's responses ended (95 % interval {low:.0%} to {high:.0%}, "
            f"{prompts} prompts), at KL {last['kl']:.2f} nats",
            advice,
            end_rate=last["end_rate"],
            low=low,
            high=high,
            kl=last["kl"],
        )
    ]
    if kl_budget is not None:
        checks.append(_within_budget(last["kl"], last.get("kl_se"), kl_budget))
    more = [
        _entropy_left(first, last),
        _length_kept(first, last),
        _validation_reward(rows),
        _in_known_range(first, last, prompts),
    ]
    return [*checks, *(check for check in more if check is not None)]


def _of_prompts(share: float, prompts: int) -> Interval:
    """The interval of a share of responses, as if those to a prompt were all alike."""
    return wilson(share * prompts, prompts)


def direct(report: PreferenceReport, *, kl: MeanSE | None) -> list[Check]:
    """The checks of a policy trained on comparisons: do its implicit rewards agree with the labels, and did it move?

    Args:
        report: of the implicit rewards of held-out pairs.
        kl: from the reference, nats a response; None where not measured.
    """
    low, high = report.accuracy_interval or (0.0, 1.0)
    finding = f"held-out accuracy of implicit rewards unknown: all {report.pairs} pairs are ties"
    if report.accuracy is not None:
        finding = (
            f"held-out accuracy of implicit rewards {report.accuracy:.3f} "
            f"(95 % interval {low:.3f} to {high:.3f}, {of_pairs(report)})"
        )
    passed = above((low, high), 0.5)
    advice = "the interval holds one half: train longer, raise --learning-rate, or hold out more comparisons"
    if passed is False:
        advice = "the labels look flipped, in training or here: check which column holds the chosen response"
    moved = _moved(report, kl)
    if not moved.passed:  # whatever its accuracy, there may be no preference in it
        passed, advice = None, moved.advice
    accurate = answer("better than chance", passed, finding, advice, accuracy=report.accuracy, low=low, high=high)
    checks = [accurate, moved] if moved.passed else [moved, accurate]
    return checks if report.accuracy is None else [*checks, beyond_length(report)]


def _moved(report: PreferenceReport, kl: MeanSE | None) -> Check:
    """Has the policy left its reference? Without that, the sign of its margins is all that its accuracy shows."""
    surest = max(row.confidence for row in report.reliability)
    finding = f"the surest tenth of its preferences has {surest:.3f}"
    passed = True if surest >= SUREST else None
    mean = error = None
    if kl is not None and kl["mean"] is not None:
        mean, error = kl["mean"], kl["se"]
        finding += f", KL {mean:.2g} nats a response"
        if passed is None and error is not None:
            passed = above((mean - 1.96 * error, mean + 1.96 * error), MOVED)
    advice = "it is still its reference: raise --learning-rate or train longer"
    return answer("moved from the reference", passed, finding, advice, surest=surest, kl=mean, kl_se=error)


def _within_budget(kl: float, error: float | None, budget: float) -> Check:
    """A run ends with the first rollout beyond its budget, so a small excess is normal."""
    passed = None if error is None else below((kl - 1.96 * error, kl + 1.96 * error), OVERSHOOT * budget)
    return answer(
        "within the KL budget",
        passed,
        f"KL {kl:.2f} ± {1.96 * (error or 0.0):.2f} nats a response of a budget of {budget:g}",
        "raise --beta, lower --learning-rate, or take an earlier checkpoint",
        kl=kl,
        kl_se=error,
        kl_budget=budget,
    )


def _entropy_left(first: Mapping[str, Any], last: Mapping[str, Any]) -> Check | None:
    start, end = first.get("entropy"), last.get("entropy")
    if not start or end is None:
        return None
    passed = True if end >= ENTROPY_LEFT * start else None
    return answer(
        "entropy left",
        passed,
        f"entropy {start:.3f} → {end:.3f} nats a token",
        "solved, or collapsed: read samples.jsonl; against collapse raise --beta",
        first=start,
        last=end,
    )


def _length_kept(first: Mapping[str, Any], last: Mapping[str, Any]) -> Check | None:
    start, end = first.get("length"), last.get("length")
    if not start or not end:
        return None
    passed = True if 1 / LONGER <= end / start <= LONGER else None
    return answer(
        "length kept",
        passed,
        f"{start:.1f} → {end:.1f} tokens a response",
        "check whether the reward is only length: `length_slope` of its report",
        first=start,
        last=end,
    )


def _validation_reward(rows: Sequence[Mapping[str, Any]]) -> Check | None:
    """Did the reward rise while the validation reward fell, by the 95 % interval of each (Student's t)?"""
    name = "validation reward model agrees"
    values = [(row["reward"], row["validation_reward"]) for row in rows if row.get("validation_reward") is not None]
    if not values:
        return None
    window = max(3, len(values) // 5)
    if len(values) < 2 * window:
        return answer(name, None, f"{len(values)} rollouts are too few to see a fall")
    early, late = np.array(values[:window]), np.array(values[-window:])
    rise = late.mean(0) - early.mean(0)  # of the reward, of the validation reward
    error = np.sqrt((early.var(0, ddof=1) + late.var(0, ddof=1)) / window)
    half = error * stats.t.ppf(0.975, 2 * window - 2)
    reward, validation = (above((float(r - h), float(r + h)), 0.0) for r, h in zip(rise, half, strict=True))
    # Hacked: the reward rose and the other fell. Not hacked: the other rose, or the reward did not.
    passed = False if reward and validation is False else True if validation or reward is False else None
    return answer(
        name,
        passed,
        f"reward {rise[0]:+.3f} ± {error[0]:.3f}, validation reward {rise[1]:+.3f} ± {error[1]:.3f} "
        f"from the first {window} rollouts to the last",
        "the reward is being hacked: take an earlier checkpoint, raise --beta, more comparisons",
        reward=float(rise[0]),
        validation_reward=float(rise[1]),
        validation_se=float(error[1]),
    )


def _in_known_range(first: Mapping[str, Any], last: Mapping[str, Any], prompts: int) -> Check | None:
    """Did the responses leave the range that the reward model was trained on? Judged against the first rollout.

    The first rollout is the starting policy's own samples: whatever of them lies outside, training did not bring there.
    With a and b the shares outside in the first and the last rollout, (b − a) / (1 − a) left the range. It is beyond
    `OUTSIDE` where b − (1 − OUTSIDE)·a is.
    """
    start, outside = first.get("outside"), last.get("outside")
    if start is None or outside is None:
        return None
    factor = 1 - OUTSIDE
    low, high = _of_prompts(start, prompts)
    interval = difference_interval(
        outside, _of_prompts(outside, prompts), factor * start, (factor * low, factor * high)
    )
    advice = "its scores are unreliable there: raise --beta, or take an earlier checkpoint"
    if start > OUTSIDE:
        advice = (
            "most samples of the starting policy lie outside already: label some of them (`kleash generate`) and train "
            "the reward model on those"
        )
    return answer(
        "within the reward model's range",
        below(interval, OUTSIDE),
        f"{outside:.0%} of the last rollout lies outside the range that the reward model was trained on, and "
        f"{start:.0%} of the first one, by the starting policy",
        advice,
        outside=outside,
        at_start=start,
    )
