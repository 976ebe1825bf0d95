"""Collects labels: each pair is compared once, by people or by a labeller, within a budget.

A training run can need labels in the middle of its work. A judge or a simulated labeller answers at once. For people,
the pairs go into the store and `WaitingError` ends the process, so that it does not occupy a machine. When it is run
again, it requests the same labels and gets the people's answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

import numpy as np

from kleash.data.group import Group
from kleash.errors import InputError, WaitingError
from kleash.labels.labeller import Labeller, LabelResult, Outcome
from kleash.labels.store import Store, Vote, cannot_be_judged

PEOPLE = "people"

WITHOUT_PROBABILITY: tuple[Outcome, ...] = ("both_bad", "unparsable")
"""Outcomes without a probability besides `cannot`."""

PASSED: tuple[Outcome, ...] = ("reported", "skipped")
"""Outcomes of pairs that people were asked about and passed over."""


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

        People's votes are complete where there are `votes` of them, or an admin's adjudication. A pair that somebody
        reported, or that everybody skipped or voted on without making enough votes, gets no label and is not waited
        for.

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
        passed = sum(result is not None and result.outcome in PASSED for result in results)
        note = f" ({passed} others were reported or skipped; the admin's page can decide them)" if passed else ""
        if open_pairs:
            raise WaitingError(
                f"{open_pairs} of {len(groups)} pairs wait for people{note}; label them with `kleash label --store "
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
        people: set[int] = set()  # who have begun; nobody waits for a link that was never opened
        for vote in self.store.votes():
            people.add(vote.annotator)
            if self._is_answer(vote) and vote.last and not vote.repeat:
                votes[vote.task].append(vote)
        people &= {
            person.id
            for person in self.store.annotators()
            if (person.kind, person.role) == ("person", "annotator") and not person.revoked
        }
        return [
            None if match is None else self._result(votes[match.task], people, swapped=match.swapped)
            for match in self.store.find(groups)
        ]

    def _is_answer(self, vote: Vote) -> bool:
        """Whether a vote is an answer of this labeller; a comparison that ended in an error is made again."""
        is_own = vote.kind == "person" if self.labeller is None else vote.alias == self.name
        return is_own and vote.choice != "error"

    def _result(self, votes: Sequence[Vote], people: Set[int], *, swapped: bool) -> LabelResult | None:
        """The result of the last votes on a pair; None where more votes are needed and can come."""
        answers = [vote for vote in votes if vote.counts]
        adjudications = [vote for vote in answers if vote.adjudicated]
        if not adjudications and len(answers) < (self.votes if self.labeller is None else 1):
            passed = self._passed(votes, people)
            return None if passed is None else LabelResult(passed, self.name)
        valid = adjudications or answers
        probabilities = [vote.probability for vote in valid if vote.probability is not None]
        if cannot_be_judged(valid):
            return LabelResult("cannot", self.name)
        if not probabilities:
            choices = {vote.choice for vote in valid}
            outcome: Outcome = next((candidate for candidate in WITHOUT_PROBABILITY if candidate in choices), "cannot")
            return LabelResult(outcome, self.name)
        p = float(np.mean(probabilities))
        return LabelResult.of(1 - p if swapped else p, self.name, principle=valid[-1].principle)

    def _passed(self, votes: Sequence[Vote], people: Set[int]) -> Outcome | None:
        """Why a pair with too few votes will get no more of them; None where one of the people may still vote."""
        if self.labeller is not None:
            return None
        choices = {vote.choice for vote in votes}
        if "report" in choices:
            return "reported"
        others = people - {vote.annotator for vote in votes if vote.choice != "undo"}
        return "skipped" if "skip" in choices and not others else None
