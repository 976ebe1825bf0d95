from __future__ import annotations

from kleash.stopping.kl_budget import KLBudget


def test_a_run_ends_with_the_rollout_that_is_beyond_the_budget() -> None:
    rule = KLBudget(2.0)
    assert rule.see(2.0) is None
    assert rule.see(2.5) == "KL 2.5 nats is beyond the budget of 2"
    resumed = KLBudget(2.0)
    resumed.load_state_dict(rule.state_dict())
    assert resumed.reason == rule.reason, "a resumed run ends, too"


def test_without_a_budget_no_kl_ends_a_run() -> None:
    assert KLBudget(None).see(1e9) is None
