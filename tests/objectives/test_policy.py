from __future__ import annotations

import math

import pytest
import torch

from kleash.objectives import clipped_surrogate

# ratio, advantage: objective, d objective / d log π, held by the clip; clip 0.2, by eq. 7 with pencil
CASES = [
    (0.5, 1.0, 0.5, 0.5, False),  # moved the wrong way: pulled back, however far
    (0.9, 1.0, 0.9, 0.9, False),
    (1.0, 1.0, 1.0, 1.0, False),
    (1.1, 1.0, 1.1, 1.1, False),
    (1.5, 1.0, 1.2, 0.0, True),
    (0.5, -1.0, -0.8, 0.0, True),
    (0.9, -1.0, -0.9, -0.9, False),
    (1.0, -1.0, -1.0, -1.0, False),
    (1.1, -1.0, -1.1, -1.1, False),
    (1.5, -1.0, -1.5, -1.5, False),
    (1.5, 3.0, 3.6, 0.0, True),
    (1.5, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "objective", "slope", "held"), CASES)
def test_surrogate_by_hand_on_both_sides_of_the_clip(ratio, advantage, objective, slope, held):
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    loss, metrics = clipped_surrogate(logprobs, old, advantages, clip=0.2, mask=torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(-objective)
    assert torch.autograd.grad(loss.sum(), logprobs)[0].item() == pytest.approx(-slope)
    assert metrics["clip_fraction"].item() == held
    assert metrics["ratio"].item() == pytest.approx(ratio)
    assert metrics["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio))


def test_unreduced_and_zero_where_masked_in_loss_and_metrics():
    old = torch.tensor([[0.0, -1.0, -2.0], [-3.0, -1.0, -1.0]])
    logprobs = (old + 0.1).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    loss, metrics = clipped_surrogate(logprobs, old, torch.full((2, 3), 2.0), clip=0.2, mask=mask)
    assert loss.shape == (2, 3)
    for tensor in (loss, *metrics.values()):
        assert not tensor[~mask].any()
    assert loss[mask].tolist() == pytest.approx([-2 * math.exp(0.1)] * 2)
    loss.sum().backward()
    assert not logprobs.grad[~mask].any()


def test_metrics_are_detached():
    logprobs = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    _, metrics = clipped_surrogate(logprobs, torch.zeros(2, 3), torch.randn(2, 3), clip=0.2, mask=mask)
    assert set(metrics) == {"ratio", "clip_fraction", "approx_kl"}
    assert not any(metric.requires_grad for metric in metrics.values())
