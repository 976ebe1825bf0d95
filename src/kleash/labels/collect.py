"""Which of these two, please: whoever is there to answer is asked, each pair once, within a budget.

A training that needs labels asks in the middle of its work. A judge or a simulated labeller answers at once. People
take their time: their pairs are put into the store, and `WaitingError` ends the process, which holds no machine
meanwhile; run again, it asks the same and gets what they said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kleash.data.group import Group
from kleash.errors import InputError, WaitingError
from kleash.labels.labeller import Labeller, LabelResult, State
from kleash.labels.store import Store, Vote

PEOPLE = "people"

UNSAID: tuple[State, ...] = ("both_bad", "unparsable")
"""What a verdict without a probability may be besides `cannot`."""


class LabelCollector:
    """Labels of pairs, out of the store where they are there and from a labeller where they are not.

    Args:
        store: where labels are kept, so that a run that goes on asks nothing twice and pays for nothing twice.
        labeller: who is asked; None: people, through `kleash label` on the same store.
        budget: pairs that may be asked in all, those of earlier runs on this store included; None: as many as come.
        votes: people that each pair waits for, ≥ 1.
    """

    def __init__(
        self, store: Store, labeller: Labeller | None = None, *, budget: int | None = None, votes: int = 1
    ) -> None:
        if votes < 1 or (budget is not None and budget < 0):
            raise InputError(f"a label collector needs votes ≥ 1 and a budget ≥ 0, got {votes} and {budget}")
        self.store, self.labeller, self.budget, self.votes = store, labeller, budget, votes
        self.name = PEOPLE if labeller is None else labeller.name

    def ask(self, groups: Sequence[Group]) -> list[LabelResult | None]:
        """A verdict on each group of two responses, in their order; None for those that the budget does not reach.

        Raises:
            WaitingError: people have been asked, and some pairs lack votes.
        """
        known = self._known(groups)
        if self.labeller is None:
            self._put_to_people(groups, known)
            return list(known)
        missing = [place for place, verdict in enumerate(known) if verdict is None][: self._left()]
        asked = [groups[place] for place in missing]
        verdicts = self.labeller.compare(asked) if asked else []
        self.store.record(asked, verdicts, kind="judge")
        for place, verdict in zip(missing, verdicts, strict=True):
            known[place] = verdict
        return known

    def _put_to_people(self, groups: Sequence[Group], known: Sequence[LabelResult | None]) -> None:
        tasks = self.store.find(groups)
        new = [group for group, task in zip(groups, tasks, strict=True) if task is None]
        self.store.add_tasks(new[: self._left()])
        asked = self.store.find(groups)
        waiting = sum(task is not None and verdict is None for task, verdict in zip(asked, known, strict=True))
        if waiting:
            raise WaitingError(
                f"{waiting} of {len(groups)} pairs wait for people; label them with `kleash label --store "
                f"{self.store.where} --overlap {self.votes}`, then run the same command again"
            )

    def _left(self) -> int | None:
        """How many more pairs may be asked."""
        if self.budget is None:
            return None
        if self.labeller is None:
            spent = len(self.store.tasks())
        else:
            spent = len({vote.task for vote in self.store.votes() if self._answered(vote)})
        return max(0, self.budget - spent)

    def _known(self, groups: Sequence[Group]) -> list[LabelResult | None]:
        by_task: dict[int, list[Vote]] = defaultdict(list)
        for vote in self.store.votes():
            if self._answered(vote) and vote.counts and not vote.repeat:
                by_task[vote.task].append(vote)
        return [
            None if found is None else self._verdict(by_task[found[0]], turned=found[1])
            for found in self.store.find(groups)
        ]

    def _answered(self, vote: Vote) -> bool:
        """Whether a vote is an answer of those who are asked; one that did not come is asked for again."""
        own = vote.kind == "person" if self.labeller is None else vote.alias == self.name
        return own and vote.verdict != "error"

    def _verdict(self, votes: Sequence[Vote], *, turned: bool) -> LabelResult | None:
        adjudication = [vote for vote in votes if vote.adjudicated]
        if not adjudication and len(votes) < (self.votes if self.labeller is None else 1):
            return None
        standing = adjudication or votes
        said = [vote.probability for vote in standing if vote.probability is not None]
        if not said:
            states = {vote.verdict for vote in standing}
            told: State = next((state for state in UNSAID if state in states), "cannot")
            return LabelResult(told, self.name)
        p = float(np.mean(said))
        p = 1 - p if turned else p
        return LabelResult("tie" if p == 0.5 else "verdict", self.name, p, principle=standing[-1].principle)
