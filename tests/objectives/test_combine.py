from __future__ import annotations

import pytest
import torch

from kleash.objectives.combine import combine_scores

SCORES = torch.tensor([[1.0, 3.0, -1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("combine", "penalty", "expected"),
    [("mean", 0.0, [1.0, 2.0]), ("worst", 0.0, [-1.0, 2.0]), ("mean-variance", 0.5, [1 - 0.5 * 8 / 3, 2.0])],
)
def test_scores_are_combined_as_published(combine: str, penalty: float, expected: list[float]) -> None:
    found = combine_scores(SCORES, combine=combine, variance_penalty=penalty)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("combine", ["mean", "worst", "mean-variance"])
def test_a_single_member_is_the_ensemble(combine: str) -> None:
    one = torch.randn(4, 2, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(combine_scores(one, combine=combine, variance_penalty=2.0), one[..., 0])  # type: ignore[arg-type]


def test_the_penalty_lowers_only_scores_on_which_members_disagree() -> None:
    gap = SCORES.mean(-1) - combine_scores(SCORES, combine="mean-variance", variance_penalty=1.0)
    assert gap[0] > 0
    assert gap[1] == 0
