"""Best of n: the expected value of the best of k responses, for every k up to n, from one pool of n.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from math import log

import numpy as np
from jaxtyping import Real
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
    the distinct rewards, in ascending order: p is a reward's share of the pool, F the share up to it, q = F^k − (F −
    p)^k. Exact in the limit of a large pool, ties and likely responses included, where `kl_bound` is too high; where no
    two tie it is too low by about 0.05 nats at k = n.

    Args:
        chosen_by: the reward that chooses; the same response must have the same reward.

    Returns:
        Column k − 1 is best of k.
    """
    rewards = np.asarray(chosen_by, dtype=np.float64)
    powers = np.arange(1, rewards.shape[1] + 1)
    estimates = np.empty(rewards.shape)
    for row, pool in enumerate(rewards):
        share = np.unique(pool, return_counts=True)[1] / len(pool)
        cumulative = np.cumsum(share)[:, None]
        probability = cumulative**powers - (cumulative - share[:, None]).clip(0) ** powers  # q, [rewards, k]
        ratio = np.where(probability > 0, probability / share[:, None], 1.0)
        estimates[row] = (probability * np.log(ratio)).sum(0)
    return estimates


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
