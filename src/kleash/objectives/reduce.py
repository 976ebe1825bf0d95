"""Sums, means and whitening over the unmasked positions.

Masked values are replaced *before* any arithmetic: NaN · 0 is NaN, forward and backward (F4).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Metrics = dict[str, Tensor]
"""Metrics of a loss: detached tensors, never numbers, so that a step needs only one transfer to the host."""

Normalisation = Literal["token", "sequence", "constant"]
"""How the losses of tokens become the loss of a step, see `token_weights`."""


def masked_sum(
    x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], dim: int | tuple[int, ...] | None = None
) -> Float[Tensor, ...]:
    """Sum of the kept positions.

    Args:
        x: values, of any shape.
        mask: True where a value counts.
        dim: which axes to sum over; None is all of them.

    Returns:
        The sum, 0 where nothing is kept.
    """
    return torch.where(mask, x, 0).sum(dim)


def masked_mean(
    x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], dim: int | tuple[int, ...] | None = None
) -> Float[Tensor, ...]:
    """Mean of the kept positions.

    The mean of micro-batch means is not the mean of the batch (F1): to accumulate, sum each micro-batch and divide by
    the count of the whole batch.

    Args:
        x: values, of any shape.
        mask: True where a value counts.
        dim: which axes to average over; None is all of them.

    Returns:
        The mean, 0 where nothing is kept.
    """
    return masked_sum(x, mask, dim) / mask.sum(dim).clamp(min=1)


def masked_whiten(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], *, shift_mean: bool = True) -> Float[Tensor, "*S"]:
    """Scale the kept positions to variance 1, and shift them to mean 0.

    Args:
        x: values, of any shape; mean and variance run over all axes at once.
        mask: True where a value counts.
        shift_mean: False leaves the mean where it was, as whitened rewards need.

    Returns:
        (x − mean) / √(variance + 1e-8), plus the mean unless it is shifted; 0 where masked. The variance divides by n
        and not by n − 1, so that a single value becomes 0 and not NaN.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593), the released code's `whiten`.
    """
    mean = masked_mean(x, mask)
    centred = torch.where(mask, x - mean, 0)
    whitened = centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0)


def token_weights(mask: Bool[Tensor, "R T"], normalisation: Normalisation, *, longest: int) -> Float[Tensor, "R T"]:
    """The weight of each token's loss in the sum: one formula for each name (F2).

    Computed for the *whole* optimiser step, then split with the rows: any micro-batches sum to the same gradient (F1).
    A fully masked response has no weight but counts as a response.

    Args:
        mask: True where a token counts; all responses of an optimiser step.
        normalisation: `token`: 1/(tokens of the step), so that a long response weighs more (DAPO).
            `sequence`: 1/(tokens of the response · responses), so that a token of a long one weighs less (GRPO).
            `constant`: 1/(responses · longest), so that a token weighs the same in any rollout (Dr. GRPO); the sum over
            a response's tokens that RLOO takes is this times `longest`.
        longest: most tokens a response may have, `max_new_tokens`.

    Returns:
        The weight of each token; 0 where masked.

    References:
        Yu et al. 2025 (arXiv:2503.14476) eq. 12; Shao et al. 2024 (arXiv:2402.03300) eq. 3; Liu et al. 2025
        (arXiv:2503.20783) §3.2.
    """
    tokens = {
        "token": mask.sum().expand(len(mask), 1),
        "sequence": mask.sum(-1, keepdim=True) * len(mask),
        "constant": torch.full((len(mask), 1), len(mask) * longest, device=mask.device),
    }[normalisation]
    return mask / tokens.clamp(min=1)
