from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from kleash.objectives import (
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    length_normalised_dpo_loss,
    pair_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed_dpo_loss,
)

BETA, EPSILON, GAMMA = 0.5, 0.2, 0.3
logprob = st.floats(-30, 0)
probability = st.floats(0, 1)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# name: the loss of (policy, reference, lengths, p)
LOSSES = {
    "sigmoid": lambda policy, reference, lengths, p: dpo_loss(policy, reference, p=p, beta=BETA),
    "smoothed": lambda policy, reference, lengths, p: smoothed_dpo_loss(
        policy, reference, p=p, beta=BETA, label_smoothing=EPSILON
    ),
    "robust": lambda policy, reference, lengths, p: robust_dpo_loss(
        policy, reference, p=p, beta=BETA, label_smoothing=EPSILON
    ),
    "ipo": lambda policy, reference, lengths, p: ipo_loss(policy, reference, p=p, beta=BETA),
    "simpo": lambda policy, reference, lengths, p: simpo_loss(policy, lengths, p=p, beta=BETA, gamma=GAMMA),
    "length-normalised": lambda policy, reference, lengths, p: length_normalised_dpo_loss(
        policy, reference, lengths, p=p, beta=BETA
    ),
}

POLICY, REFERENCE = double([[-3.0, -7.0]]), double([[-4.0, -6.0]])  # log-ratios 1 and −1
LENGTHS = torch.tensor([[2, 5]])
BY_HAND = {
    # h = ½ (1 − (−1)) = 1
    "sigmoid": (-math.log(sigmoid(1)), -0.7 * math.log(sigmoid(1)) - 0.3 * math.log(sigmoid(-1))),
    # q = 0.8 and 0.7·0.8 + 0.3·0.2 = 0.62
    "smoothed": (
        -0.8 * math.log(sigmoid(1)) - 0.2 * math.log(sigmoid(-1)),
        -0.62 * math.log(sigmoid(1)) - 0.38 * math.log(sigmoid(-1)),
    ),
    # ((1 − ε) L(p) − ε L(1 − p)) / (1 − 2ε)
    "robust": (
        (0.8 * -math.log(sigmoid(1)) - 0.2 * -math.log(sigmoid(-1))) / 0.6,
        (
            0.8 * (-0.7 * math.log(sigmoid(1)) - 0.3 * math.log(sigmoid(-1)))
            - 0.2 * (-0.3 * math.log(sigmoid(1)) - 0.7 * math.log(sigmoid(-1)))
        )
        / 0.6,
    ),
    # Δ = 2, 1/2β = 1
    "ipo": (1.0, 0.7 * 1 + 0.3 * 9),
    # h = ½ (−3/2 + 7/5) = −0.05
    "simpo": (
        -math.log(sigmoid(-0.05 - 0.3)),
        -0.7 * math.log(sigmoid(-0.05 - 0.3)) - 0.3 * math.log(sigmoid(0.05 - 0.3)),
    ),
    # h = ½ (1/2 + 1/5) = 0.35
    "length-normalised": (-math.log(sigmoid(0.35)), -0.7 * math.log(sigmoid(0.35)) - 0.3 * math.log(sigmoid(-0.35))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_by_hand(name):
    hard, soft = (LOSSES[name](POLICY, REFERENCE, LENGTHS, double([p]))[0].item() for p in (1.0, 0.7))
    assert (hard, soft) == pytest.approx(BY_HAND[name], rel=1e-12)


REWARDS = {"simpo": (-0.75, -0.7), "length-normalised": (0.25, -0.1)}


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_by_hand(name):
    """Rewards of what the label favours and of the other; half a hit at a tie, of labels or rewards."""
    first, second = REWARDS.get(name, (0.5, -0.5))
    found = {p: LOSSES[name](POLICY, REFERENCE, LENGTHS, double([p]))[1] for p in (1.0, 0.7, 0.5, 0.2)}
    right = float(first > second)
    for p, accuracy in ((1.0, right), (0.7, right), (0.5, 0.5), (0.2, 1 - right)):
        metrics = {key: value.item() for key, value in found[p].items()}
        chosen, rejected = (second, first) if p < 0.5 else (first, second)
        assert metrics == pytest.approx(
            {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected, "accuracy": accuracy}
        )
    same = torch.full((1, 2), -3.0, dtype=torch.float64)
    assert LOSSES[name](same, same, torch.full((1, 2), 4), double([1.0]))[1]["accuracy"].item() == 0.5


# What each paper states: the margin h of implicit rewards at which the loss on labels of probability p is least.
MINIMISERS = {
    "sigmoid": lambda p: math.log(p / (1 - p)),
    "smoothed": lambda p: math.log((p * 0.8 + (1 - p) * 0.2) / (p * 0.2 + (1 - p) * 0.8)),
    "robust": lambda p: math.log((p - 0.2) / (0.8 - p)),
    "ipo": lambda p: (2 * p - 1) / 2,  # β Δ
    "simpo": lambda p: (
        minimize_scalar(
            lambda h: p * math.log1p(math.exp(GAMMA - h)) + (1 - p) * math.log1p(math.exp(GAMMA + h)), tol=1e-12
        ).x
    ),
    "length-normalised": lambda p: math.log(p / (1 - p)),
}


def trained(loss_of, size):
    """A table of log-probabilities of `size` responses, trained to the minimum of a loss."""
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(logits.log_softmax(-1))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("name", LOSSES)
def test_a_tabular_policy_trained_on_the_loss_ends_at_the_stated_minimiser(name, p):
    """Two responses, and hard labels in the share p and 1 − p, as labellers give them."""
    reference, lengths = double([[0.3, 0.7]]).log(), torch.tensor([[2, 5]])

    def loss(policy):
        hard = (LOSSES[name](policy[None], reference, lengths, double([label]))[0].sum() for label in (1.0, 0.0))
        return sum(share * value for share, value in zip((p, 1 - p), hard, strict=True))

    _, metrics = LOSSES[name](trained(loss, 2)[None], reference, lengths, double([1.0]))
    assert metrics["margin"].item() == pytest.approx(MINIMISERS[name](p), abs=1e-5)


def bradley_terry(rewards):
    return torch.sigmoid(rewards[:, 0] - rewards[:, 1])


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_on_bradley_terry_labels_ends_at_the_closed_form_optimum(beta):
    """π* ∝ π_ref exp(r/β), from a chain of pairs that touches every response once or twice."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(6, dtype=torch.float64, generator=generator).log_softmax(-1)
    rewards = torch.rand(6, dtype=torch.float64, generator=generator)
    pairs = torch.tensor([[i, i + 1] for i in range(5)])
    p = bradley_terry(rewards[pairs])
    policy = trained(lambda policy: dpo_loss(policy[pairs], reference[pairs], p=p, beta=beta)[0].sum(), 6)
    torch.testing.assert_close(policy, (reference + rewards / beta).log_softmax(-1), rtol=0, atol=1e-5)


def test_plackett_luce_on_population_rankings_ends_at_the_closed_form_optimum():
    generator = torch.Generator().manual_seed(2)
    reference = torch.randn(3, dtype=torch.float64, generator=generator).log_softmax(-1)
    rewards = torch.rand(3, dtype=torch.float64, generator=generator)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    weight = double([math.exp(slow_plackett_luce(rewards.tolist(), order)) for order in orders.tolist()])
    assert weight.sum().item() == pytest.approx(1)
    ranks = orders.argsort(-1)

    def loss(policy):
        many = policy.expand(len(orders), 3)
        return (weight * plackett_luce_loss(many, reference.expand(len(orders), 3), ranks, beta=BETA)[0]).sum()

    torch.testing.assert_close(trained(loss, 3), (reference + rewards / BETA).log_softmax(-1), rtol=0, atol=1e-5)


def slow_plackett_luce(rewards, order):
    """log P(order), choice by choice."""
    left, total = list(order), 0.0
    while left:
        total += rewards[left[0]] - math.log(sum(math.exp(rewards[i]) for i in left))
        left.pop(0)
    return total


@settings(deadline=None)
@given(st.integers(2, 5), st.data())
def test_plackett_luce_is_one_choice_after_another(responses, data):
    policy, reference = (data.draw(st.lists(logprob, min_size=responses, max_size=responses)) for _ in range(2))
    order = data.draw(st.permutations(range(responses)))
    ranks = torch.tensor([order]).argsort(-1) * 2 + 1  # any integers in that order will do
    loss, metrics = plackett_luce_loss(double([policy]), double([reference]), ranks, beta=BETA)
    rewards = [BETA * (a - b) for a, b in zip(policy, reference, strict=True)]
    assert loss.item() == pytest.approx(-slow_plackett_luce(rewards, order), rel=1e-9, abs=1e-9)
    pairs = list(itertools.combinations(order, 2))
    assert metrics["margin"].item() == pytest.approx(sum(rewards[a] - rewards[b] for a, b in pairs) / len(pairs))
    hits = [0.5 if rewards[a] == rewards[b] else float(rewards[a] > rewards[b]) for a, b in pairs]
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert metrics["chosen_reward"].item() == pytest.approx(rewards[order[0]])
    assert metrics["rejected_reward"].item() == pytest.approx(rewards[order[-1]])


@settings(deadline=None)
@given(logprob, logprob, st.booleans())
def test_a_ranking_of_two_is_a_pair(a, b, first):
    policy, reference = double([[a, b]]), double([[-3.0, -4.0]])
    ranks = torch.tensor([[0, 1]] if first else [[1, 0]])
    loss, metrics = plackett_luce_loss(policy, reference, ranks, beta=BETA)
    expected, pair_metrics = dpo_loss(policy, reference, p=double([float(first)]), beta=BETA)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, pair_metrics)


def test_a_ranking_with_ties_is_refused():
    zeros = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="has no ties"):
        plackett_luce_loss(zeros, zeros, torch.tensor([[0, 1, 1]]), beta=BETA)


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None)
@given(logprob, logprob, logprob, logprob, probability)
def test_swapping_the_columns_and_the_label_changes_nothing(name, a, b, c, d, p):
    policy, reference, lengths = double([[a, b]]), double([[c, d]]), torch.tensor([[3, 7]])
    loss, metrics = LOSSES[name](policy, reference, lengths, double([p]))
    swapped, swapped_metrics = LOSSES[name](policy.flip(-1), reference.flip(-1), lengths.flip(-1), 1 - double([p]))
    torch.testing.assert_close(swapped, loss, rtol=1e-9, atol=1e-9)
    if abs(p - 0.5) > 1e-9:  # of a tie neither response is the chosen one
        torch.testing.assert_close(swapped_metrics, metrics)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("simpo", "length-normalised")])
@settings(deadline=None)
@given(logprob, logprob, st.floats(-50, 50), probability)
def test_a_constant_of_the_prompt_cancels(name, a, b, shift, p):
    """log Z(x) is in both log-ratios, so it cancels."""
    policy, reference, lengths = double([[a, b]]), double([[-5.0, -6.0]]), torch.tensor([[3, 7]])
    loss, _ = LOSSES[name](policy, reference, lengths, double([p]))
    for moved in ((policy + shift, reference), (policy, reference + shift)):
        torch.testing.assert_close(LOSSES[name](*moved, lengths, double([p]))[0], loss, rtol=1e-9, atol=1e-9)


def test_with_different_lengths_a_constant_of_the_prompt_does_not_cancel():
    """Why the length-normalised optimum is not π*."""
    shifted, plain = (
        length_normalised_dpo_loss(POLICY + by, REFERENCE, LENGTHS, p=double([1.0]), beta=BETA)[0] for by in (1.0, 0.0)
    )
    assert abs(shifted - plain).item() > 0.01


@settings(deadline=None)
@given(logprob, logprob, st.floats(0.01, 0.49), st.floats(0.01, 0.99))
def test_robust_dpo_is_unbiased_on_labels_with_flips(a, b, flipped, p):
    """Labels of p that were flipped with probability ε: in expectation the loss on clean ones."""
    policy, reference = double([[a, b]]), double([[-3.0, -4.0]])
    noisy = double([p * (1 - flipped) + (1 - p) * flipped])
    robust, _ = robust_dpo_loss(policy, reference, p=noisy, beta=BETA, label_smoothing=flipped)
    torch.testing.assert_close(robust, dpo_loss(policy, reference, p=double([p]), beta=BETA)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [smoothed_dpo_loss, robust_dpo_loss])
def test_without_flips_it_is_dpo_and_half_of_them_are_refused(loss):
    plain = dpo_loss(POLICY, REFERENCE, p=double([0.7]), beta=BETA)
    torch.testing.assert_close(loss(POLICY, REFERENCE, p=double([0.7]), beta=BETA, label_smoothing=0.0), plain)
    for share in (0.5, 0.7, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, ½\)"):
            loss(POLICY, REFERENCE, p=double([1.0]), beta=BETA, label_smoothing=share)


def test_dpo_is_bradley_terry_on_implicit_rewards():
    rewards = implicit_rewards(POLICY, REFERENCE, beta=BETA)
    torch.testing.assert_close(
        dpo_loss(POLICY, REFERENCE, p=double([0.7]), beta=BETA)[0], pair_loss(rewards, p=double([0.7]))[0]
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_extreme_log_ratios_stay_finite_with_their_gradients(name, p):
    policy = torch.tensor([[-1e4, 0.0], [0.0, -1e4]], requires_grad=True)
    loss, metrics = LOSSES[name](policy, torch.zeros(2, 2), torch.tensor([[3, 1]] * 2), torch.full((2,), p))
    loss.sum().backward()
    for tensor in (loss, policy.grad, *metrics.values()):
        assert torch.isfinite(tensor).all()
    ranked = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    plackett_luce_loss(ranked, torch.zeros(1, 3), torch.tensor([[0, 1, 2]]), beta=1.0)[0].sum().backward()
    assert torch.equal(ranked.grad, torch.tensor([[-1.0, -1.0, 2.0]]))


@pytest.mark.parametrize("name", ["simpo", "length-normalised"])
def test_a_response_without_a_token_has_reward_zero_and_no_gradient(name):
    policy = double([[0.0, -6.0]]).requires_grad_()
    loss, metrics = LOSSES[name](policy, double([[0.0, -4.0]]), torch.tensor([[0, 4]]), double([1.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert metrics["chosen_reward"].item() == 0
    assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_are_detached(name):
    policy = POLICY.clone().requires_grad_()
    for metric in LOSSES[name](policy, REFERENCE, LENGTHS, double([1.0]))[1].values():
        assert not metric.requires_grad
    for metric in plackett_luce_loss(policy, REFERENCE, torch.tensor([[0, 1]]), beta=BETA)[1].values():
        assert not metric.requires_grad
