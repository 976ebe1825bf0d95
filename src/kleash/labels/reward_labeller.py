"""A reward as a labeller: the response with the higher score is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kleash.data.group import Group
from kleash.errors import InputError
from kleash.labels.labeller import LabelResult
from kleash.rewards.reward import Reward, opinions


class RewardLabeller:
    """A `Labeller` that compares the scores of a reward.

    Args:
        reward: scores responses.
        temperature: P(0 ≻ 1) = σ((r₀ − r₁) / temperature), > 0. Near 0 the higher score always wins.
        name: the labeller's name in its results.
    """

    def __init__(self, reward: Reward, *, temperature: float = 1.0, name: str = "reward") -> None:
        if temperature <= 0:
            raise InputError(f"temperature of a reward labeller is {temperature}; give a number above 0")
        self.reward, self.temperature, self.name = reward, temperature, name

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`; equal scores are a tie, and where the reward has no opinion of a response it cannot say.
        Scores do not depend on an order, so there is no order effect.
        """
        if not groups:
            return []
        scores = opinions(self.reward, groups)
        probabilities = ((scores[:, 0] - scores[:, 1]) / self.temperature).sigmoid().tolist()
        return [
            LabelResult("cannot", self.name) if math.isnan(p) else LabelResult.of(p, self.name) for p in probabilities
        ]
