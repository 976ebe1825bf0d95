"""Rewards routed by row: a column of the row names the reward that scores its responses.

    by: task
    math: math
    code: my_rewards:runs
    default: runs/reward

A row whose value is none of the keys goes to `default`, and is refused where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.config import DEFAULT, value_text
from kleash.data.group import Group
from kleash.errors import DataError
from kleash.rewards.reward import FILTER, NO_OPINION, Parts, Reward, explain, faults, no_opinion


class RoutedReward:
    """A `Reward` that scores each group by the reward of its row's value.

    Args:
        column: whose value chooses.
        rewards: by value, and as `default` that of all other values, where there is one.
    """

    def __init__(self, column: str, rewards: Mapping[str, Reward]) -> None:
        self.column, self.rewards = column, dict(rewards)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def faults(self, groups: Sequence[Group]) -> Mapping[int, str]:
        """See `reward.faults`: rows of an unknown value, and those that their own reward cannot read."""
        keys = ", ".join(self.rewards)
        bad: dict[int, str] = {}
        for index, group in enumerate(groups):
            if self._route(group) is None:
                value = group.columns.get(self.column)
                has = "has none" if value is None else f"has {value_text(value)[:60]!r} there"
                bad[index] = (
                    f"the reward is chosen by the column '{self.column}', but the row with prompt "
                    f"{group.prompt_text[:60]!r} {has}; known: {keys} (`default` would take all others)"
                )
        if groups and not any(self.column in group.columns for group in groups):
            message = f"the reward is chosen by the column '{self.column}', which no row has; known: {keys}"
            return dict.fromkeys(range(len(groups)), message)
        for route, rows in self._routes(groups).items():
            for index, fault in faults(self.rewards[route], [groups[row] for row in rows]).items():
                bad[rows[index]] = fault
        return bad

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and of each value as components its scores, its `count` of responses, and those of its reward.

        Raises:
            DataError: a row has a value of no reward.
        """
        routes = self._routes(groups)
        if sum(map(len, routes.values())) < len(groups):
            bad = self.faults(groups)
            raise DataError(bad[min(bad)])
        shape = (len(groups), len(groups[0].responses) if groups else 0)
        scores, silent, deciding = torch.full(shape, torch.nan), torch.zeros(shape), torch.full(shape, torch.nan)
        parts: dict[str, Tensor] = {}
        for route, reward in self.rewards.items():
            rows = routes.get(route, [])
            parts[route], parts[f"{route}/count"] = torch.full(shape, torch.nan), torch.zeros(shape)
            if not rows:
                continue
            values, components = explain(reward, [groups[row] for row in rows])
            scores[rows] = parts[route][rows] = values.float().cpu()
            silent[rows] = no_opinion(values, components).float().cpu()
            deciding[rows] = components.get(FILTER, values).float().cpu()
            parts[f"{route}/count"][rows] = 1.0
            for name, component in components.items():
                parts.setdefault(f"{route}/{name}", torch.full(shape, torch.nan))[rows] = component.float().cpu()
        if bool(silent.any()):
            parts[NO_OPINION] = silent
        if not torch.equal(deciding.nan_to_num(), scores.nan_to_num()):
            parts[FILTER] = deciding
        return scores, parts

    def _route(self, group: Group) -> str | None:
        """The key of a row's reward; None where there is none."""
        value = group.columns.get(self.column)
        key = DEFAULT if value is None else value_text(value)
        return key if key in self.rewards else DEFAULT if DEFAULT in self.rewards else None

    def _routes(self, groups: Sequence[Group]) -> dict[str, list[int]]:
        """The indices of the groups by key, without those that have none."""
        routes: dict[str, list[int]] = {}
        for index, group in enumerate(groups):
            if (key := self._route(group)) is not None:
                routes.setdefault(key, []).append(index)
        return routes
