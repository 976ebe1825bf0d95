"""Intervals of shares and means, and what an interval says about a threshold.

Pairs of one prompt (those of a ranking above all) are not independent: with rankings of nine, an interval over pairs
holds the truth in 78 % instead of 95 %. So wherever a prompt has several pairs, intervals and tests are over prompts.
Where each prompt has one pair nothing changes. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Interval = tuple[float, float]

Prompts = Int[np.ndarray, " P"]
"""The prompt of each pair as a number, see `number_prompts`."""


def number_prompts(prompts: Sequence[Hashable]) -> Prompts:
    """The prompts of some pairs as numbers from 0, equal prompts as equal numbers."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=np.int64)


def above(interval: Interval, threshold: float) -> bool | None:
    """Whether a figure lies above a threshold; None where its interval holds the threshold."""
    low, high = interval
    return True if low > threshold else False if high < threshold else None


def below(interval: Interval, threshold: float) -> bool | None:
    """Whether a figure lies below a threshold; None where its interval holds the threshold."""
    lies_above = above(interval, threshold)
    return None if lies_above is None else not lies_above


def wilson(hits: float | int, n: float | int, *, level: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927); unlike scipy's it takes halves, since ties count one half.

    Args:
        hits: between 0 and n.
        n: trials, above 0; not an integer where it is an effective number.
        level: confidence.
    """
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, shrink = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(hits: Any, prompts: Prompts | None = None) -> Interval:
    """The 95 % interval of a share: Wilson's, for `effective_pairs` pairs.

    Args:
        hits: of at least one pair, each in [0, 1].
        prompts: the prompt of each pair; None: each pair has its own.
    """
    values = np.asarray(hits, dtype=np.float64)
    n = effective_pairs(values, prompts)
    return wilson(float(values.mean()) * n, n) if n else (0.0, 1.0)


def effective_pairs(hits: Float[np.ndarray, " P"], prompts: Prompts | None) -> float:
    """How many independent pairs would tell a share as precisely (Korn & Graubard 1998).

    n / D · (z₀.₉₇₅ / t₀.₉₇₅)², where D is the design effect, the variance of the share over prompts divided by that of
    independent pairs, and t has one degree of freedom less than there are prompts. D is at least 1, and at most what
    equal pairs of a prompt would give, which is taken where all pairs are hits or none is.

    Args:
        hits: of each pair, in [0, 1].
        prompts: the prompt of each pair; None: each pair has its own.

    Returns:
        The number of pairs where each prompt has one; 0 where all pairs have one prompt.
    """
    n = len(hits)
    sizes = sums_by_prompt(np.ones(n), prompts)
    if len(sizes) == n:
        return float(n)
    if len(sizes) == 1:
        return 0.0
    share, most = float(hits.mean()), float((sizes**2).sum()) / n
    binomial = share * (1 - share) / n
    effect = mean_error(hits, prompts) ** 2 / binomial if binomial else most
    shrink = float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, len(sizes) - 1)) ** 2
    return n / min(max(effect, 1.0), most) * shrink


def mean_error(values: Float[np.ndarray, " P"], prompts: Prompts | None = None) -> float:
    """Standard error of a mean, over prompts: √(G/(G − 1) · Σ over prompts (Σ of its pairs (x − x̄))²) / n.

    Where each prompt has one pair it is s / √n. Not a number with one prompt.
    """
    residual = values - values.mean()
    sums = sums_by_prompt(residual, prompts)
    groups = len(sums)
    return sqrt(groups / (groups - 1) * float((sums**2).sum())) / len(values) if groups > 1 else float("nan")


def mean_interval(values: Any, prompts: Prompts | None = None) -> Interval:
    """The 95 % interval of a mean (Student's t over prompts); (−∞, ∞) with one prompt.

    Args:
        values: of at least one pair.
        prompts: the prompt of each pair; None: each pair has its own.
    """
    array = np.asarray(values, dtype=np.float64)
    return ratio_interval(array, np.ones(len(array)), prompts)


def ratio_interval(
    values: Float[np.ndarray, " P"], weights: Float[np.ndarray, " P"], prompts: Prompts | None = None
) -> Interval:
    """The 95 % interval of Σ values / Σ weights, as `mean_interval`, which it is where all weights are 1."""
    groups = len(sums_by_prompt(values, prompts))
    if groups < 2:
        return -float("inf"), float("inf")
    total = float(weights.sum())
    ratio = float(values.sum()) / total
    residuals = sums_by_prompt(values - ratio * weights, prompts)
    error = sqrt(groups / (groups - 1) * float((residuals**2).sum())) / total
    half = float(stats.t.ppf(0.975, groups - 1)) * error
    return ratio - half, ratio + half


def sums_by_prompt(values: Float[np.ndarray, " P"], prompts: Prompts | None) -> Float[np.ndarray, " G"]:
    """The sum over the pairs of each prompt; the values themselves where each pair has its own prompt."""
    return values if prompts is None else np.bincount(np.unique(prompts, return_inverse=True)[1], values)


def difference_interval(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """The interval of a − b from the intervals of two independent figures (Zou & Donner 2008, MOVER)."""
    low = a - b - sqrt((a - of_a[0]) ** 2 + (of_b[1] - b) ** 2)
    return low, a - b + sqrt((of_a[1] - a) ** 2 + (b - of_b[0]) ** 2)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact test that wins and losses are equally likely; on two classifiers, McNemar's exact test."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
