"""Collects labels: each pair is compared once, by people or by a labeller, within a budget.

A training run can need labels in the middle of its work. A judge or a simulated labeller answers at once. For people,
the pairs go into the store and `WaitingError` ends the process, so that it does not occupy a machine. When it is run
again, it requests the same labels and gets the people's answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kleash.data.group import Group
from kleash.errors import InputError, WaitingError
from kleash.labels.labeller import Labeller, LabelResult, Outcome
from kleash.labels.store import Store, Vote

PEOPLE = "people"

WITHOUT_PROBABILITY: tuple[Outcome, ...] = ("both_bad", "unparsable")
"""Outcomes without a probability besides `cannot`."""


class LabelCollector:
    """Labels of pairs: from the store where it has them, otherwise from a labeller or from people.

    Args:
        store: where labels are stored, so that a resumed run requests (and pays for) no label twice.
        labeller: who compares; None: people, through `kleash label` on the same store.
        budget: pairs that may be compared in all, those of earlier runs on this store included; None: no limit.
        votes: people who compare each pair, ≥ 1.
    """

    def __init__(
        self, store: Store, labeller: Labeller | None = None, *, budget: int | None = None, votes: int = 1
    ) -> None:
        if votes < 1 or (budget is not None and budget < 0):
            raise InputError(f"votes is {votes} and budget is {budget}; give votes ≥ 1 and a budget ≥ 0")
        self.store, self.labeller, self.budget, self.votes = store, labeller, budget, votes
        self.name = PEOPLE if labeller is None else labeller.name

    def collect(self, groups: Sequence[Group]) -> list[LabelResult | None]:
        """A result for each group of two responses, in their order; None for those that the budget does not reach.

        Raises:
            WaitingError: people have been asked, and some pairs still lack votes.
        """
        results = self._stored(groups)
        if self.labeller is None:
            self._ask_people(groups, results)
            return results
        missing = [row for row, result in enumerate(results) if result is None][: self._remaining()]
        pairs = [groups[row] for row in missing]
        answers = self.labeller.compare(pairs) if pairs else []
        self.store.record(pairs, answers, kind="judge")
        for row, answer in zip(missing, answers, strict=True):
            results[row] = answer
        return results

    def _ask_people(self, groups: Sequence[Group], results: Sequence[LabelResult | None]) -> None:
        new = [group for group, match in zip(groups, self.store.find(groups), strict=True) if match is None]
        self.store.add_tasks(new[: self._remaining()])
        matches = self.store.find(groups)
        open_pairs = sum(match is not None and result is None for match, result in zip(matches, results, strict=True))
        if open_pairs:
            raise WaitingError(
                f"{open_pairs} of {len(groups)} pairs wait for people; label them with `kleash label --store "
                f"{self.store.where} --overlap {self.votes}`, then run the same command again"
            )

    def _remaining(self) -> int | None:
        """How many more pairs the budget allows."""
        if self.budget is None:
            return None
        if self.labeller is None:
            spent = len(self.store.tasks())
        else:
            spent = len({vote.task for vote in self.store.votes() if self._is_answer(vote)})
        return max(0, self.budget - spent)

    def _stored(self, groups: Sequence[Group]) -> list[LabelResult | None]:
        votes: dict[int, list[Vote]] = defaultdict(list)
        for vote in self.store.votes():
            if self._is_answer(vote) and vote.counts and not vote.repeat:
                votes[vote.task].append(vote)
        return [
            None if match is None else self._result(votes[match.task], swapped=match.swapped)
            for match in self.store.find(groups)
        ]

    def _is_answer(self, vote: Vote) -> bool:
        """Whether a vote is an answer of this labeller; a comparison that ended in an error is made again."""
        is_own = vote.kind == "person" if self.labeller is None else vote.alias == self.name
        return is_own and vote.choice != "error"

    def _result(self, votes: Sequence[Vote], *, swapped: bool) -> LabelResult | None:
        adjudications = [vote for vote in votes if vote.adjudicated]
        if not adjudications and len(votes) < (self.votes if self.labeller is None else 1):
            return None
        valid = adjudications or votes
        probabilities = [vote.probability for vote in valid if vote.probability is not None]
        if not probabilities:
            choices = {vote.choice for vote in valid}
            outcome: Outcome = next((candidate for candidate in WITHOUT_PROBABILITY if candidate in choices), "cannot")
            return LabelResult(outcome, self.name)
        p = float(np.mean(probabilities))
        return LabelResult.of(1 - p if swapped else p, self.name, principle=valid[-1].principle)
