from __future__ import annotations

import math

import pytest
import torch

from kleash.objectives import clipped_surrogate, truncated_importance

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


# ratio, advantage: objective, slope; clips 0.2 and 0.28 (arXiv:2503.14476 eq. 10) by hand
@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [(1.25, 1.0, 1.25, 1.25), (1.3, 1.0, 1.28, 0.0), (0.75, -1.0, -0.8, 0.0), (0.75, 1.0, 0.75, 0.75)],
)
def test_the_two_clips_are_independent(ratio, advantage, objective, slope):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss, _ = clipped_surrogate(logprobs, 0 * one, advantage * one, clip=0.2, clip_high=0.28, mask=one.bool())
    assert loss.item() == pytest.approx(-objective)
    assert torch.autograd.grad(loss.sum(), logprobs)[0].item() == pytest.approx(-slope)


def test_one_clip_is_both():
    logprobs, old, advantages = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = torch.ones(4, 5, dtype=torch.bool)
    one, both = (
        clipped_surrogate(logprobs, old, advantages, clip=0.2, clip_high=high, mask=mask)[0] for high in (None, 0.2)
    )
    assert torch.equal(one, both)


def test_the_importance_of_a_token_is_the_ratio_of_the_engines_up_to_a_limit():
    trainer, sampler = torch.tensor([[0.5, 0.5, 0.1, 0.3]]).log(), torch.tensor([[0.5, 0.4, 0.4, 0.1]]).log()
    mask = torch.tensor([[True, True, True, True]])
    assert truncated_importance(trainer, sampler, mask=mask)[0].tolist() == pytest.approx([1.0, 1.25, 0.25, 2.0])
    assert truncated_importance(trainer, sampler, limit=5.0, mask=mask)[0, 3].item() == pytest.approx(3.0)
    assert not truncated_importance(trainer.requires_grad_(), sampler, mask=mask).requires_grad


def test_a_masked_token_has_no_importance():
    logprobs, mask = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert torch.equal(truncated_importance(logprobs, logprobs, mask=mask.bool()), mask.float())
