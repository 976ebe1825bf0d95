"""Which pairs to ask about next: those of which an ensemble of rewards knows least.

    uncertainties = uncertainty(groups, members, by="disagreement")
    store.add_tasks(groups, uncertainty=uncertainties)  # the queue asks the uncertain first, and a random audit slice

Two measures, both of the choice and not of the scores, whose level means nothing. *Uncertainty* is how near one half
the members' mean probability lies; it is high where labels are noisy, too, and asking there teaches little.
*Disagreement* is how far apart the members are: what another label could settle (Christiano et al. 2017,
arXiv:1706.03741, 2.2.4). Pairs that were chosen are no sample of anything: measure accuracy and agreement on the
random slice alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.group import Group
from kleash.errors import InputError
from kleash.rewards.reward import Reward

By = Literal["uncertainty", "disagreement"]


def uncertainty(groups: Sequence[Group], members: Sequence[Reward], *, by: By = "disagreement") -> list[float]:
    """How much there is to learn from each pair.

    Args:
        groups: of two responses each.
        members: rewards that were trained on what is known so far, apart from each other; one will do for uncertainty.
        by: the measure.
    """
    return uncertainty_of(torch.stack([member(groups) for member in members]), by=by).tolist() if groups else []


def uncertainty_of(scores: Float[Tensor, "M P 2"], *, by: By = "disagreement") -> Float[Tensor, " P"]:
    """The same from scores.

    Returns:
        By uncertainty: one half less the distance of the members' mean P(0 ≻ 1) from one half. By disagreement: the
        standard deviation of P(0 ≻ 1) over members. Both from 0 to one half.

    Raises:
        InputError: disagreement of a single member.
    """
    chances = (scores[..., 0] - scores[..., 1]).sigmoid()  # [M, P]
    if by == "uncertainty":
        return 0.5 - (chances.mean(0) - 0.5).abs()
    if len(chances) < 2:
        raise InputError("disagreement needs two rewards or more; give more members, or choose by uncertainty")
    return chances.std(0, correction=0)


def choose(
    uncertainties: Sequence[float], count: int, *, audit_share: float = 0.1, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Choose pairs: the most uncertain, and a random slice of all that tells what the chosen cannot.

    Args:
        uncertainties: of each pair that may be asked about.
        count: pairs to choose, audit slice included.
        audit_share: share of them that is drawn at random.
        seed: of that draw, and of the order of equal uncertainty.

    Returns:
        Indices of the uncertain, most uncertain first, and of the audit slice; none is in both.

    Raises:
        InputError: there are fewer pairs than that.
    """
    if count > len(uncertainties):
        raise InputError(f"{count} pairs cannot be chosen from {len(uncertainties)}; ask for fewer, or give more")
    shuffled = random.Random(f"choose/{seed}").sample(range(len(uncertainties)), len(uncertainties))
    size = round(audit_share * count)
    audit, rest = shuffled[:size], shuffled[size:]
    return sorted(rest, key=lambda row: -uncertainties[row])[: count - size], audit
