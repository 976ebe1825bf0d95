from __future__ import annotations

import numpy as np
import pytest
import torch

from kleash.objectives import clipped_value_loss, explained_variance

# value, old value, return: loss, d loss / d value, held by the clip; clip 0.2, with pencil
CASES = [
    (1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9, False),  # inside the clip
    (1.5, 1.0, 3.0, 0.5 * 1.8**2, 0.0, True),  # moved up towards the return, beyond the clip: no more gain
    (0.5, 1.0, -1.0, 0.5 * 1.8**2, 0.0, True),  # the same downwards
    (0.5, 1.0, 3.0, 0.5 * 2.5**2, -2.5, False),  # moved away: the larger error counts, and pulls back
    (1.5, 1.0, -1.0, 0.5 * 2.5**2, 2.5, False),
    (1.5, 1.0, 1.4, 0.5 * 0.2**2, 0.0, True),  # went past the return, the clipped error is the larger
    (1.5, 1.0, 1.2, 0.5 * 0.3**2, 0.3, False),
]


@pytest.mark.parametrize(("value", "old", "target", "expected", "slope", "held"), CASES)
def test_value_loss_by_hand_on_both_sides_of_the_clip(value, old, target, expected, slope, held):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    as_tensor = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, metrics = clipped_value_loss(values, as_tensor(old), as_tensor(target), clip=0.2, mask=mask)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss.sum(), values)[0].item() == pytest.approx(slope)
    assert metrics["clip_fraction"].item() == held
    free, metrics = clipped_value_loss(values, as_tensor(old), as_tensor(target), clip=None, mask=mask)
    assert free.item() == pytest.approx(0.5 * (value - target) ** 2)
    assert torch.autograd.grad(free.sum(), values)[0].item() == pytest.approx(value - target)
    assert metrics["clip_fraction"].item() == 0


@pytest.mark.parametrize("clip", [None, 0.2])
def test_unreduced_and_zero_where_masked(clip):
    values = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    loss, metrics = clipped_value_loss(values, values.detach(), torch.zeros(1, 3), clip=clip, mask=mask)
    assert loss.tolist() == [[0.5, 0.0, 4.5]]
    loss.sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0, 3.0]]
    assert set(metrics) == {"clip_fraction"}
    assert not metrics["clip_fraction"].requires_grad


def test_explained_variance_is_that_of_numpy_over_unmasked_positions():
    rng = np.random.default_rng(0)
    returns = rng.normal(2, 3, (6, 7))
    values = returns * 0.7 + rng.normal(0, 1, (6, 7))
    mask = rng.random((6, 7)) < 0.6
    expected = 1 - (returns - values)[mask].var() / returns[mask].var()
    ours = explained_variance(*map(torch.from_numpy, (values, returns)), mask=torch.from_numpy(mask))
    assert ours.item() == pytest.approx(expected)


def test_explained_variance_of_perfect_constant_and_shifted_values():
    returns = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask=mask).item() == 1
    assert explained_variance(returns + 5, returns, mask=mask).item() == pytest.approx(
        1
    )  # the usual trap: bias is free
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask=mask).item() == pytest.approx(0, abs=1e-6)
    assert explained_variance(-returns, returns, mask=mask).item() == pytest.approx(-3)
    assert not explained_variance(returns, returns, mask=mask).requires_grad


def test_explained_variance_of_equal_returns_is_zero_and_no_rounding_error():
    values, mask = torch.randn(50, 40), torch.ones(50, 40, dtype=torch.bool)
    for constant in (0.0, 0.1, -1234.567):
        assert explained_variance(values, torch.full((50, 40), constant), mask=mask).item() == 0
    assert explained_variance(values, values, mask=~mask).item() == 0
