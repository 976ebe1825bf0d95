"""Is a reward model as good everywhere? Its accuracy by kind of pair, with a test for whether the kinds differ.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from kleash.evals.bias import holm
from kleash.evals.preference_report import wilson

FEWEST = 20
"""A stratum of fewer pairs is not shown by itself."""


def strata_report(hits: Float[np.ndarray, " P"], strata: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Accuracy in each stratum of each partition.

    Args:
        hits: 1 where the model orders a pair as its label does, 0 where not, one half where it ties.
        strata: by the partition's name, the stratum of each pair.

    Returns:
        For each partition of two strata and more with `FEWEST` pairs: `name`; `cells` with `value`, `pairs`,
        `accuracy`, `low`, `high`; `chi2`, `dof`, `p_value` of one accuracy in all of them; `p_holm`, adjusted for
        all partitions of the list. Pairs in smaller strata are left out of the partition.
    """
    rows = []
    for name, of_pair in strata.items():
        values = np.array(of_pair, dtype=object)
        sizes = {value: int((values == value).sum()) for value in dict.fromkeys(of_pair)}
        kept = sorted((value for value, size in sizes.items() if size >= FEWEST), key=_place)
        if len(kept) >= 2:
            rows.append({"name": name, **_partition({value: hits[values == value] for value in kept})})
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


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
    """Numbers in their order, and before words."""
    number = re.match(r"-?\d+(\.\d+)?(e[-+]?\d+)?", value)
    return (float(number.group()) if number else np.inf), value


def _partition(cells: Mapping[str, Float[np.ndarray, " N"]]) -> dict[str, Any]:
    together = np.concatenate(list(cells.values()))
    share = float(together.mean())
    # Pearson's statistic of a 2 × C table; halves make its variance a little too large, so it errs to "no difference".
    variance = share * (1 - share)
    chi2 = sum(len(own) * (own.mean() - share) ** 2 for own in cells.values()) / variance if variance else 0.0
    rows = []
    for value, own in cells.items():
        low, high = wilson(float(own.sum()), len(own))
        rows.append({"value": value, "pairs": len(own), "accuracy": float(own.mean()), "low": low, "high": high})
    dof = len(cells) - 1
    return {"cells": rows, "chi2": float(chi2), "dof": dof, "p_value": float(stats.chi2.sf(chi2, dof))}
