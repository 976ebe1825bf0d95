"""pass@k and mean@k of scored responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isnan
from typing import Literal

import numpy as np

from kleash.evals.intervals import Interval, mean_interval, number_prompts, share_interval

Kind = Literal["pass", "mean"]


@dataclass(frozen=True)
class AtK:
    """A figure of `kleash score --metric`. Formulas: docs/metrics.md."""

    metric: str
    """`pass@K` or `mean@K`."""
    value: float | None
    """pass@K: mean over rows of 1 − C(n − c, K)/C(n, K), with c of the row's n responses right: the unbiased estimate
    of the probability that one of K is right (Chen et al. 2021, arXiv:2107.03374, eq. 1). mean@K: mean over rows of
    the mean score of the row's responses, which estimates that of K. Null where no row has K scored responses."""
    low: float | None
    """Lower end of its 95 % interval over prompts: Wilson's (`share_interval`) where each row has 0 or 1, as with one
    response each; else Student's t, within [0, 1] for pass@K. Null where there is one prompt."""
    high: float | None
    """Its upper end."""
    rows: int
    """Rows that it is the mean of."""
    prompts: int
    """Different prompts of them."""
    left_out: int
    """Rows with fewer than K responses that the reward scored: it had no opinion of the others."""


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that one of k of n responses, drawn without replacement, is right: 1 − C(n − c, k)/C(n, k).

    Args:
        n: responses, at least k.
        right: c, how many of them are right.
        k: at least 1.
    """
    return 1 - comb(n - right, k) / comb(n, k)


def at_k(kind: Kind, k: int, scores: Sequence[Sequence[float]], prompts: Sequence[str], *, above: float = 0.0) -> AtK:
    """pass@k or mean@k of scored responses.

    Args:
        kind: which of the two.
        k: at least 1.
        scores: of each row, one for each response; not a number where the reward has no opinion.
        prompts: the key of each row's prompt; rows of one prompt are not independent.
        above: pass@k: a response is right if its score is greater.
    """
    values, keys = [], []
    for row, prompt in zip(scores, prompts, strict=True):
        opinions = [score for score in row if not isnan(score)]
        if len(opinions) < k:
            continue
        keys.append(prompt)
        if kind == "pass":
            values.append(pass_at_k(len(opinions), sum(score > above for score in opinions), k))
        else:
            values.append(sum(opinions) / len(opinions))
    low, high = interval(values, keys, within_one=kind == "pass")
    return AtK(
        metric=f"{kind}@{k}",
        value=float(np.mean(values)) if values else None,
        low=low,
        high=high,
        rows=len(values),
        prompts=len(set(keys)),
        left_out=len(scores) - len(values),
    )


def interval(values: Sequence[float], prompts: Sequence[str], *, within_one: bool) -> Interval | tuple[None, None]:
    """The 95 % interval of a mean over rows; see `AtK.low`."""
    if len(set(prompts)) < 2:
        return None, None
    numbers = number_prompts(prompts)
    if set(values) <= {0.0, 1.0}:
        return share_interval(values, numbers)
    low, high = mean_interval(values, numbers)
    return (max(0.0, low), min(1.0, high)) if within_one else (low, high)
