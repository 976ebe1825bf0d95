from __future__ import annotations

import pytest
import torch

from kleash.errors import TrainingError
from kleash.stopping.degenerate import DEAD_AFTER, SOLVED_AFTER, DegenerateRun, GroupScores, zero_spread


def rollout(scores: list[list[float]], *, counts: bool = True) -> GroupScores:
    values = torch.tensor(scores)
    return GroupScores(values, torch.full((1, values.numel(), 1), counts))


def test_a_run_is_solved_after_rollouts_with_nothing_but_the_best_reward() -> None:
    rule = DegenerateRun()
    rule.see(rollout([[0.0, 1.0]]))
    for _ in range(SOLVED_AFTER - 1):
        assert rule.see(rollout([[1.0, 1.0], [1.0, 1.0]])) is None
    assert rule.solved_share == 1.0
    assert "had the best reward seen, 1" in (rule.see(rollout([[1.0, 1.0]])) or "")


def test_a_constant_reward_from_the_first_rollout_is_dead_and_not_solved() -> None:
    rule = DegenerateRun()
    for _ in range(DEAD_AFTER):
        rule.raise_if_dead(end_rate=1.0, empty=False, longest=8)
        assert rule.see(rollout([[1.0, 1.0]])) is None
    resumed = DegenerateRun()
    resumed.load_state_dict(rule.state_dict())
    for each in (rule, resumed):
        with pytest.raises(TrainingError, match=r"the same reward \(1\)"):
            each.raise_if_dead(end_rate=1.0, empty=False, longest=8)
    with pytest.raises(TrainingError, match="raise --max-new-tokens"):
        rule.raise_if_dead(end_rate=0.0, empty=False, longest=8)


def test_groups_of_zero_spread_are_those_with_one_score() -> None:
    assert zero_spread(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist() == [True, False]
