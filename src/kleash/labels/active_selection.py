"""Active selection: which pairs to label next, by the uncertainty of an ensemble of rewards.

    uncertainties = uncertainty(groups, members, by="disagreement")
    store.add_tasks(groups, uncertainty=uncertainties)  # the queue then serves these first, and a random audit slice

There are two measures, both of probabilities of choice, since the level of scores is arbitrary. *Uncertainty* is how
near one half the members' mean probability lies; it is high also where labels are noisy and another label adds little.
*Disagreement* is how far apart the members are, which another label can reduce (Christiano et al. 2017,
arXiv:1706.03741, 2.2.4). Selected pairs are not a random sample: measure accuracy and agreement only on the random
slice.
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
    """The uncertainty of each pair.

    Args:
        groups: of two responses each.
        members: rewards trained separately on the labels so far; one is enough for `by="uncertainty"`.
        by: the measure.
    """
    return uncertainty_of(torch.stack([member(groups) for member in members]), by=by).tolist() if groups else []


def uncertainty_of(scores: Float[Tensor, "M P 2"], *, by: By = "disagreement") -> Float[Tensor, " P"]:
    """The uncertainty of each pair, from scores.

    Returns:
        By uncertainty: one half minus the distance of the members' mean P(0 ≻ 1) from one half. By disagreement: the
        standard deviation of P(0 ≻ 1) over members. Both from 0 to one half.

    Raises:
        InputError: disagreement of a single member.
    """
    probabilities = (scores[..., 0] - scores[..., 1]).sigmoid()  # [M, P]
    if by == "uncertainty":
        return 0.5 - (probabilities.mean(0) - 0.5).abs()
    if len(probabilities) < 2:
        raise InputError("disagreement needs two rewards or more; give more members, or select by uncertainty")
    return probabilities.std(0, correction=0)


def select_pairs(
    uncertainties: Sequence[float], count: int, *, audit_share: float = 0.1, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Select the most uncertain pairs, and a random audit slice of all pairs to measure on.

    Args:
        uncertainties: one of each pair that may be labelled.
        count: pairs to select, audit slice included.
        audit_share: share of them that is drawn at random.
        seed: of that draw, and of the order of equal uncertainties.

    Returns:
        Indices of the uncertain pairs, most uncertain first, and of the audit slice; no index is in both.

    Raises:
        InputError: there are fewer pairs than `count`.
    """
    if count > len(uncertainties):
        raise InputError(f"{count} pairs cannot be selected from {len(uncertainties)}; give a lower count or more data")
    shuffled = random.Random(f"choose/{seed}").sample(range(len(uncertainties)), len(uncertainties))
    size = round(audit_share * count)
    audit, remaining = shuffled[:size], shuffled[size:]
    return sorted(remaining, key=lambda row: -uncertainties[row])[: count - size], audit
