"""Labellers (people, judges, rewards, simulated labellers): which of two responses is better?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from kleash.data.group import Group

Outcome = Literal["preference", "tie", "both_bad", "cannot", "unparsable", "error", "reported", "skipped"]
"""The outcome of a comparison.

`preference`: one response is better, with a probability. `tie`: equally good. `both_bad`: equally bad. `cannot`: the
labeller declines. `unparsable`: it answered, but no choice can be read from the answer. `error`: no answer came.
`reported`: somebody says that something is wrong with the pair. `skipped`: nobody is left who has not passed or voted,
and the votes are too few. All but the first two have no probability: a missing label never counts as a tie.
"""


@dataclass(frozen=True)
class LabelResult:
    """A labeller's answer about a group's two responses."""

    outcome: Outcome
    labeller: str
    """Name of the labeller."""
    probability: float | None = None
    """P(response 0 ≻ response 1): one half for a tie; None where there is no label."""
    principle: str | None = None
    """Name of the principle that the responses were compared by, where there is one."""
    reason: str | None = None
    """The labeller's explanation."""
    order_effect: float | None = None
    """P(shown first ≻ shown second), mean of both orders, minus one half; None where only one order was asked."""

    @classmethod
    def of(
        cls,
        probability: float,
        labeller: str,
        *,
        principle: str | None = None,
        reason: str | None = None,
        order_effect: float | None = None,
    ) -> LabelResult:
        """A label: a tie where the probability is one half, otherwise a preference."""
        outcome: Outcome = "tie" if probability == 0.5 else "preference"
        return cls(outcome, labeller, probability, principle, reason, order_effect)


@runtime_checkable
class Labeller(Protocol):
    """Something that compares two responses: people through the store, a judge, a simulated person, a reward."""

    name: str

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """One result per group of two responses, in their order.

        A failure on a single group is its outcome; an exception means that the labeller cannot be asked at all.
        """
        ...
