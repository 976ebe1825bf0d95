"""Sums, means and whitening over the positions that a mask keeps.

What a mask leaves out is replaced *before* any arithmetic: NaN · 0 is NaN, forward and backward (F4).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Metrics = dict[str, Tensor]
"""What a loss tells about itself: detached tensors, never numbers, so that a step pays for one transfer."""


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
        and not by n − 1, so that one value alone becomes 0 and not NaN.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593), the released code's `whiten`.
    """
    mean = masked_mean(x, mask)
    centred = torch.where(mask, x - mean, 0)
    whitened = centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0)
