"""What an export leaves out, by reason: pairs that are in no file, and votes that no row counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Sequence

from kleash.labels.store import PEOPLE, Vote, cannot_be_judged

ACTIONS = ("undo", "skip", "report")
"""Choices that are not votes."""


def pairs_left_out(
    tasks: Iterable[int], votes: Iterable[Vote], *, in_files: Container[int], is_chosen: Callable[[Vote], bool]
) -> dict[str, int]:
    """Pairs that are in no file, by reason.

    Args:
        tasks: ids of all pairs.
        votes: all votes up to the last one included.
        in_files: ids of the pairs that are in a file.
        is_chosen: whether a vote is of the annotators and kinds that the export is limited to.
    """
    by_task: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_task[vote.task].append(vote)
    return _sorted(_why_pair(by_task[task], is_chosen) for task in tasks if task not in in_files)


def votes_left_out(
    votes: Sequence[Vote],
    *,
    in_rows: Container[int],
    ruled_out: Container[int],
    drops_ties: bool,
    is_chosen: Callable[[Vote], bool],
) -> dict[str, int]:
    """Votes that no row counts, by reason; with those that rows count they are all votes.

    Args:
        votes: all votes up to the last one included.
        in_rows: ids of the votes that a row counts.
        ruled_out: ids of the pairs that cannot be judged.
        drops_ties: whether ties are left out.
        is_chosen: see `pairs_left_out`.
    """
    adjudicated = {vote.task for vote in votes if vote.adjudicated and vote.counts}

    def why(vote: Vote) -> str:
        if not vote.last:
            return "replaced or taken back"
        if vote.repeat:
            return "hidden repeats"
        if not is_chosen(vote):
            return "of other annotators"
        if vote.task in ruled_out:
            return "on pairs that cannot be judged"
        if vote.task in adjudicated and not vote.adjudicated:
            return "overruled by an adjudication"
        if drops_ties and vote.probability == 0.5:
            return "ties"
        return "outvoted on whether both are bad" if _is_label(vote) else "without a preference"

    return _sorted(why(vote) for vote in votes if vote.choice not in ACTIONS and vote.id not in in_rows)


def _why_pair(votes: Sequence[Vote], is_chosen: Callable[[Vote], bool]) -> str:
    """Why a pair is in no file."""
    valid = [vote for vote in votes if vote.counts and not vote.repeat]
    people = [vote for vote in valid if vote.kind in PEOPLE]
    if people and cannot_be_judged(people):
        return "cannot be judged"
    if any(_is_label(vote) for vote in valid if is_chosen(vote)):
        return "only ties"
    if any(map(_is_label, valid)):
        return "only votes of other annotators"
    if valid:
        return "no preference in the votes"
    last = {vote.choice for vote in votes if vote.last}
    reasons = {"report": "reported", "skip": "skipped", "undo": "taken back"}
    return next((reason for choice, reason in reasons.items() if choice in last), "no votes")


def _is_label(vote: Vote) -> bool:
    return vote.probability is not None or vote.choice == "both_bad"


def _sorted(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons by how often they occur."""
    return dict(Counter(reasons).most_common())
