"""The policy's losses on its own samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.objectives import kl
from kleash.objectives.reduce import Metrics


def clipped_surrogate(
    logprobs: Float[Tensor, "R T"],
    old_logprobs: Float[Tensor, "R T"],
    advantages: Float[Tensor, "R T"],
    *,
    clip: float,
    clip_high: float | None = None,
    mask: Bool[Tensor, "R T"],
) -> tuple[Float[Tensor, "R T"], Metrics]:
    """Proximal policy optimisation, the clipped objective.

    The clip bounds what a token may *gain*: an advantage is no longer pursued once the ratio has moved by `clip` in its
    direction, while a ratio that moved the wrong way is always pulled back.

    Args:
        logprobs: log π of each token, with gradient.
        old_logprobs: log π of the same tokens at rollout, without.
        advantages: advantage of each token, without gradient.
        clip: how far the ratio may move, > 0.
        clip_high: how far it may move up, > 0; None is `clip`. More room upwards lets unlikely tokens rise (DAPO).
        mask: True where the policy chose the token.

    Returns:
        One loss per token, to be minimised, not reduced; 0 where masked.
        Metrics, one per token, 0 where masked: `ratio`, π/π_old; `clip_fraction`, 1 where the clip holds and the
            gradient
        is zero; `approx_kl`, k3 of KL(π_old ‖ π).

    References:
        Schulman et al. 2017 (arXiv:1707.06347) eq. 7; Yu et al. 2025 (arXiv:2503.14476) eq. 10 for two clips.
    """
    logprobs, old_logprobs = torch.where(mask, logprobs, 0), torch.where(mask, old_logprobs, 0)
    advantages = torch.where(mask, advantages, 0)
    ratio = (logprobs - old_logprobs).exp()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    free, clipped = ratio * advantages, ratio.clamp(low, high) * advantages
    objective = torch.minimum(free, clipped)
    metrics = {
        "ratio": torch.where(mask, ratio, 0).detach(),
        "clip_fraction": (clipped < free).to(ratio.dtype),
        "approx_kl": kl.k3(old_logprobs, logprobs).detach(),  # the samples are of π_old
    }
    return -objective, metrics


def truncated_importance(
    logprobs: Float[Tensor, "*S"],
    sampler_logprobs: Float[Tensor, "*S"],
    *,
    limit: float = 2.0,
    mask: Bool[Tensor, "*S"],
) -> Float[Tensor, "*S"]:
    """Truncated importance weight of a token whose sampler is another engine than the trainer.

    Without the limit the weighted gradient is unbiased and its variance has no bound; with it a token that the sampler
    found unlikely has at most the weight `limit`.

    Args:
        logprobs: log π of each token by the trainer, with the weights that sampled.
        sampler_logprobs: log π of the same tokens by the sampler.
        limit: C, ≥ 1.
        mask: True where the policy chose the token.

    Returns:
        min(π/π_sampler, C) of each token, without gradient; 0 where masked. 1 where the two engines agree.

    References:
        Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training
        (fengyao.notion.site/off-policy-rl), which names C = 2.
    """
    gap = torch.where(mask, logprobs, 0) - torch.where(mask, sampler_logprobs, 0)
    return torch.where(mask, gap.detach().exp().clamp(max=limit), 0)
