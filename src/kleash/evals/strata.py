"""Accuracy of a reward model by kind of pair, with a test for whether the kinds differ.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from kleash.evals.bias import holm
from kleash.evals.intervals import Prompts, share_interval, sums_by_prompt

FEWEST = 20
"""A stratum of fewer pairs is not shown by itself."""


@dataclass(frozen=True)
class Stratum:
    """One stratum of a partition, of 20 pairs or more."""

    value: str
    """The value that its pairs share."""
    pairs: int
    """How many there are."""
    accuracy: float
    """Share that the model orders as the label does; ties count ½."""
    low: float
    """Lower end of its 95 % Wilson interval."""
    high: float
    """Its upper end."""


@dataclass(frozen=True)
class Partition:
    """A partition of the pairs with p ≠ ½ into strata."""

    name: str
    """`the chosen one is` (longer, shorter), `length difference` and `score difference` (quartiles of |d| and |m|),
    `turns` of the prompt, `annotator`, or a column of at most 12 different texts, integers or truth values. Accuracy
    grows with |m| for any good model: a difference in that partition is not a fault."""
    cells: list[Stratum]
    """Its strata; pairs in smaller ones are left out."""
    chi2: float
    """Σ n_c(a_c − a)²/(a(1−a)) of the accuracies a_c of the strata. Where a prompt has several pairs, divided by D:
    what its mean over samples of prompts would be, in units of `dof` (Rao & Scott 1981), at least 1."""
    dof: int
    """Strata − 1."""
    p_value: float
    """Probability of so large a `chi2` if all strata have the same accuracy; where a prompt has several pairs, of so
    large an F = chi2/dof with dof and dof·(prompts − 1) degrees of freedom."""
    p_holm: float
    """The same, adjusted for all partitions of the list (Holm 1979)."""


def strata_report(
    hits: Float[np.ndarray, " P"], strata: Mapping[str, Sequence[str]], prompts: Prompts | None = None
) -> list[Partition]:
    """Accuracy in each stratum of each partition.

    Args:
        hits: 1 where the model orders a pair as its label does, 0 where not, one half for a tie.
        strata: by the partition's name, the stratum of each pair.
        prompts: the prompt of each pair; None: each pair has its own.

    Returns:
        The partitions with at least two strata of `FEWEST` pairs.
    """
    rows = []
    for name, of_pair in strata.items():
        values = np.array(of_pair, dtype=object)
        sizes = {value: int((values == value).sum()) for value in dict.fromkeys(of_pair)}
        large = sorted((value for value, size in sizes.items() if size >= FEWEST), key=_place)
        if len(large) >= 2:
            rows.append(_partition(name, {value: np.flatnonzero(values == value) for value in large}, hits, prompts))
    return [replace(row, p_holm=p_holm) for row, p_holm in zip(rows, holm([row.p_value for row in rows]), strict=True)]


def quartiles(values: Float[np.ndarray, " P"], unit: str = "") -> list[str]:
    """A name for each value: the quartile that it lies in, in order, by its bounds; equal values share one."""
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75]))
    bins = np.searchsorted(edges, values, side="right")
    names = {}
    for index in np.unique(bins):
        inside = values[bins == index]
        low, high = (f"{end:.2f}".rstrip("0").rstrip(".") for end in (inside.min(), inside.max()))
        names[index] = (low if low == high else f"{low} to {high}") + unit
    return [names[index] for index in bins]


def _place(value: str) -> tuple[float, str]:
    """Sort key: numbers by value, before words."""
    number = re.match(r"-?\d+(\.\d+)?(e[-+]?\d+)?", value)
    return (float(number.group()) if number else np.inf), value


def _partition(
    name: str, cells: Mapping[str, Int[np.ndarray, " N"]], hits: Float[np.ndarray, " P"], prompts: Prompts | None
) -> Partition:
    """The test of one partition, from the rows of each stratum."""
    rows = np.concatenate(list(cells.values()))
    sizes = np.array([len(inside) for inside in cells.values()])
    accuracies = np.array([hits[inside].mean() for inside in cells.values()])
    share = float(hits[rows].mean())
    # Pearson's statistic of a 2 × C table; halves make the variance estimate slightly too large, so the test is
    # conservative.
    variance = share * (1 - share)
    chi2 = float((sizes * (accuracies - share) ** 2).sum() / variance) if variance else 0.0
    dof = len(cells) - 1
    prompts_here = len(np.unique(prompts[rows])) if prompts is not None else len(rows)
    if prompts is None or prompts_here == len(rows) or not variance:
        p_value = float(stats.chi2.sf(chi2, dof))
    elif prompts_here == 1:
        p_value = 1.0
    else:
        chi2 /= max(1.0, _mean_of_chi2(cells, hits, prompts) / (variance * dof))
        p_value = float(stats.f.sf(chi2 / dof, dof, dof * (prompts_here - 1)))
    strata = [
        Stratum(
            value,
            len(inside),
            float(hits[inside].mean()),
            *share_interval(hits[inside], None if prompts is None else prompts[inside]),
        )
        for value, inside in cells.items()
    ]
    return Partition(name, strata, chi2, dof, p_value, p_value)


def _mean_of_chi2(cells: Mapping[str, Int[np.ndarray, " N"]], hits: Float[np.ndarray, " P"], prompts: Prompts) -> float:
    """Expectation of Σ n_c(a_c − a)² if all strata have the same accuracy, prompts being what is sampled.

    The statistic is aᵀAa with A = diag(n) − nnᵀ/N, so its mean is tr(A·V), V the covariance of the accuracies a_c over
    prompts: pairs of one prompt may lie in several strata.
    """
    sizes = np.array([len(inside) for inside in cells.values()], dtype=np.float64)
    shares = np.zeros((len(cells), len(hits)))
    for row, inside in zip(shares, cells.values(), strict=True):
        row[inside] = (hits[inside] - hits[inside].mean()) / len(inside)
    of_prompts = np.stack([sums_by_prompt(row, prompts) for row in shares])
    count = of_prompts.shape[1]
    covariance = count / (count - 1) * of_prompts @ of_prompts.T
    return float((np.diag(sizes) - np.outer(sizes, sizes) / sizes.sum()).ravel() @ covariance.ravel())
