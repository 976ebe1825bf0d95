"""The value network's loss, and its explained variance."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.objectives.reduce import Metrics, masked_mean


def clipped_value_loss(
    values: Float[Tensor, "R T"],
    old_values: Float[Tensor, "R T"],
    returns: Float[Tensor, "R T"],
    *,
    clip: float | None,
    mask: Bool[Tensor, "R T"],
) -> tuple[Float[Tensor, "R T"], Metrics]:
    """Half the squared error, the larger of the free value's and the clipped value's.

    Args:
        values: V of each token's state, with gradient.
        old_values: the same at rollout, without.
        returns: targets of the values, without gradient.
        clip: how far a value may move from its old one before its gradient is cut, > 0, in units of reward; None: no
            limit.
        mask: True where the policy chose the token.

    Returns:
        ½ max((V − R)², (clip(V, V_old ± clip) − R)²) a token, not reduced; 0 where masked. The ½ is in here: a
        coefficient of 0.1 on this loss is `vf_coef = 0.1` of the papers.
        Metrics, one per token, 0 where masked: `clip_fraction`, 1 where the clip holds and the gradient is zero.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593), released code; Huang et al. 2024 (arXiv:2403.17031).
    """
    values, old_values = torch.where(mask, values, 0), torch.where(mask, old_values, 0)
    returns = torch.where(mask, returns, 0)
    free = (values - returns).square()
    if clip is None:
        return free / 2, {"clip_fraction": torch.zeros_like(free).detach()}
    clipped = (values.clamp(old_values - clip, old_values + clip) - returns).square()
    return torch.maximum(free, clipped) / 2, {"clip_fraction": (clipped > free).to(free.dtype)}


def explained_variance(
    values: Float[Tensor, "*S"], returns: Float[Tensor, "*S"], *, mask: Bool[Tensor, "*S"]
) -> Float[Tensor, ""]:
    """The part of the returns' variance that the values account for.

    Args:
        values: V of each token's state, at rollout.
        returns: their targets.
        mask: True where the policy chose the token.

    Returns:
        1 − Var(R − V) / Var(R), detached: 1 perfect, 0 no better than a constant, negative worse. 0 where the returns
        do not vary.
    """
    values, returns = torch.where(mask, values.detach(), 0), torch.where(mask, returns.detach(), 0)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(returns)
    varies = total > 1e-12 * masked_mean(returns.square(), mask)  # equal returns leave the rounding of their mean
    return torch.where(varies, 1 - variance(returns - values) / total, 0)
