"""From scores to advantages: the reward of each token, generalised advantage estimation, and groups as baselines."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " R"], kl: Float[Tensor, "R T"], *, beta: float, mask: Bool[Tensor, "R T"]
) -> Float[Tensor, "R T"]:
    """The KL penalty at every token, the score at the last one.

    Args:
        scores: reward of each response; 0.0 is a score like any other.
        kl: k1 of each token, in nats.
        beta: price of a nat, ≥ 0.
        mask: True where the policy chose the token. Only the mask determines the last token, never an id, so neither a
            pad token that equals the end token nor the side of the padding has an effect (F3).

    Returns:
        −β·kl of each token, plus the score at the last True of its row; 0 where masked. A row without a True is all 0.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593) eq. 2; Huang et al. 2024 (arXiv:2403.17031).
    """
    remaining = mask.long().flip(-1).cumsum(-1).flip(-1)  # tokens of the policy from here to the end
    last = mask & (remaining == 1)
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
    between are skipped, without discount. After the last one both V and A are 0, whether the response ended or was cut
    off.

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


def group_centred(scores: Float[Tensor, "P K"], *, mask: Bool[Tensor, "P K"] | None = None) -> Float[Tensor, "P K"]:
    """A score minus the mean of its group.

    The mean includes the response's own score, so the policy gradient is in expectation (K − 1)/K of the exact one:
    only the learning rate is scaled.

    Args:
        scores: of K ≥ 2 responses to each prompt.
        mask: True where a response has a score, anything elsewhere; None: all have one.

    Returns:
        r − mean(r) over the responses that have a score, exactly 0 in a group of equal scores; 0 where masked.

    References:
        Liu et al. 2025 (arXiv:2503.20783) §3.2, "Dr. GRPO".
    """
    counts = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    first = torch.where(counts, scores, 0).gather(-1, counts.int().argmax(-1, keepdim=True))
    from_first = torch.where(counts, scores - first, 0)  # equal scores become 0 before a mean could round
    return torch.where(counts, from_first - from_first.sum(-1, keepdim=True) / _responses(scores, mask), 0)


def group_standardised(
    scores: Float[Tensor, "P K"], *, mask: Bool[Tensor, "P K"] | None = None, eps: float = 1e-4
) -> Float[Tensor, "P K"]:
    """A score minus the mean of its group, divided by the standard deviation of its group.

    Every group gets the same weight, however little its scores differ: prompts that are almost always or almost never
    solved gain weight.

    Args:
        scores: of K ≥ 2 responses to each prompt.
        mask: see `group_centred`.
        eps: added to the deviation, in units of reward.

    Returns:
        (r − mean(r)) / (std(r) + eps), the deviation with n − 1, n the responses that have a score; exactly 0 in a
        group of equal scores, where only one has a score, and where masked.

    References:
        Shao et al. 2024 (arXiv:2402.03300) §4.1.2; K − 1 and eps as in TRL's `GRPOTrainer`, the paper has neither.
    """
    return group_centred(scores, mask=mask) / (group_deviation(scores, mask=mask) + eps)


def group_deviation(scores: Float[Tensor, "P K"], *, mask: Bool[Tensor, "P K"] | None = None) -> Float[Tensor, "P 1"]:
    """The standard deviation of each group's scores.

    Args:
        scores: of K ≥ 2 responses to each prompt.
        mask: see `group_centred`.

    Returns:
        √(Σ (r − mean(r))² / (n − 1)), n the responses that have a score; 0 where that is one or none.
    """
    squares = group_centred(scores, mask=mask).square().sum(-1, keepdim=True)
    varies = squares > 0  # the root has no gradient at 0
    variance = torch.where(varies, squares, 1) / (_responses(scores, mask) - 1).clamp(min=1)
    return torch.where(varies, variance.sqrt(), 0)


def leave_one_out(scores: Float[Tensor, "P K"], *, mask: Bool[Tensor, "P K"] | None = None) -> Float[Tensor, "P K"]:
    """A score minus the mean of the *others* of its group: the policy gradient is exact in expectation.

    Args:
        scores: of K ≥ 2 responses to each prompt.
        mask: see `group_centred`.

    Returns:
        r_k − mean of r_j over j ≠ k, which is n/(n − 1) (r_k − mean(r)), n the responses that have a score; exactly 0
        in a group of equal scores, where only one has a score, and where masked.

    References:
        Kool et al. 2019 (openreview.net/forum?id=r1lgTGL5DE); Ahmadian et al. 2024 (arXiv:2402.14740) eq. 9, "RLOO".
    """
    responses = _responses(scores, mask)
    return group_centred(scores, mask=mask) * (responses / (responses - 1).clamp(min=1))


def _responses(scores: Float[Tensor, "P K"], mask: Bool[Tensor, "P K"] | None) -> Int[Tensor, "P 1"]:
    """How many responses of each group have a score, 1 where none has."""
    counts = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    return counts.sum(-1, keepdim=True).clamp(min=1)
