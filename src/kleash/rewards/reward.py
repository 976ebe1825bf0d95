"""The reward protocol: a callable that scores groups.

A reward takes groups of text (or of sampled ids that decode to text) and gives a number for each response. `build.py`
builds one from its name, or from an object in Python.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.data.group import Group
from kleash.errors import DataError, RewardError, listed

logger = logging.getLogger("kleash")

Parts = Mapping[str, Float[Tensor, "P K"]]
"""Components of scores, by name: the scores of a composition's parts, a verifier's outcomes (1 where it applies). NaN
where a component says nothing of a response. Those whose names end in `/count` are added up, the others averaged.
"""

NO_OPINION = "no_opinion"
"""Name of the component that is 1 where a reward has no opinion of a response, whose score is NaN then. A NaN without
it is a fault."""

FILTER = "filter_on"
"""Name of the component that decides, in place of the score, whether a group of responses has a spread, is solved, or
keeps a run alive."""


@runtime_checkable
class Reward(Protocol):
    """Scores groups of one K."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """A score for each response, in float32 on the CPU."""
        ...


def explain(reward: Reward, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
    """Scores of groups of one K, and their components, which are logged separately.

    A reward with components has a method `explain`; others have none.

    Raises:
        RewardError: the reward did not give a tensor of one number for each response.
    """
    method = getattr(reward, "explain", None)
    scores, parts = (reward(groups), {}) if method is None else method(groups)
    shape = (len(groups), len(groups[0].responses)) if groups else (0, 0)
    if not isinstance(scores, Tensor) or (groups and scores.shape != shape):
        result = f"of shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"({type(scores).__name__})"
        raise RewardError(
            f"reward {type(reward).__name__} gave a result {result} for {shape[0]} prompts of {shape[1]} responses; a "
            f"reward of groups gives a tensor of shape {list(shape)}, and a function of text takes `completions`"
        )
    return scores, parts


def no_opinion(scores: Float[Tensor, "P K"], parts: Parts) -> Bool[Tensor, "P K"]:
    """Where a reward has no opinion of a response, from what `explain` returned."""
    none = parts.get(NO_OPINION)
    return torch.zeros_like(scores, dtype=torch.bool) if none is None else none.to(scores.device) == 1


def opinions(reward: Reward, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
    """Scores of groups of one K; NaN where the reward has no opinion, and only there.

    Raises:
        RewardError: another score is not a number.
    """
    scores, parts = explain(reward, groups)
    for p, k in torch.nonzero(scores.isnan() & ~no_opinion(scores, parts)).tolist():
        raise RewardError(
            f"the score of {groups[p].responses[k].text[:60]!r} is nan; a reward must give numbers, and a function "
            "gives None where it has no opinion"
        )
    return scores


def part_figures(parts: Parts, prefix: str) -> dict[str, Float[Tensor, ""]]:
    """One figure for each component: the mean over the responses of which it says something, or their number."""
    return {
        f"{prefix}/{name}": values.nansum() if name.endswith("/count") else values.nanmean()
        for name, values in parts.items()
        if name != NO_OPINION
    }


def faults(reward: Reward, groups: Sequence[Group]) -> Mapping[int, str]:
    """The rows whose columns a reward cannot read, before anything is sampled: index in `groups` → what is wrong.

    A reward that reads columns has a method `faults`; others have none.
    """
    method = getattr(reward, "faults", None)
    return {} if method is None else method(groups)


class RowCheck:
    """Check that rewards can read the rows of a file, all of them before anything is sampled.

    Args:
        rewards: those that will read the rows; None: there is no such reward.
        skip: leave rows that cannot be read out instead of stopping; None: the stage has no option for that.

    Attributes:
        left_out: how many rows were left out.
    """

    def __init__(self, *rewards: Reward | None, skip: bool | None = None) -> None:
        self.rewards = [reward for reward in rewards if reward is not None]
        self.skip = skip
        self.left_out = 0

    def __call__(self, groups: Sequence[Group], rows: Sequence[int], source: str) -> list[Group]:
        """The groups that all rewards can read.

        Args:
            groups: the rows.
            rows: their numbers in the source, for messages.
            source: its name.

        Raises:
            DataError: a row cannot be read and is not to be left out, or none is left; names the first.
        """
        bad: dict[int, str] = {}
        for reward in self.rewards:
            bad = {**faults(reward, groups), **bad}
        if not bad:
            return list(groups)
        first = min(bad)
        numbers = listed((str(rows[index]) for index in sorted(bad)), most=5)
        if not self.skip or len(bad) == len(groups):
            others = f" ({len(bad)} of {len(groups)} rows cannot be read: {numbers})" if len(bad) > 1 else ""
            remedy = "; correct it, or leave such rows out with --skip-bad-rows" if self.skip is False else ""
            raise DataError(f"{source} row {rows[first]}: {bad[first]}{others}{remedy}")
        logger.warning(
            "%s: %d of %d rows left out, which the reward cannot read: row %s; row %d: %s",
            source, len(bad), len(groups), numbers, rows[first], bad[first],
        )  # fmt: skip
        self.left_out += len(bad)
        return [group for index, group in enumerate(groups) if index not in bad]
