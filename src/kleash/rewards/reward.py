"""The reward protocol: a callable that scores groups.

A reward takes groups of text (or of sampled ids that decode to text) and gives a number for each response. `build.py`
builds one from its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from kleash.data.group import Group

Parts = Mapping[str, Float[Tensor, "P K"]]
"""Components of scores, by name: the scores of a composition's parts, a verifier's outcomes (1 where it applies)."""


@runtime_checkable
class Reward(Protocol):
    """Scores groups of one K."""

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """A score for each response, in float32 on the CPU."""
        ...


def check_rows(reward: Reward, groups: Sequence[Group]) -> None:
    """Let a reward check the columns of all rows that it is going to read, before anything is sampled.

    A reward that reads columns has a method `check_rows`; others have none.

    Raises:
        DataError: a row lacks a column, or its value cannot be read.
    """
    method = getattr(reward, "check_rows", None)
    if method is not None:
        method(groups)


def explain(reward: Reward, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
    """Scores of groups of one K, and their components, which are logged separately.

    A reward with components has a method `explain`; others have none.
    """
    method = getattr(reward, "explain", None)
    return (reward(groups), {}) if method is None else method(groups)
