"""Which pair a person compares next, and their votes.

Rules: a person resumes their open pairs, in the same order and with the same sides. A new pair is one that fewer than
`overlap` people have voted on or hold. An open pair is held for `lease_seconds`; a vote that comes later still counts.
Sides are balanced for each pair, then for each person, and stored. A share of pairs is drawn at random independently of
the order, so that the other pairs can be checked against them; a share is shown again with the sides swapped,
unannounced.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, case, func, or_, select
from sqlalchemy.orm import Session, aliased

from kleash.data.group import Content, Response
from kleash.data.shown import shown_prompt
from kleash.errors import InputError
from kleash.labels.schema import AnnotatorRow, AssignmentRow, Guideline, Task, VoteRow
from kleash.labels.store import Store, group_of

Choice = Literal["left", "right", "tie", "both_bad", "cannot"]
CHOICES = ("left", "right", "tie", "both_bad", "cannot")
ADJUDICATIONS = ("first", "second", "tie", "both_bad", "cannot")

PROBABILITY = {"first": 1.0, "second": 0.0, "tie": 0.5}
"""P(first ≻ second) of a choice; the other choices have none."""

REPEAT_AFTER = 5
"""Least number of votes between a pair and its hidden repeat."""


@dataclass(frozen=True)
class QueueSettings:
    """How pairs are assigned."""

    overlap: int = 1
    """People who compare each pair, ≥ 1."""
    order: Literal["uncertain", "random"] = "uncertain"
    """Most uncertain first (pairs without an uncertainty at random), or all at random."""
    audit_share: float = 0.1
    """Share of pairs drawn at random independently of the order."""
    repeat_share: float = 0.05
    """Share of showings that are a hidden repeat of an earlier pair, sides swapped."""
    lease_seconds: float = 900
    """How long an open pair is held for its person."""
    seed: int = 0


@dataclass(frozen=True)
class Assignment:
    """A pair as a person sees it: without names of models and votes of others."""

    id: int
    task: int
    kind: str
    prompt: Content
    left: Response
    right: Response
    reopened: bool = False
    """Whether its vote was taken back."""
    answer: Choice | None = None
    """The right choice, of a practice pair."""


@dataclass(frozen=True)
class VoteRequest:
    """A vote as a person sends it."""

    key: str
    """Chosen by the sender, a new one for each vote; the same key is counted once."""
    choice: str
    """One of `CHOICES`; `Queue.vote` checks it."""
    strength: int | None = None
    """1 slightly, 2 clearly, 3 by far."""
    reason: str = ""
    tags: Sequence[str] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class VoteResult:
    """A committed vote."""

    key: str
    repeated: bool
    """Whether the same key was counted before."""


@dataclass(frozen=True)
class Progress:
    """A person's progress."""

    done: int
    """Pairs voted on, without practice and repeats."""
    open: int
    """Pairs they hold."""
    skipped: int
    remaining: int
    """Pairs that still need a vote and that this person has not seen."""


class Queue:
    """Assigns the pairs of a store to people and takes their votes."""

    def __init__(self, store: Store, settings: QueueSettings | None = None) -> None:
        self.store, self.settings = store, settings or QueueSettings()
        if self.settings.overlap < 1:
            raise InputError(f"overlap is {self.settings.overlap}; each pair needs at least one person")

    def next(self, annotator: int, count: int = 1) -> list[Assignment]:
        """The next pairs of a person, at most `count`; the same ones until there is a vote on them."""
        with self.store.writing() as session:
            now = time.time()
            rows = [row for row in session.scalars(_open_of(annotator)) if self._is_held(session, row, now)]
            for row in rows:
                row.expires = now + self.settings.lease_seconds
            while len(rows) < count:
                new = self._assign(session, annotator, now)
                if new is None:
                    break
                rows.append(new)
            return [_assignment(session, row) for row in rows[:count]]

    def vote(self, annotator: int, assignment: int, request: VoteRequest) -> VoteResult:
        """Count a vote; committed when this returns. A second vote on a pair replaces the first, and both are stored.

        Raises:
            InputError: no such assignment of this person, or an unknown choice or strength.
        """
        if request.choice not in CHOICES:
            raise InputError(f"'{request.choice}' is not a choice; give one of: {', '.join(CHOICES)}")
        if request.strength not in (None, 1, 2, 3):
            raise InputError(f"strength is {request.strength}; give 1 (slightly), 2 (clearly) or 3 (by far)")
        details = {
            "strength": request.strength,
            "tags": [_clean(tag) for tag in request.tags],
            "seconds": request.seconds,
        }
        return self._append(annotator, assignment, request.key, request.choice, "voted", request.reason, details)

    def skip(self, annotator: int, assignment: int, key: str, reason: str = "") -> VoteResult:
        """Leave a pair to others."""
        return self._append(annotator, assignment, key, "skip", "skipped", reason)

    def report(self, annotator: int, assignment: int, key: str, reason: str = "") -> VoteResult:
        """Report that something is wrong with a pair itself."""
        return self._append(annotator, assignment, key, "report", "reported", reason)

    def undo(self, annotator: int, key: str) -> Assignment | None:
        """Take back a person's last vote, skip or report; its pair is open again and served next.

        Returns:
            That pair; None where there is nothing to take back.
        """
        _check_key(key)
        with self.store.writing() as session:
            earlier = session.scalar(select(VoteRow).where(VoteRow.key == key))
            if earlier is not None:
                return _assignment(session, _assignment_row(session, annotator, earlier.assignment))
            row = session.scalar(
                select(AssignmentRow)
                .join(VoteRow, VoteRow.assignment == AssignmentRow.id)
                .where(AssignmentRow.annotator == annotator, AssignmentRow.state != "open")
                .order_by(VoteRow.id.desc())
                .limit(1)
            )
            if row is None:
                return None
            session.add(VoteRow(key=key, task=row.task, annotator=annotator, assignment=row.id, choice="undo"))
            row.state, row.reopened = "open", time.time()
            row.expires = row.reopened + self.settings.lease_seconds
            return _assignment(session, row)

    def assignment(self, annotator: int, identity: int) -> Assignment:
        """A pair that was assigned to this person, in any state."""
        with self.store.reading() as session:
            return _assignment(session, _assignment_row(session, annotator, identity))

    def progress(self, annotator: int) -> Progress:
        """A person's progress."""
        with self.store.reading() as session:
            query = (
                select(AssignmentRow.state, func.count())
                .join(Task, Task.id == AssignmentRow.task)
                .where(AssignmentRow.annotator == annotator, AssignmentRow.round == 0, Task.kind == "task")
                .group_by(AssignmentRow.state)
            )
            states: Mapping[str, int] = {state: number for state, number in session.execute(query)}
            remaining = session.scalar(
                select(func.count()).select_from(self._available(annotator, time.time()).subquery())
            )
        return Progress(
            done=states.get("voted", 0),
            open=states.get("open", 0),
            skipped=states.get("skipped", 0) + states.get("reported", 0),
            remaining=remaining or 0,
        )

    def adjudicate(self, annotator: int, task: int, choice: str, key: str, reason: str = "") -> VoteResult:
        """An admin's decision on a task; it replaces the votes, which stay stored.

        Raises:
            InputError: not an admin, no such task, or an unknown choice.
        """
        if choice not in ADJUDICATIONS:
            raise InputError(f"'{choice}' is not an adjudication; give one of: {', '.join(ADJUDICATIONS)}")
        _check_key(key)
        with self.store.writing() as session:
            person = session.get(AnnotatorRow, annotator)
            if person is None or person.role != "admin":
                raise InputError("only an admin adjudicates a task; open the admin link")
            if session.get(Task, task) is None:
                raise InputError(f"there is no task {task}; see the queue of disagreements")
            if session.scalar(select(VoteRow.id).where(VoteRow.key == key)) is not None:
                return VoteResult(key, repeated=True)
            session.add(
                VoteRow(
                    key=key, task=task, annotator=annotator, choice=choice, probability=PROBABILITY.get(choice),
                    reason=_clean(reason), adjudicated=True,
                )
            )  # fmt: skip
        return VoteResult(key, repeated=False)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _append(
        self, annotator: int, assignment: int, key: str, choice: str, state: str, reason: str,
        details: Mapping[str, Any] | None = None,
    ) -> VoteResult:  # fmt: skip
        _check_key(key)
        with self.store.writing() as session:
            earlier = session.scalar(select(VoteRow).where(VoteRow.key == key))
            if earlier is not None:
                if (earlier.annotator, earlier.assignment) != (annotator, assignment):
                    raise InputError("this key was used for another vote; make a new key for each vote")
                return VoteResult(key, repeated=True)
            row = _assignment_row(session, annotator, assignment)
            if choice in ("left", "right"):
                choice = "first" if (choice == "left") != row.swapped else "second"
            session.add(
                VoteRow(
                    key=key, task=row.task, annotator=annotator, assignment=row.id, choice=choice,
                    probability=PROBABILITY.get(choice), reason=_clean(reason),
                    guideline=session.scalar(select(func.max(Guideline.id))), **details or {},
                )
            )  # fmt: skip
            row.state = state
        return VoteResult(key, repeated=False)

    def _is_held(self, session: Session, row: AssignmentRow, now: float) -> bool:
        """Whether an open assignment is still this person's: its lease holds, or nobody else took the pair."""
        if row.expires >= now or row.reopened is not None or row.round == 1:
            return True
        task = session.get_one(Task, row.task)
        if task.kind == "practice":
            return True
        others = session.scalar(
            select(func.count()).where(
                AssignmentRow.task == row.task, AssignmentRow.annotator != row.annotator, _is_occupied(now)
            )
        )
        return (others or 0) < self.settings.overlap

    def _available(self, annotator: int, now: float) -> Select[Task]:
        """Tasks that fewer than `overlap` people have and that this person never had."""
        occupied = (
            select(AssignmentRow.task, func.count().label("people"))
            .where(AssignmentRow.round == 0, _is_occupied(now))
            .group_by(AssignmentRow.task)
            .subquery()
        )
        own_rows = aliased(AssignmentRow)
        assigned = select(own_rows.id).where(own_rows.task == Task.id, own_rows.annotator == annotator).exists()
        return (
            select(Task)
            .outerjoin(occupied, occupied.c.task == Task.id)
            .where(Task.kind == "task", func.coalesce(occupied.c.people, 0) < self.settings.overlap, ~assigned)
        )

    def _assign(self, session: Session, annotator: int, now: float) -> AssignmentRow | None:
        own_rows = select(AssignmentRow.task).where(AssignmentRow.annotator == annotator)
        practice = session.scalar(
            select(Task).where(Task.kind == "practice", Task.id.not_in(own_rows)).order_by(Task.id).limit(1)
        )
        if practice is not None:
            return self._assign_task(session, practice, annotator, now)
        count = session.scalar(select(func.count()).where(AssignmentRow.annotator == annotator)) or 0
        chance = random.Random(f"{self.settings.seed}/{annotator}/{count}")
        if chance.random() < self.settings.repeat_share:
            repeat = self._repeat(session, annotator, now, chance)
            if repeat is not None:
                return repeat
        by_place = chance.random() < self.settings.audit_share or self.settings.order == "random"
        order = [Task.place] if by_place else [case((Task.uncertainty.is_(None), 1), else_=0),
                                               Task.uncertainty.desc(), Task.place]  # fmt: skip
        task = session.scalar(self._available(annotator, now).order_by(*order).limit(1))
        return None if task is None else self._assign_task(session, task, annotator, now)

    def _repeat(self, session: Session, annotator: int, now: float, chance: random.Random) -> AssignmentRow | None:
        again = aliased(AssignmentRow)
        rows = session.scalars(
            select(AssignmentRow)
            .join(Task, Task.id == AssignmentRow.task)
            .where(AssignmentRow.annotator == annotator, AssignmentRow.state == "voted", Task.kind == "task")
            .where(
                ~select(again.id).where(again.task == Task.id, again.annotator == annotator, again.round == 1).exists()
            )
            .order_by(AssignmentRow.id)
        ).all()[:-REPEAT_AFTER]
        if not rows:
            return None
        first = chance.choice(rows)
        row = AssignmentRow(
            task=first.task, annotator=annotator, round=1, swapped=not first.swapped,
            expires=now + self.settings.lease_seconds,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row

    def _assign_task(self, session: Session, task: Task, annotator: int, now: float) -> AssignmentRow:
        row = AssignmentRow(
            task=task.id, annotator=annotator, swapped=self._side(session, task, annotator),
            expires=now + self.settings.lease_seconds,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row

    def _side(self, session: Session, task: Task, annotator: int) -> bool:
        """Whether response 1 goes left: where it did so less often, for this pair and then for this person."""
        balance = func.sum(case((AssignmentRow.swapped, 1), else_=-1))
        for condition in (AssignmentRow.task == task.id, AssignmentRow.annotator == annotator):
            lead = session.scalar(select(balance).where(condition, AssignmentRow.round == 0)) or 0
            if lead:
                return lead < 0
        return random.Random(f"{self.settings.seed}/{task.key}/{annotator}").random() < 0.5


def _is_occupied(now: float) -> Any:
    """Condition: voted, or held under a lease that has not expired."""
    return or_(AssignmentRow.state == "voted", (AssignmentRow.state == "open") & (AssignmentRow.expires >= now))


def _open_of(annotator: int) -> Select[AssignmentRow]:
    latest = case((AssignmentRow.reopened.is_(None), 0.0), else_=AssignmentRow.reopened).desc()
    return (
        select(AssignmentRow)
        .where(AssignmentRow.annotator == annotator, AssignmentRow.state == "open")
        .order_by(latest, AssignmentRow.id)
    )


def _assignment_row(session: Session, annotator: int, identity: int | None) -> AssignmentRow:
    row = None if identity is None else session.get(AssignmentRow, identity)
    if row is None or row.annotator != annotator:
        raise InputError(f"assignment {identity} is not yours; reload the page to get the next pair")
    return row


def _assignment(session: Session, row: AssignmentRow) -> Assignment:
    task = session.get_one(Task, row.task)
    group = group_of(task)
    left, right = group.responses[::-1] if row.swapped else group.responses
    answer: Choice | None = None
    if task.answer is not None:
        sides: tuple[Choice, Choice] = ("right", "left") if row.swapped else ("left", "right")
        answer = "tie" if task.answer == 0.5 else sides[int(task.answer < 0.5)]
    return Assignment(row.id, task.id, task.kind, shown_prompt(group), left, right, row.reopened is not None, answer)


def _check_key(key: str) -> None:
    if not 8 <= len(key) <= 80:
        raise InputError("a vote needs a key of 8 to 80 characters, a new one for each vote")


def _clean(text: str) -> str:
    """Without NUL, which databases reject, and without lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
