from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.objectives import clipped_surrogate, gae, kl, token_rewards

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}

distributions = st.lists(st.floats(-3, 3), min_size=5, max_size=5).map(
    lambda logits: torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
)


def expectation(policy, values):
    return (policy.exp() * values).sum(-1)


def definition(policy, reference):
    return sum(math.exp(a) * (a - b) for a, b in zip(policy.tolist(), reference.tolist(), strict=True))


def test_estimators_by_hand():
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    ln2 = math.log(2)
    assert kl.k1(policy, reference).tolist() == pytest.approx([ln2, -ln2])
    assert kl.k2(policy, reference).tolist() == pytest.approx([ln2**2 / 2, ln2**2 / 2])
    assert kl.k3(policy, reference).tolist() == pytest.approx([0.5 - 1 + ln2, 2 - 1 - ln2])


def test_exact_by_hand():
    policy, reference = torch.tensor([[0.5, 0.5]]).log() + 3, torch.tensor([[0.25, 0.75]]).log() - 1  # logits, shifted
    assert kl.exact(policy, reference).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)])


@settings(deadline=None)
@given(distributions, distributions)
def test_F14_k1_and_k3_are_unbiased_and_k2_is_not(policy, reference):
    truth = definition(policy, reference)
    assert kl.exact(policy, reference).item() == pytest.approx(truth, abs=1e-12)
    assert expectation(policy, kl.k1(policy, reference)).item() == pytest.approx(truth, abs=1e-12)
    assert expectation(policy, kl.k3(policy, reference)).item() == pytest.approx(truth, abs=1e-12)
    bias = sum(
        math.exp(a) * ((a - b) ** 2 / 2 - (a - b)) for a, b in zip(policy.tolist(), reference.tolist(), strict=True)
    )
    assert expectation(policy, kl.k2(policy, reference)).item() - truth == pytest.approx(bias, abs=1e-12)
    assert (kl.k3(policy, reference) >= 0).all()


def test_F14_the_bias_of_k2_shows_far_from_the_reference_and_vanishes_near_it():
    reference = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    direction = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    ratio = []
    for step in (1.0, 0.01):
        policy = (reference + step * direction).log_softmax(-1)
        ratio.append((expectation(policy, kl.k2(policy, reference)) / kl.exact(policy, reference)).item())
    assert abs(ratio[0] - 1) > 0.1
    assert abs(ratio[1] - 1) < 0.02


def test_k3_keeps_its_digits_where_the_policies_almost_agree():
    small = torch.tensor([1e-4, -1e-4], dtype=torch.float32)
    assert kl.k3(small, torch.zeros(2)).tolist() == pytest.approx([5e-9, 5e-9], rel=0.2)


def test_a_token_the_policy_never_takes_counts_nothing():
    policy = torch.tensor([[0.0, -math.inf, 0.0], [0.0, -math.inf, 0.0]], requires_grad=True)
    reference = torch.tensor([[0.0, 0.0, 0.0], [0.0, -math.inf, 0.0]])
    value = kl.exact(policy * 1, reference)
    assert value.tolist() == pytest.approx([math.log(1.5), 0.0], abs=1e-6)
    value.sum().backward()
    assert torch.isfinite(policy.grad).all()


def test_per_sequence_sums_the_unmasked_tokens():
    x = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert kl.per_sequence(x, mask).tolist() == [5.0, 0.0]
    assert kl.per_sequence(x[None], mask[None]).tolist() == [[5.0, 0.0]]


# An autoregressive policy small enough to enumerate: three tokens, 0 ends, at most three tokens a response.
SEQUENCES = [
    y for n in (1, 2, 3) for y in itertools.product(range(3), repeat=n) if 0 not in y[:-1] and (y[-1] == 0 or n == 3)
]
PREFIXES = sorted({y[:t] for y in SEQUENCES for t in range(len(y))})
MASK = torch.tensor([[t < len(y) for t in range(3)] for y in SEQUENCES])
PLACE = torch.tensor([[PREFIXES.index(y[:t]) if t < len(y) else 0 for t in range(3)] for y in SEQUENCES])
TOKEN = torch.tensor([[y[t] if t < len(y) else 0 for t in range(3)] for y in SEQUENCES])


def enumerable(seed):
    """Logits after each prefix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), 3, dtype=torch.float64, generator=generator)


def logprobs_of_all(table):
    """log π of each token of each response, [R, T]; arbitrary at padding."""
    return table.log_softmax(-1)[PLACE, TOKEN]


def test_F14_per_sequence_k1_k3_and_exact_agree_with_the_enumerated_divergence():
    policy, reference = logprobs_of_all(enumerable(0)), logprobs_of_all(enumerable(1))
    whole_policy, whole_reference = kl.per_sequence(policy, MASK), kl.per_sequence(reference, MASK)
    assert whole_policy.exp().sum().item() == pytest.approx(1)  # the enumeration is complete
    truth = definition(whole_policy, whole_reference)
    per_token_exact = kl.exact(enumerable(0), enumerable(1))[PLACE]
    for tokenwise in (kl.k1(policy, reference), kl.k3(policy, reference), per_token_exact):
        assert expectation(whole_policy, kl.per_sequence(tokenwise, MASK)).item() == pytest.approx(truth)
    for estimator in (kl.k1, kl.k3):
        assert expectation(whole_policy, estimator(whole_policy, whole_reference)).item() == pytest.approx(truth)


def gradient_of(loss, table):
    return torch.autograd.grad(loss, table)[0]


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_F14_k1_in_the_reward_gives_the_exact_gradient_of_the_penalised_objective(beta):
    """Rewards, GAE and the surrogate together, in exact expectation over all responses, on the first step."""
    table, frozen = enumerable(0).requires_grad_(), logprobs_of_all(enumerable(1))
    score = torch.linspace(-1, 1, len(SEQUENCES), dtype=torch.float64) ** 3
    logprobs = logprobs_of_all(table)
    whole = kl.per_sequence(logprobs, MASK)

    divergence = expectation(whole, whole - kl.per_sequence(frozen, MASK))
    exact = gradient_of(expectation(whole, score) - beta * divergence, table)

    logprobs = logprobs_of_all(table)
    old = logprobs.detach()
    rewards = token_rewards(score, kl.k1(old, frozen), beta=beta, mask=MASK)
    values = torch.randn(len(PREFIXES), dtype=torch.float64, generator=torch.Generator().manual_seed(3))[PLACE]
    advantages, _ = gae(
        rewards, values, gamma=1.0, lam=1.0, mask=MASK
    )  # any baseline of the prefix leaves the mean alone
    loss, _ = clipped_surrogate(logprobs, old, advantages, clip=0.2, mask=MASK)
    ours = gradient_of((whole.detach().exp() * loss.sum(-1)).sum(), table)
    torch.testing.assert_close(-ours, exact, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(distributions, distributions)
def test_F14_as_losses_k1_has_no_gradient_k2_the_reverse_and_k3_the_forward_kl(policy, reference):
    logits = policy.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    weights = logprobs.detach().exp()  # the samples, without gradient

    def as_loss(estimator):
        return torch.autograd.grad((weights * estimator(logprobs, reference)).sum(), logits, retain_graph=True)[0]

    reverse = torch.autograd.grad(expectation(logprobs, logprobs - reference), logits, retain_graph=True)[0]
    forward = torch.autograd.grad(-(reference.exp() * logprobs).sum(), logits, retain_graph=True)[0]
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(as_loss(kl.k1), torch.zeros(5, dtype=torch.float64), **close)
    torch.testing.assert_close(as_loss(kl.k2), reverse, **close)
    torch.testing.assert_close(as_loss(kl.k3), forward, **close)


@settings(deadline=None, max_examples=30)
@given(distributions, distributions)
def test_F14_the_gradient_of_exact_is_that_of_the_divergence(policy, reference):
    logits = policy.clone().requires_grad_()
    ours = torch.autograd.grad(kl.exact(logits, reference), logits)[0]
    gap = policy - reference  # by pencil: dKL/dz_v = π(v) (log-ratio of v − KL)
    torch.testing.assert_close(ours, policy.exp() * (gap - expectation(policy, gap)), rtol=1e-9, atol=1e-12)


def test_F14_k3_as_a_loss_is_not_the_gradient_of_the_kl_penalty():
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64).log()
    logprobs = logits.log_softmax(-1)
    loss = (logprobs.detach().exp() * kl.k3(logprobs, reference)).sum()
    ours = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    penalty_gradient = torch.autograd.grad(kl.exact(logits, reference), logits)[0]
    assert (ours - penalty_gradient).norm() > 0.2 * penalty_gradient.norm()


@pytest.mark.parametrize(
    ("measured", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (7.2, 1.02), (0.0, 0.98), (-3.0, 0.98), (math.inf, 1.02)],
)
def test_beta_moves_with_the_error_clipped_at_a_fifth(measured, factor):
    beta = kl.adapt_beta(0.15, measured, target=6.0, horizon=10_000.0, samples=1000)
    assert beta == pytest.approx(0.15 * factor, rel=1e-12)


def test_one_horizon_of_samples_counts_the_same_in_any_number_of_steps():
    once = kl.adapt_beta(1.0, 7.0, target=6.0, horizon=1000.0, samples=1000)
    beta = 1.0
    for _ in range(1000):
        beta = kl.adapt_beta(beta, 7.0, target=6.0, horizon=1000.0, samples=1)
    assert once == pytest.approx(1 + 1 / 6)
    assert beta == pytest.approx(math.exp(1 / 6), rel=1e-3)


def test_the_controller_settles_where_the_kl_meets_its_target():
    beta = 1.0
    for _ in range(3000):
        beta = kl.adapt_beta(beta, 3 / beta, target=6.0, horizon=10_000.0, samples=512)  # a policy whose KL is 3/β
    assert 3 / beta == pytest.approx(6.0, rel=1e-3)


def test_the_controller_refuses_what_would_break_it():
    with pytest.raises(ValueError, match="not a number"):
        kl.adapt_beta(0.1, math.nan, target=6.0, horizon=10_000.0, samples=64)
    with pytest.raises(ValueError, match="horizon above 200"):
        kl.adapt_beta(0.1, 6.0, target=6.0, horizon=100.0, samples=1000)
