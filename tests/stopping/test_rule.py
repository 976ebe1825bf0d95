from __future__ import annotations

from kleash.checks.stopping import Plateau


def test_a_run_ends_with_the_rollout_that_is_beyond_the_budget() -> None:
    stopping = Plateau()
    stopping.see_kl(2.0, 2.0)
    assert stopping.reason is None
    stopping.see_kl(2.5, 2.0)
    assert stopping.reason == "KL 2.5 nats is beyond the budget of 2"


def test_without_a_budget_no_kl_ends_a_run() -> None:
    stopping = Plateau()
    stopping.see_kl(1e9, None)
    assert stopping.reason is None


def test_patience_counts_measurements_in_a_row_without_a_new_best() -> None:
    stopping = Plateau()
    for figure in (1.0, 0.5, 1.5, 1.5):
        stopping.see_figure(figure, 2, "gold")
    assert stopping.reason is None, "the third was a new best, the fourth only equals it"
    stopping.see_figure(1.4, 2, "gold")
    assert stopping.reason is not None
    assert "gold on held-out prompts has not risen for 2 measurements" in stopping.reason
    assert "1.5" in stopping.reason
