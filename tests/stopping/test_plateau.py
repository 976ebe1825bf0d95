from __future__ import annotations

from kleash.stopping.plateau import Plateau


def test_patience_counts_measurements_in_a_row_without_a_new_best() -> None:
    rule = Plateau(2, "gold")
    for figure in (1.0, 0.5, 1.5, 1.5):
        assert rule.see(figure) is None, "the third was a new best, the fourth only equals it"
    reason = rule.see(1.4)
    assert reason is not None
    assert "gold on held-out prompts has not risen for 2 measurements" in reason
    assert "1.5" in reason


def test_a_resumed_rule_continues_counting() -> None:
    rule, resumed = Plateau(2, "gold"), Plateau(2, "gold")
    for figure in (1.0, 0.5):
        rule.see(figure)
    resumed.load_state_dict(rule.state_dict())
    assert resumed.see(0.7) == rule.see(0.7) is not None
    resumed.load_state_dict({})
    assert resumed.reason is not None, "an empty state changes nothing"


def test_without_patience_no_figure_ends_a_run() -> None:
    rule = Plateau(None, "gold")
    assert all(rule.see(0.0) is None for _ in range(50))
