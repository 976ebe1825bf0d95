"""Best of n: the expected value of the best of k responses, for every k up to n, from one pool of n.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from math import log

import numpy as np
from jaxtyping import Float, Int, Real
from torch import Tensor

Array = np.ndarray | Tensor


def best_of_k(values: Real[Array, "P N"], *, chosen_by: Real[Array, "P N"]) -> Real[np.ndarray, "P N"]:
    """Expected value of the response with the highest reward among k of a pool, for k = 1 … n.

    The mean over all C(n, k) subsets, which is unbiased for k fresh samples: in ascending order of the reward the i-th
    response is the best of C(i−1, k−1) of them (Nakano et al. 2021, arXiv:2112.09332, §I; Gao et al. 2022,
    arXiv:2210.10760, §2.3). Responses with equal rewards are chosen with equal probability.

    Args:
        values: of each response, by the reward itself or by another one.
        chosen_by: the reward that chooses.

    Returns:
        Column k − 1 is best of k.
    """
    array, reward = (np.asarray(item, dtype=np.float64) for item in (values, chosen_by))
    order = np.argsort(reward, axis=1, kind="stable")
    reward = np.take_along_axis(reward, order, 1)
    array = np.take_along_axis(array, order, 1)
    for row in range(len(reward)):  # tied responses get their mean
        _, tie = np.unique(reward[row], return_inverse=True)
        array[row] = (np.bincount(tie, array[row]) / np.bincount(tie))[tie]
    return array @ _weights(reward.shape[1]).T


def kl_of_best_of_k(chosen_by: Real[Array, "P N"]) -> Real[np.ndarray, "P N"]:
    """KL(best of k ‖ policy) in nats, estimated from the pool itself, for k = 1 … n.

    Best of k changes the probabilities between reward values but not within one, so that the KL is Σ q log(q/p) over
    the distinct rewards, in ascending order: p is a reward's probability, F that up to it, q = F^k − (F − p)^k. With a
    reward's share of the pool for p the sum is too low where rewards tie and k is near n (two rewards, the better one
    of probability 0.1, k = n = 16: 1.08 for 1.42), so the jackknife takes that off (Quenouille 1956; 1.40): n times the
    sum of the pool minus n − 1 times the mean of those of the pool without one response. `kl_bound` holds for any
    rewards, so no estimate is above it.

    Args:
        chosen_by: the reward that chooses; the same response must have the same reward.

    Returns:
        Column k − 1 is best of k. Of a prompt it may be below 0; its mean over prompts is almost unbiased.
    """
    rewards = np.asarray(chosen_by, dtype=np.float64)
    n = rewards.shape[1]
    bounds = np.array([kl_bound(k) for k in range(1, n + 1)])
    counts = [np.unique(pool, return_counts=True)[1] for pool in rewards]
    whole = np.array([_kl_terms(count, np.cumsum(count), n, n).sum(0) for count in counts])
    if n == 1:
        return whole
    without_one = np.array([_mean_without_one(count) for count in counts])
    return np.minimum(n * whole - (n - 1) * without_one, bounds)


def _kl_terms(
    counts: Int[np.ndarray, " V"], up_to: Int[np.ndarray, " V"], n: int, most: int
) -> Float[np.ndarray, "V N"]:
    """Q log(q/p) of each reward for k = 1 … most, from how often it and those up to it occur in a pool of n."""
    powers = np.arange(1, most + 1)
    share, cumulative = counts[:, None] / n, up_to[:, None] / n
    probability = cumulative**powers - (cumulative - share).clip(0) ** powers
    occurs = (share > 0) & (probability > 0)
    return probability * np.log(np.divide(probability, share, where=occurs, out=np.ones_like(probability)))


def _mean_without_one(counts: Int[np.ndarray, " V"]) -> Float[np.ndarray, " N"]:
    """The mean of Σ q log(q/p) over the pools that lack one response, for k = 1 … n.

    Without a response of reward v, those up to a reward below v are as many as before, and up to one from v on they are
    one fewer, so that three tables of terms serve all v.
    """
    n, up_to = int(counts.sum()), np.cumsum(counts)
    below = _kl_terms(counts, up_to, n - 1, n)
    above = _kl_terms(counts, up_to - 1, n - 1, n)
    itself = _kl_terms(counts - 1, up_to - 1, n - 1, n)
    sums = np.cumsum(below, 0) - below + itself + np.cumsum(above[::-1], 0)[::-1] - above
    return np.asarray(counts @ sums / n)


def _weights(n: int) -> np.ndarray:
    """Row k − 1: C(i−1, k−1) / C(n, k) for the ranks i = 1 … n.

    From the last rank, k/n, downwards: C(i−2, k−1) = C(i−1, k−1) · (i−k)/(i−1). No binomial is ever computed.
    """
    k = np.arange(1, n + 1)
    weights = np.empty((n, n))
    weights[:, n - 1] = k / n
    for i in range(n, 1, -1):
        weights[:, i - 2] = weights[:, i - 1] * np.maximum(i - k, 0) / (i - 1)
    return weights


def kl_bound(k: int) -> float:
    """Upper bound of KL(best of k ‖ policy), in nats: log k − (k − 1)/k (Beirami et al. 2024, arXiv:2401.01879).

    Reached where no response has a sizeable probability and no two have the same reward.
    """
    return log(k) - (k - 1) / k
