"""Statistics of a policy: diversity of its responses, whether they end.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Real
from torch import Tensor

from kleash.errors import DataError
from kleash.evals.report_values import MeanSE

Array = np.ndarray | Tensor
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Length:
    """Tokens a response, without the end token."""

    mean: float | None
    """Mean."""
    se: float | None
    """Its standard error."""
    quantiles: dict[str, float | None]
    """At 0.05, 0.25, 0.5, 0.75 and 0.95."""


@dataclass(frozen=True)
class Diversity:
    """How varied a set of responses is, and how it ends. Null where a figure is undefined."""

    responses: int
    """How many responses."""
    tokens: int
    """How many tokens they have together."""
    distinct_1: float | None
    """Different tokens / all tokens over all responses (Li et al. 2016). It falls with the number of tokens: compare
    sets of the same prompts and the same K only."""
    distinct_2: float | None
    """The same of pairs of tokens."""
    distinct_3: float | None
    """The same of triples."""
    repetition: float | None
    """Mean over responses of 1 − different/all 4-grams within the response (seq-rep-4, Welleck et al. 2020); responses
    of fewer than 4 tokens have none."""
    end_rate: float | None
    """Share of responses that ended by themselves."""
    length: Length
    """Their lengths."""


def mean_se(values: Real[Array, "*S"] | Sequence[float]) -> MeanSE:
    """Mean and standard error of the mean.

    Args:
        values: [N], independent; or [P, K], K responses to each of P prompts, which are not independent: the
            standard error is then that of the P means of the prompts.

    Raises:
        DataError: a value that is not finite.
    """
    array = _double(values)
    if not np.isfinite(array).all():
        raise DataError("a mean over values that are not all finite numbers; leave out those that are not")
    if array.size == 0:
        return {"mean": None, "se": None}
    units = array.mean(-1) if array.ndim > 1 else array
    error = float(units.std(ddof=1)) / sqrt(len(units)) if len(units) > 1 else None
    return {"mean": float(units.mean()), "se": error}


def diversity(responses: Sequence[Sequence[Any]], *, finished: Sequence[bool]) -> Diversity:
    """How varied a set of responses is, and how it ends.

    distinct-n depends on the number of tokens: compare only sets of the same prompts and the same K.

    Args:
        responses: tokens (ids or words) of each, without the end token.
        finished: whether each ended by itself.
    """
    lengths = [len(response) for response in responses]
    repeated = [1 - len(set(grams)) / len(grams) for response in responses if (grams := _ngrams(response, 4))]
    levels = np.quantile(lengths, QUANTILES).tolist() if lengths else [None] * len(QUANTILES)
    quantiles = {str(share): level for share, level in zip(QUANTILES, levels, strict=True)}
    return Diversity(
        responses=len(responses),
        tokens=sum(lengths),
        distinct_1=_distinct(responses, 1),
        distinct_2=_distinct(responses, 2),
        distinct_3=_distinct(responses, 3),
        repetition=float(np.mean(repeated)) if repeated else None,
        end_rate=float(np.mean(list(finished))) if len(finished) else None,
        length=Length(**mean_se([float(length) for length in lengths]), quantiles=quantiles),
    )


def _distinct(responses: Sequence[Sequence[Any]], n: int) -> float | None:
    grams = [gram for response in responses for gram in _ngrams(response, n)]
    return len(set(grams)) / len(grams) if grams else None


def _ngrams(tokens: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _double(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
