"""A reward as a labeller: whatever scores responses can also say which of two is better."""

from __future__ import annotations

from collections.abc import Sequence

from kleash.data.group import Group
from kleash.errors import InputError
from kleash.labels.labeller import LabelResult
from kleash.rewards.reward import Reward


class RewardLabeller:
    """A `Labeller` that compares scores.

    Args:
        reward: what scores.
        temperature: P(0 ≻ 1) = σ((r₀ − r₁) / temperature), > 0. Near 0 the greater score wins for certain.
        name: what its verdicts are signed with.
    """

    def __init__(self, reward: Reward, *, temperature: float = 1.0, name: str = "reward") -> None:
        if temperature <= 0:
            raise InputError(f"a labeller made of scores needs temperature > 0, got {temperature}")
        self.reward, self.temperature, self.name = reward, temperature, name

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """See `Labeller`; equal scores are a tie. Scores see no order, so there is no order effect."""
        if not groups:
            return []
        scores = self.reward(groups)
        chances = ((scores[:, 0] - scores[:, 1]) / self.temperature).sigmoid().tolist()
        return [LabelResult("tie" if p == 0.5 else "verdict", self.name, probability=p) for p in chances]
