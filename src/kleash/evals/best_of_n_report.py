"""The mean reward of best of k and its KL from the policy, from a scored pool of n responses to each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kleash.data.group import Group
from kleash.evals.best_of_n_curve import best_of_k, kl_bound, kl_of_best_of_k
from kleash.evals.policy_stats import mean_se
from kleash.evals.report_values import MeanSE


@dataclass(frozen=True)
class BestOfK:
    """The best of k of a pool's n responses to a prompt."""

    k: int
    """Number of responses to choose from."""
    score: MeanSE
    """Mean over prompts of Σᵢ C(i−1, k−1)/C(n, k) · vᵢ, the i-th of the pool's n in ascending order of the reward, tied
    ones at the mean of their v, with v the reward itself."""
    kl: MeanSE
    """Estimate of KL(best of k ‖ π) in nats from the pool itself: Σ q log(q/p) over its different rewards in ascending
    order, p their share of the pool, F the share up to them, q = F^k − (F − p)^k; its bias taken off by the jackknife
    (n times it − (n − 1) times its mean over the pools without one response), at most `kl_bound`. Right where responses
    are likely or tie, too, up to k = n."""
    kl_bound: float
    """log k − (k − 1)/k ≥ KL(best of k ‖ π), in nats."""
    gold: MeanSE | None = None
    """`score` with v another reward, where `--gold` names one, which only measures."""


def best_of_n_curve(
    pool: Sequence[Group], scores: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None = None
) -> list[BestOfK]:
    """The mean reward of best of k and its KL from the policy, k = 1 … n; over the prompts of whose responses all the
    rewards have an opinion (NaN: no opinion), nothing where there is no such prompt.
    """
    complete = [p for p in range(len(pool)) if not np.isnan([*scores[p], *(gold[p] if gold is not None else ())]).any()]
    if not complete:
        return []
    pool, scores = [pool[p] for p in complete], [scores[p] for p in complete]
    gold = None if gold is None else [gold[p] for p in complete]
    chosen_by = np.array([one_score_a_text(*pair) for pair in zip(pool, scores, strict=True)], dtype=np.float64)
    score = best_of_k(np.array(scores), chosen_by=chosen_by)
    true_score = None if gold is None else best_of_k(np.array(gold), chosen_by=chosen_by)
    kl = kl_of_best_of_k(chosen_by)
    return [
        BestOfK(
            k=k,
            score=mean_se(score[:, k - 1]),
            kl=mean_se(kl[:, k - 1]),
            kl_bound=kl_bound(k),
            gold=None if true_score is None else mean_se(true_score[:, k - 1]),
        )
        for k in range(1, chosen_by.shape[1] + 1)
    ]


def one_score_a_text(group: Group, scores: Sequence[float]) -> list[float]:
    """The scores, with equal texts given the score of their first occurrence: rounding must not separate them."""
    first: dict[tuple[str, bool], float] = {}
    return [
        first.setdefault((response.text, response.finished), score)
        for response, score in zip(group.responses, scores, strict=True)
    ]
