"""The expected gradient of a group, by enumerating every group that a small policy can sample.

The policy is a table: after each prefix it continues or ends, so there are four responses of unequal length.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from kleash.objectives import (
    clipped_surrogate,
    group_centred,
    group_standardised,
    kl,
    leave_one_out,
    token_weights,
)

END, ON = 0, 1
LONGEST = 3
RESPONSES = [(END,), (ON, END), (ON, ON, END), (ON, ON, ON)]  # the last one is cut off
MASK = torch.tensor([[t < len(response) for t in range(LONGEST)] for response in RESPONSES])
REWARDS = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
SIZE, BETA = 3, 0.7


def table(seed):
    return torch.randn(LONGEST, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


REFERENCE = table(1)


def logprobs(parameters):
    """log π of each token of each response: [responses, T]; 0 where there is none."""
    by_place = parameters.log_softmax(-1)
    rows = [
        [by_place[t, response[t]] if t < len(response) else by_place.new_zeros(()) for t in range(LONGEST)]
        for response in RESPONSES
    ]
    return torch.stack([torch.stack(row) for row in rows])


def exact_gradient(beta):
    """∇ (E[r] − β KL(π ‖ π_ref)), by summing over all responses."""
    parameters = table(0).requires_grad_()
    log_policy = logprobs(parameters).sum(-1)
    value = (log_policy.exp() * (REWARDS - beta * (log_policy - logprobs(REFERENCE).sum(-1)))).sum()
    return torch.autograd.grad(value, parameters)[0]


def expected_gradient(advantage, *, normalisation="constant", beta=0.0, estimator=None, rewards=REWARDS):
    """Minus the gradient of the loss of a group, averaged over all groups of three; times what `constant` divides by.

    The KL penalty is in the reward, or with an `estimator` in the loss.
    """
    parameters = table(0).requires_grad_()
    now, reference = logprobs(parameters), logprobs(REFERENCE)
    old, total = now.detach(), torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(len(RESPONSES)), repeat=SIZE):
        rows = list(group)
        scores = rewards[rows]
        if estimator is None:
            scores = scores - beta * kl.per_sequence(kl.k1(old[rows], reference[rows]), MASK[rows])
        advantages = advantage(scores[None])[0][:, None].expand(-1, LONGEST)
        loss, _ = clipped_surrogate(now[rows], old[rows], advantages, clip=0.2, mask=MASK[rows])
        if estimator is not None:
            loss = loss + beta * estimator(now[rows], reference[rows], mask=MASK[rows])
        weights = token_weights(MASK[rows], normalisation, longest=LONGEST)
        total = total + old[rows].sum().exp() * (weights * loss).sum()
    return -LONGEST * torch.autograd.grad(total, parameters)[0]


def cosine(a, b):
    return (a * b).sum().item() / (a.norm() * b.norm()).item()


def test_the_policy_is_one():
    assert logprobs(table(0)).sum(-1).exp().sum().item() == pytest.approx(1.0)
    assert exact_gradient(BETA).norm() > 0.1


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_leave_one_out_gives_the_exact_gradient_with_the_kl_penalty_in_the_reward(beta):
    torch.testing.assert_close(expected_gradient(leave_one_out, beta=beta), exact_gradient(beta), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_centring_on_the_group_gives_the_exact_gradient_less_one_part_in_its_size(beta):
    expected = (SIZE - 1) / SIZE * exact_gradient(beta)
    torch.testing.assert_close(expected_gradient(group_centred, beta=beta), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_other_normalisations_change_the_direction_of_the_gradient(normalisation):
    turned = expected_gradient(leave_one_out, normalisation=normalisation)
    assert cosine(turned, exact_gradient(0.0)) < 1 - 1e-4


def test_standardising_weighs_groups_by_their_spread():
    """Not by a scale alone: the direction is another one, too."""
    assert cosine(expected_gradient(group_standardised), exact_gradient(0.0)) < 0.999


def test_F14_the_k2_response_penalty_in_the_loss_has_the_exact_gradient_and_k3_has_not():
    exact = exact_gradient(BETA)
    corrected = expected_gradient(leave_one_out, beta=BETA, estimator=kl.k2_of_responses)
    torch.testing.assert_close(corrected, exact, rtol=1e-6, atol=1e-7)
    for other in (kl.k3, kl.k2):
        published = expected_gradient(leave_one_out, beta=BETA, estimator=other)
        assert (published - exact).norm() > 0.02 * exact.norm()


def test_standardised_advantages_change_the_weight_of_a_kl_penalty_in_the_loss_but_not_of_one_in_the_reward():
    """At π* every response has r − β log(π*/π_ref) in common, so in the reward nothing is left to divide.

    In the loss, rewards that are ten times as large are standardised to what they were: the KL penalty then costs a
    tenth.
    """
    policy = logprobs(table(0)).sum(-1)
    at_optimum = BETA * (policy - logprobs(REFERENCE).sum(-1))  # the rewards for which the table is π*
    small = expected_gradient(group_standardised, beta=BETA, rewards=at_optimum)
    assert small.norm() < 1e-6
    loss, ten = (
        expected_gradient(group_standardised, beta=BETA, estimator=kl.k2_of_responses, rewards=factor * REWARDS)
        for factor in (1, 10)
    )
    torch.testing.assert_close(loss, ten, rtol=1e-2, atol=1e-3)
