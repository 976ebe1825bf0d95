from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
import torch

from kleash.evals.best_of_n_curve import best_of_k, kl_bound, kl_of_best_of_k


def enumerated(values: np.ndarray, reward: np.ndarray, k: int) -> float:
    """The mean over every subset of k of the value of its best; of those that tie for best, their mean."""
    means = []
    for subset in combinations(range(len(values)), k):
        top = max(reward[i] for i in subset)
        means.append(np.mean([values[i] for i in subset if reward[i] == top]))
    return float(np.mean(means))


@pytest.mark.parametrize("kinds", [1, 2, 3, 100], ids=["all tie", "right or wrong", "few ties", "no ties"])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_best_of_every_k_is_the_mean_over_all_subsets(n: int, kinds: int) -> None:
    random = np.random.default_rng(n)
    reward = random.permuted(np.tile(np.arange(100), (4, 1)), axis=1)[:, :n] if kinds == 100 else None
    reward = random.integers(kinds, size=(4, n)) if reward is None else reward
    gold = random.normal(size=(4, n))
    for values in (reward, gold):
        expected = [[enumerated(values[p], reward[p], k) for k in range(1, n + 1)] for p in range(4)]
        np.testing.assert_allclose(best_of_k(values, chosen_by=reward), expected, rtol=1e-12, atol=1e-12)


def test_the_ends_are_the_mean_and_the_maximum() -> None:
    values = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    curve = best_of_k(values, chosen_by=values)
    np.testing.assert_allclose(curve[:, 0], values.double().mean(1), rtol=1e-12)
    np.testing.assert_allclose(curve[:, -1], values.double().amax(1), rtol=1e-12)
    assert (np.diff(curve, axis=1) > 0).all()


def test_gold_falls_where_the_reward_chooses_against_it() -> None:
    reward = np.arange(8.0)[None]
    assert (np.diff(best_of_k(-reward, chosen_by=reward)) < 0).all()


def test_the_order_of_a_pool_of_any_size_changes_nothing() -> None:
    random = np.random.default_rng(0)
    reward, gold = random.integers(5, size=(1, 2000)).astype(float), random.normal(size=(1, 2000))
    order = random.permutation(2000)
    given, permuted = best_of_k(gold, chosen_by=reward), best_of_k(gold[:, order], chosen_by=reward[:, order])
    assert np.isfinite(given).all()
    np.testing.assert_allclose(given, permuted, rtol=1e-9)


def test_the_bound_is_the_kl_of_best_of_k_among_many_equally_likely_responses() -> None:
    size, k = 20_000, 4
    rank = np.arange(1, size + 1) / size
    chance = rank**k - (rank - 1 / size) ** k
    assert kl_bound(k) == pytest.approx(float((chance * np.log(chance * size)).sum()), abs=1e-3)
    assert kl_bound(1) == 0 and kl_bound(2) == pytest.approx(log(2) - 0.5)


def test_the_kl_of_few_likely_responses_is_the_enumerated_one_and_below_the_bound() -> None:
    policy = np.array([0.5, 0.3, 0.15, 0.05])  # in ascending order of their reward
    pool = np.repeat([0.0, 1.0, 2.0, 3.0], (policy * 2000).astype(int))[None]
    kl = kl_of_best_of_k(pool)[0]
    for k in (1, 2, 4, 16):
        best = np.diff(np.cumsum(policy) ** k, prepend=0)
        assert kl[k - 1] == pytest.approx(float((best * np.log(best / policy)).sum()), abs=0.01)
        assert kl[k - 1] < kl_bound(k) or k == 1


def test_the_kl_of_many_different_responses_is_the_bound() -> None:
    pools = np.random.default_rng(0).normal(size=(3, 1000))
    kl = kl_of_best_of_k(pools)
    for k in (1, 2, 8, 64):
        np.testing.assert_allclose(kl[:, k - 1], kl_bound(k), atol=0.01)
    small = kl_of_best_of_k(pools[:, :16])
    np.testing.assert_allclose(small[:, 15], kl_bound(16), atol=1e-9)


@pytest.mark.parametrize("policy", [(0.5, 0.5), (0.9, 0.1), (0.2,) * 5, (0.4, 0.3, 0.15, 0.1, 0.04, 0.01)])
def test_the_kl_is_almost_unbiased_where_rewards_tie_up_to_k_equal_to_n(policy: tuple[float, ...]) -> None:
    n, shares = 16, np.array(policy)
    pools = np.random.default_rng(0).choice(len(policy), size=(1000, n), p=policy).astype(float)
    kl = kl_of_best_of_k(pools)
    for k in (1, 2, 4, 8, 16):
        best = np.diff(np.cumsum(shares) ** k, prepend=0)
        truth = float((best * np.log(best / shares)).sum())
        assert abs(kl[:, k - 1].mean() - truth) < 0.1, k  # without the jackknife off by 0.34 at a tenth and k = n


def test_the_jackknife_is_that_over_the_pools_without_one_response() -> None:
    pool = np.array([2.0, 0.0, 1.0, 1.0, 2.0, 2.0, 5.0])

    def plain(values: np.ndarray, k: int) -> float:
        share = np.unique(values, return_counts=True)[1] / len(values)
        best = np.diff(np.cumsum(share) ** k, prepend=0)
        return float((best * np.log(best / share)).sum())

    for k in range(1, 8):
        slow = 7 * plain(pool, k) - 6 * np.mean([plain(np.delete(pool, i), k) for i in range(7)])
        assert kl_of_best_of_k(pool[None])[0, k - 1] == pytest.approx(min(slow, kl_bound(k)))


def test_where_all_tie_nothing_is_chosen_and_the_kl_is_0() -> None:
    np.testing.assert_allclose(kl_of_best_of_k(np.ones((2, 5))), 0, atol=1e-12)
