"""Checks of a policy: its metrics in, checks out. Pure functions; thresholds are constants with their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kleash.checks.check import Check, answer
from kleash.checks.reward_checks import beyond_length
from kleash.checks.sft_checks import ENDS
from kleash.evals.preference_report import PreferenceReport

ENTROPY_LEFT = 0.2
"""A drop of entropy below this share of the first rollout's is reported."""

LONGER = 2.0
"""A change of response length by more than this factor is reported."""

OVERSHOOT = 1.25
"""Factor by which a policy may exceed its KL budget."""

OUTSIDE = 0.5
"""Share of samples outside the range that the reward model was trained on, from which its scores are unreliable."""


def policy(rows: Sequence[Mapping[str, Any]], *, kl_budget: float | None, advice: str) -> list[Check]:
    """The checks of a policy that was trained against a reward.

    KL, entropy and length by themselves do not tell reward hacking from benign convergence, so a change of them is
    reported without failing the check. Exceeding the KL budget fails it, and so does a validation reward that fell
    while the reward rose.

    Args:
        rows: of metrics.jsonl, one per rollout.
        kl_budget: largest KL from the reference, nats a response; None: no limit.
        advice: what to try where responses do not end.
    """
    rows = [row for row in rows if row.get("kl") is not None]
    first, last = rows[0], rows[-1]
    checks = [
        answer(
            "responses end",
            last["end_rate"] >= ENDS,
            f"{last['end_rate']:.0%} of the last rollout's responses ended, at KL {last['kl']:.2f} nats",
            advice,
            end_rate=last["end_rate"],
            kl=last["kl"],
        )
    ]
    if kl_budget is not None:
        checks.append(_within_budget(last["kl"], kl_budget))
    more = [_entropy_left(first, last), _length_kept(first, last), _validation_reward(rows), _in_known_range(last)]
    return [*checks, *(check for check in more if check is not None)]


def direct(report: PreferenceReport, *, kl: float | None) -> list[Check]:
    """The checks of a policy trained on comparisons: do its implicit rewards agree with the labels?

    Args:
        report: of the implicit rewards of held-out pairs.
        kl: from the reference, nats a response; None where not measured.
    """
    low, high = report.accuracy_interval or (None, None)
    finding = f"held-out accuracy of implicit rewards unknown: all {report.pairs} pairs are ties"
    if low is not None and high is not None:
        finding = (
            f"held-out accuracy of implicit rewards {report.accuracy:.3f} "
            f"(95 % interval {low:.3f} to {high:.3f}, {report.pairs} pairs)"
        )
    passed = low is not None and low > 0.5
    advice = "its interval must lie above one half: train longer, raise --learning-rate, or get more comparisons"
    if high is not None and high < 0.5:
        advice = "the labels look flipped, in training or here: check which column holds the chosen response"
    checks = [answer("better than chance", passed, finding, advice, accuracy=report.accuracy, low=low, kl=kl)]
    return checks if report.accuracy is None else [*checks, beyond_length(report)]


def _within_budget(kl: float, budget: float) -> Check:
    """A run ends with the first rollout beyond its budget, so a small excess is normal."""
    passed = kl <= OVERSHOOT * budget
    return answer(
        "within the KL budget",
        passed,
        f"KL {kl:.2f} nats a response of a budget of {budget:g}",
        "raise --beta, lower --learning-rate, or take an earlier checkpoint",
        kl=kl,
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
    """Did the reward rise while the validation reward fell, both by more than two standard errors?"""
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
    passed = not (rise[0] > 2 * error[0] and rise[1] < -2 * error[1])
    return answer(
        name,
        bool(passed),
        f"reward {rise[0]:+.3f} ± {error[0]:.3f}, validation reward {rise[1]:+.3f} ± {error[1]:.3f} "
        f"from the first {window} rollouts to the last",
        "the reward is being hacked: take an earlier checkpoint, raise --beta, more comparisons",
        reward=float(rise[0]),
        validation_reward=float(rise[1]),
        validation_se=float(error[1]),
    )


def _in_known_range(last: Mapping[str, Any]) -> Check | None:
    outside = last.get("outside")
    if outside is None:
        return None
    return answer(
        "within the reward model's range",
        bool(outside <= OUTSIDE),
        f"{outside:.0%} of the last rollout lies outside the range that the reward model was trained on",
        "its scores are unreliable there: raise --beta, or label such samples",
        outside=outside,
    )
