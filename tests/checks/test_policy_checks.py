from __future__ import annotations

import numpy as np
import pytest

from kleash.checks import policy_checks
from kleash.checks.check import Check, verdict
from kleash.evals.preference_report import PreferenceReport, preference_report
from kleash.evals.report_values import MeanSE


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.passed is False]


def held(name: str, value: float) -> float:
    return float(np.clip(value, 0, 1) if name in ("end_rate", "outside") else value)


def rollouts(n: int = 30, **last: float) -> list[dict[str, float]]:
    first = {"kl": 0.0, "kl_se": 0.1, "end_rate": 1.0, "entropy": 1.0, "length": 20.0, "reward": 0.0}
    noise = np.random.default_rng(0).normal(size=(n, 8)) * 0.01
    return [
        {k: held(k, v + (last.get(k, v) - v) * i / (n - 1) + noise[i, j]) for j, (k, v) in enumerate(full.items())}
        for full in [first | {k: 0.0 for k in last if k not in first}]
        for i in range(n)
    ]


def policy(kl_budget: float | None = None, prompts: int = 64, **last: float) -> dict[str, Check]:
    rows = rollouts(**last)
    return {c.name: c for c in policy_checks.policy(rows, prompts=prompts, kl_budget=kl_budget, advice="end them")}


def test_a_healthy_policy_passes_and_missing_metrics_are_not_checked() -> None:
    checks = policy(kl=3.0, reward=1.0)
    assert set(checks) == {"responses end", "entropy left", "length kept"}
    assert all(check.passed for check in checks.values())


def test_a_policy_fails_beyond_its_budget_without_ends_or_where_the_validation_reward_fell() -> None:
    assert failed(policy(kl_budget=5.0, kl=9.0)) == ["within the KL budget"]
    assert failed(policy(end_rate=0.2)) == ["responses end"]
    assert failed(policy(reward=1.0, validation_reward=-1.0)) == ["validation reward model agrees"]
    assert failed(policy(reward=1.0, validation_reward=1.0)) == []
    assert failed(policy(reward=-1.0, validation_reward=-1.0)) == [], "a run that got worse on both was not hacked"
    assert failed(policy(outside=0.9)) == ["within the reward model's range"]


def test_a_share_or_a_kl_whose_interval_holds_the_threshold_is_unknown() -> None:
    assert policy(end_rate=0.45)["responses end"].passed is None
    assert policy(end_rate=0.1, prompts=3)["responses end"].passed is None
    assert policy(kl_budget=5.0, kl=6.3)["within the KL budget"].passed is None
    assert policy(kl_budget=5.0, kl=9.0, kl_se=3.0)["within the KL budget"].passed is None
    assert policy(outside=0.55)["within the reward model's range"].passed is None


def test_what_lies_outside_is_judged_against_the_samples_of_the_starting_policy() -> None:
    name = "within the reward model's range"

    def judged(start: float, end: float) -> Check:
        rows = [{"kl": 0.0, "end_rate": 1.0, "reward": 0.0, "outside": share} for share in (start, end)]
        checks = policy_checks.policy(rows, prompts=256, kl_budget=None, advice="")
        return next(check for check in checks if check.name == name)

    assert judged(0.7, 0.72).passed and judged(0.02, 0.2).passed
    assert judged(0.7, 0.99).passed is False and judged(0.02, 0.8).passed is False
    assert "starting policy" in judged(0.7, 0.99).advice and "raise --beta" in judged(0.02, 0.8).advice
    assert judged(0.7, 0.86).passed is None


def test_entropy_and_length_by_themselves_are_reported_and_do_not_fail() -> None:
    checks = policy(entropy=0.02, length=90.0)
    assert failed(checks) == []
    assert checks["entropy left"].passed is None and checks["entropy left"].advice
    assert checks["length kept"].passed is None and checks["length kept"].advice


def preferences(scale: float, pairs: int = 16, right: int = 14) -> PreferenceReport:
    """Implicit rewards with margins of this size, most of them right."""
    margin = scale * np.where(np.arange(pairs) < right, 1.0, -1.0) * np.linspace(0.5, 1.5, pairs)
    return preference_report(np.stack([margin, 0 * margin], 1), np.ones(pairs), np.ones((pairs, 2)))


def direct(report: PreferenceReport, mean: float | None, se: float | None = None) -> dict[str, Check]:
    kl = None if mean is None else MeanSE(mean=mean, se=se)
    return {check.name: check for check in policy_checks.direct(report, kl=kl)}


def test_a_policy_that_is_still_its_reference_is_not_ok_for_its_accuracy() -> None:
    checks = direct(preferences(1e-3), 8e-5, 1e-5)
    assert failed(checks) == ["moved from the reference"]
    assert checks["better than chance"].passed is None and "--learning-rate" in checks["better than chance"].advice
    assert verdict(list(checks.values()))["passed"] is False


@pytest.mark.parametrize("kl", [(None, None), (0.009, 0.002), (8e-5, None)])
def test_whether_it_moved_is_unknown_where_neither_margin_nor_kl_tells(kl: tuple[float | None, float | None]) -> None:
    checks = direct(preferences(1e-3), *kl)
    assert checks["moved from the reference"].passed is None and checks["better than chance"].passed is None
    assert verdict(list(checks.values()))["passed"] is None, "not ok"


def test_a_margin_or_a_kl_of_some_size_is_enough_to_have_moved() -> None:
    for checks in (direct(preferences(0.5), None), direct(preferences(1e-3), 0.5, 0.1)):
        assert checks["moved from the reference"].passed and checks["better than chance"].passed


def test_few_pairs_are_unknown_and_only_ties_too() -> None:
    assert direct(preferences(0.5, pairs=2, right=2), 1.0, 0.1)["better than chance"].passed is None
    assert direct(preferences(0.5, right=1), 1.0, 0.1)["better than chance"].passed is False, "flipped"
