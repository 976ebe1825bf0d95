"""Several scores of one response as one: what an ensemble of reward models says."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Combine = Literal["mean", "worst", "mean-variance"]


def combine_scores(
    scores: Float[Tensor, "*S M"], *, combine: Combine = "mean", variance_penalty: float = 0.0
) -> Float[Tensor, "*S"]:
    """The score of an ensemble.

    Members that agree say the same whichever way is taken; where they disagree, which is where a policy finds what one
    of them got wrong, `worst` and `mean-variance` give less than the mean. What all members have wrong stays.

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
