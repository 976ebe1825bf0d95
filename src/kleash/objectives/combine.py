"""Combine the scores of an ensemble of reward models into one."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Combine = Literal["mean", "worst", "mean-variance"]


def combine_scores(
    scores: Float[Tensor, "*S M"], *, combine: Combine = "mean", variance_penalty: float = 0.0
) -> Float[Tensor, "*S"]:
    """The score of an ensemble.

    Where members agree, all combinations are equal; where they disagree, which is where a policy exploits the error of
    one of them, `worst` and `mean-variance` give less than the mean. Errors that all members share remain.

    Args:
        scores: of M members, comparable in level: each centred on the same samples.
        combine: the mean; the worst (least) member; or mean − λ·variance, the variance over members (divided by M).
        variance_penalty: λ ≥ 0, only of `mean-variance`.

    References:
        Coste et al. 2023 (arXiv:2310.02743) eq. 3–5.
    """
    if combine == "worst":
        return scores.amin(-1)
    mean = scores.mean(-1)
    return mean - variance_penalty * scores.var(-1, correction=0) if combine == "mean-variance" else mean
