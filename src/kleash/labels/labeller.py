"""Which of these two, please: the one question that people, judges and simulated labellers answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from kleash.data.group import Group

State = Literal["verdict", "tie", "both_bad", "cannot", "unparsable", "error"]
"""What became of the question.

`verdict`: one is better, with what probability. `tie`: equally good. `both_bad`: equally bad, which says more than a
tie. `cannot`: the labeller declines. `unparsable`: it answered, and no choice can be read from the answer. `error`: no
answer came. The last three have no probability: a missing label is never taken for a tie.
"""


@dataclass(frozen=True)
class LabelResult:
    """What a labeller says of a group's two responses."""

    state: State
    labeller: str
    """Who said so."""
    probability: float | None = None
    """P(response 0 ≻ response 1): one half for a tie; None where there is no label."""
    principle: str | None = None
    """Name of the principle it was judged by, where there is one."""
    reason: str | None = None
    """What the labeller wrote of it."""
    order_effect: float | None = None
    """P(shown first ≻ shown second), mean of both orders, less one half; None where one order was asked."""


@runtime_checkable
class Labeller(Protocol):
    """Whoever can compare two responses: people through the store, a judge, a simulated person, a reward."""

    name: str

    def compare(self, groups: Sequence[Group]) -> list[LabelResult]:
        """One verdict a group of two responses, in their order.

        What goes wrong with a single group is its state; an error that is raised says that nobody can be asked.
        """
        ...
