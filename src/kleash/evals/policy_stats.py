"""What became of a policy: how far it went from its reference, how varied it still is, whether it still ends.

Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real
from torch import Tensor

from kleash.errors import DataError

Array = np.ndarray | Tensor
MeanSE = dict[str, float | None]
"""{"mean", "se"}; None where it does not exist (no value; the standard error of one value)."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
        raise DataError("a mean over values that are not all finite numbers; leave out or mend those that are not")
    if array.size == 0:
        return {"mean": None, "se": None}
    units = array.mean(-1) if array.ndim > 1 else array
    error = float(units.std(ddof=1)) / sqrt(len(units)) if len(units) > 1 else None
    return {"mean": float(units.mean()), "se": error}


def kl_per_response(
    policy: Float[Array, "*R T"],
    reference: Float[Array, "*R T"],
    mask: Bool[Array, "*R T"],
    *,
    exact: Float[Array, "*R T"] | None = None,
) -> dict[str, MeanSE | None]:
    """KL(π ‖ π_ref) a response, in nats, from responses sampled from π.

    Args:
        policy, reference: log-probabilities of the sampled tokens, both at the sampling temperature.
        mask: the tokens that the policy chose; what stands elsewhere is never read (F4).
        exact: full-vocabulary KL at each of the positions. Its sum has the expectation of k1's and less variance.

    Returns:
        "k1": sum over a response of log π − log π_ref, mean and standard error over responses (over prompts where the
        arrays are [P, K, T]); "exact": likewise, None where not given.
    """
    chosen = _array(mask).astype(bool)

    def summed(values: np.ndarray) -> MeanSE:
        return mean_se(np.where(chosen, values, 0.0).sum(-1))

    with np.errstate(invalid="ignore"):  # inf − inf at a masked position, which is not read
        difference = _double(policy) - _double(reference)
    return {"k1": summed(difference), "exact": None if exact is None else summed(_double(exact))}


def diversity(responses: Sequence[Sequence[Any]], *, finished: Sequence[bool]) -> dict[str, Any]:
    """How varied a set of responses is, and how it ends.

    distinct-n depends on how many tokens there are: compare sets of the same prompts and the same K only.

    Args:
        responses: tokens (ids or words) of each, without the end token.
        finished: whether each ended by itself.

    Returns:
        responses, tokens; distinct_1, distinct_2, distinct_3 (Li et al. 2016): different n-grams over all n-grams;
        repetition: share of a response's 4-grams that it had before, mean over responses long enough to have one
        (Welleck et al. 2020, seq-rep-4); end_rate; length: mean, se and quantiles in tokens. None where undefined.
    """
    lengths = [len(response) for response in responses]
    repeated = [1 - len(set(grams)) / len(grams) for response in responses if (grams := _ngrams(response, 4))]
    report: dict[str, Any] = {"responses": len(responses), "tokens": sum(lengths)}
    for n in (1, 2, 3):
        grams = [gram for response in responses for gram in _ngrams(response, n)]
        report[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else None
    report["repetition"] = float(np.mean(repeated)) if repeated else None
    report["end_rate"] = float(np.mean(list(finished))) if len(finished) else None
    levels = np.quantile(lengths, QUANTILES).tolist() if lengths else [None] * len(QUANTILES)
    report["length"] = {
        **mean_se([float(length) for length in lengths]),
        "quantiles": {str(share): level for share, level in zip(QUANTILES, levels, strict=True)},
    }
    return report


def _ngrams(tokens: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _double(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
