from __future__ import annotations

import numpy as np

from kleash.checks import policy_checks
from kleash.checks.check import Check


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.passed is False]


def rollouts(n: int = 30, **last: float) -> list[dict[str, float]]:
    first = {"kl": 0.0, "end_rate": 1.0, "entropy": 1.0, "length": 20.0, "reward": 0.0}
    noise = np.random.default_rng(0).normal(size=(n, 8)) * 0.01
    return [
        {k: float(v + (last.get(k, v) - v) * i / (n - 1) + noise[i, j]) for j, (k, v) in enumerate(full.items())}
        for full in [first | {k: 0.0 for k in last if k not in first}]
        for i in range(n)
    ]


def policy(kl_budget: float | None = None, **last: float) -> dict[str, Check]:
    return {c.name: c for c in policy_checks.policy(rollouts(**last), kl_budget=kl_budget, advice="end them")}


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


def test_entropy_and_length_by_themselves_are_reported_and_do_not_fail() -> None:
    checks = policy(entropy=0.02, length=90.0)
    assert failed(checks) == []
    assert checks["entropy left"].passed is None and checks["entropy left"].advice
    assert checks["length kept"].passed is None and checks["length kept"].advice
