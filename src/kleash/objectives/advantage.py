"""From scores to advantages: the reward of each token, and generalised advantage estimation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " R"], kl: Float[Tensor, "R T"], *, beta: float, mask: Bool[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """The leash at every token, the score at the last one.

    Args:
        scores: reward of each response; 0.0 is a score like any other.
        kl: k1 of each token, in nats.
        beta: price of a nat, ≥ 0.
        mask: True where the policy chose the token. It alone says which token is the last: no id is looked at, so a pad
            token that equals the end token changes nothing, nor does the side of the padding (F3).

    Returns:
        −β·kl of each token, plus the score at the last True of its row; 0 where masked. A row without a True has
        nowhere to put its score and is all 0.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593) eq. 2; Huang et al. 2024 (arXiv:2403.17031).
    """
    left = mask.long().flip(-1).cumsum(-1).flip(-1)  # tokens of the policy from here to the end
    last = mask & (left == 1)
    return -beta * torch.where(mask, kl, 0) + torch.where(last, scores[:, None], 0)


def gae(
    rewards: Float[Tensor, "R T"],
    values: Float[Tensor, "R T"],
    *,
    gamma: float,
    lam: float,
    mask: Bool[Tensor, "R T"],
) -> tuple[Float[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Generalised advantage estimation over the tokens that the policy chose.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, where t + 1 is the policy's *next* token: forced tokens in
    between are stepped over, without discount. After the last one both V and A are 0, whether the response ended or was
    cut off.

    Args:
        rewards: reward of each token.
        values: V of the state each token was chosen in.
        gamma: discount a token; 1 for responses.
        lam: λ, 1 is returns minus values, 0 the one-step error.
        mask: True where the policy chose the token; it may have holes.

    Returns:
        (advantages, returns = advantages + values), both 0 where masked and without gradient: they are targets.

    References:
        Schulman et al. 2016 (arXiv:1506.02438) eq. 16.
    """
    with torch.no_grad():
        rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
        advantages = torch.zeros_like(values)
        next_value = next_advantage = torch.zeros_like(values[:, :1]).sum(-1)
        for t in reversed(range(values.shape[1])):
            here = mask[:, t]
            advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
            advantages[:, t] = torch.where(here, advantage, 0)
            next_advantage = torch.where(here, advantage, next_advantage)
            next_value = torch.where(here, values[:, t], next_value)
        return advantages, advantages + values
