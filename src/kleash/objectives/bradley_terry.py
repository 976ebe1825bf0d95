"""Rewards from comparisons: P(y_0 ≻ y_1 | x) = σ(r(x, y_0) − r(x, y_1)).

Only differences are identified: a constant added to every score of a prompt changes no loss (C3). Only the centring
term depends on the level.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from kleash.objectives.reduce import Metrics


def pair_loss(
    scores: Float[Tensor, "P 2"],
    *,
    p: Float[Tensor, " P"],
    margin: Float[Tensor, " P"] | float = 0.0,
    centring: float = 0.0,
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Bradley–Terry on pairs, the cross-entropy of σ(r_0 − r_1) against p.

    Args:
        scores: rewards of the two responses; column 0 is the chosen one of a plain pair.
        p: probability that column 0 is the better one: 1 for a plain pair, ½ for a tie, between for a soft label.
        margin: by how much the better one must lead, ≥ 0; 0 is plain Bradley–Terry. With a soft label it is
            demanded of both sides.
        centring: weight of (r_0 + r_1)², ≥ 0, which holds scores near mean zero; 0 leaves their level free.

    Returns:
        One loss per pair, not reduced. Without margin its minimum is at r_0 − r_1 = logit(p): infinite at p = 1.
        Metrics, one per pair: `margin`, r_0 − r_1; `accuracy`, 1 where the scores order the pair as p does, 0 where
            they
        reverse it, ½ where either says tie.

    References:
        Ouyang et al. 2022 (arXiv:2203.02155) eq. 1; margin: Touvron et al. 2023 (arXiv:2307.09288) eq. 2; centring:
        Eisenstein et al. 2023 (arXiv:2312.09244) eq. 2.
    """
    first, second = scores.unbind(-1)
    lead = first - second
    loss = -p * logsigmoid(lead - margin) - (1 - p) * logsigmoid(-lead - margin)
    loss = loss + centring * (first + second).square()
    return loss, {"margin": lead.detach(), "accuracy": _agreement(lead, p).detach()}


def ranking_loss(
    scores: Float[Tensor, "P K"], ranks: Int[Tensor, "P K"], *, centring: float = 0.0
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Bradley–Terry on all K(K−1)/2 comparisons of a ranking.

    The comparisons of a prompt are averaged, so that a prompt has the same weight for any K.

    Args:
        scores: rewards of the K ≥ 2 responses.
        ranks: rank of each response, 0 the best (any integers in that order will do); equal ranks are ties.
        centring: weight of (r_i + r_j)², as in `pair_loss`.

    Returns:
        One loss per prompt, the mean over its comparisons; not reduced over prompts.
        Metrics, one per prompt: `margin`, better minus worse, mean over comparisons that are not ties; `accuracy`, as
            in
        `pair_loss`, mean over all comparisons.

    Raises:
        ValueError: a prompt has fewer than two responses.

    References:
        Ouyang et al. 2022 (arXiv:2203.02155) eq. 1.
    """
    responses = scores.shape[-1]
    if responses < 2:
        raise ValueError("a ranking needs at least two responses a prompt; drop the prompts that have one")
    i, j = torch.triu_indices(responses, responses, offset=1, device=scores.device)
    order = torch.sign(ranks[:, j] - ranks[:, i]).to(scores.dtype)  # 1 where i is the better one, 0 for a tie
    pairs = torch.stack([scores[:, i], scores[:, j]], dim=-1)
    loss, metrics = pair_loss(pairs.flatten(0, 1), p=((1 + order) / 2).flatten(), centring=centring)
    lead, accuracy = metrics["margin"].view_as(order), metrics["accuracy"].view_as(order)
    return loss.view_as(order).mean(-1), {
        "margin": (lead * order).sum(-1) / order.abs().sum(-1).clamp(min=1),
        "accuracy": accuracy.mean(-1),
    }


def _agreement(lead: Tensor, p: Tensor) -> Tensor:
    return (1 + torch.sign(lead) * torch.sign(p - 0.5)) / 2
