"""Who compares what next, and what they said of it.

Rules: a person resumes what they had open, in its order and with its sides. A new pair is one that fewer than `overlap`
people have voted on or hold; what a person holds lapses after `lease_seconds`, and a vote that comes later counts all
the same. Sides are balanced for each pair, then for each person, and remembered. A share of pairs is drawn at random
whatever the order, so that what was chosen can be checked against what was not; a share is shown again with its sides
swapped, and nobody is told.
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
from kleash.errors import InputError
from kleash.labels.schema import AnnotatorRow, AssignmentRow, Guideline, Task, VoteRow
from kleash.labels.store import Store, group_of

Choice = Literal["left", "right", "tie", "both_bad", "cannot"]
CHOICES = ("left", "right", "tie", "both_bad", "cannot")
ADJUDICATIONS = ("first", "second", "tie", "both_bad", "cannot")

PROBABILITY = {"first": 1.0, "second": 0.0, "tie": 0.5}
"""P(first ≻ second) of a vote; the others say nothing of it."""

REPEAT_AFTER = 5
"""A hidden repeat comes so many votes after the first showing at the earliest."""


@dataclass(frozen=True)
class QueueSettings:
    """How pairs are given out."""

    overlap: int = 1
    """People who compare each pair, ≥ 1."""
    order: Literal["uncertain", "random"] = "uncertain"
    """Most uncertain first (where no uncertainty was given, at random), or at random."""
    audit_share: float = 0.1
    """Share of pairs drawn at random whatever the order."""
    repeat_share: float = 0.05
    """Share of showings that are a hidden repeat of an earlier pair, sides swapped."""
    lease_seconds: float = 900
    """For how long an open pair is kept for whoever has it."""
    seed: int = 0


@dataclass(frozen=True)
class Assignment:
    """A pair as a person sees it: no names of models, no votes of others."""

    id: int
    task: int
    kind: str
    prompt: Content
    left: Response
    right: Response
    reopened: bool = False
    """Whether its vote was taken back."""
    answer: Choice | None = None
    """What is right, of a practice pair."""


@dataclass(frozen=True)
class VoteRequest:
    """A vote as it comes from a person."""

    key: str
    """Made by whoever sends it, for each vote a new one; sent again it is not counted again."""
    verdict: str
    """One of `CHOICES`; looked at when it is counted, as it comes from outside."""
    strength: int | None = None
    """1 slightly, 2 clearly, 3 by far."""
    reason: str = ""
    tags: Sequence[str] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class VoteResult:
    """A vote that is committed."""

    key: str
    repeated: bool
    """Whether it had been counted before."""


@dataclass(frozen=True)
class Progress:
    """How far a person is."""

    done: int
    """Pairs voted on, practice and repeats apart."""
    open: int
    """Pairs they hold."""
    skipped: int
    left: int
    """Pairs that still want somebody's vote and that this person has not had."""


class Queue:
    """Gives out the pairs of a store and takes the votes on them."""

    def __init__(self, store: Store, settings: QueueSettings | None = None) -> None:
        self.store, self.settings = store, settings or QueueSettings()
        if self.settings.overlap < 1:
            raise InputError(f"overlap is {self.settings.overlap}; each pair needs at least one person")

    def next(self, annotator: int, count: int = 1) -> list[Assignment]:
        """What a person compares next, at most `count` pairs; asked again, the same until they are voted on."""
        with self.store.writing() as session:
            now = time.time()
            held = [row for row in session.scalars(_open_of(annotator)) if self._still_wanted(session, row, now)]
            for row in held:
                row.expires = now + self.settings.lease_seconds
            while len(held) < count:
                new = self._assign(session, annotator, now)
                if new is None:
                    break
                held.append(new)
            return [_shown(session, row) for row in held[:count]]

    def vote(self, annotator: int, assignment: int, vote_request: VoteRequest) -> VoteResult:
        """Count a vote; committed when this returns. On a pair that has one it is a revision, and both are kept.

        Raises:
            InputError: no such assignment of this person, or a verdict or strength that is none.
        """
        if vote_request.verdict not in CHOICES:
            raise InputError(f"'{vote_request.verdict}' is no verdict; give one of: {', '.join(CHOICES)}")
        if vote_request.strength not in (None, 1, 2, 3):
            raise InputError(f"strength is {vote_request.strength}; it is 1 (slightly), 2 (clearly) or 3 (by far)")
        said = {
            "strength": vote_request.strength,
            "tags": [_clean(tag) for tag in vote_request.tags],
            "seconds": vote_request.seconds,
        }
        return self._append(
            annotator, assignment, vote_request.key, vote_request.verdict, "voted", vote_request.reason, said
        )

    def skip(self, annotator: int, assignment: int, key: str, reason: str = "") -> VoteResult:
        """Pass a pair on to others."""
        return self._append(annotator, assignment, key, "skip", "skipped", reason)

    def report(self, annotator: int, assignment: int, key: str, reason: str = "") -> VoteResult:
        """Say that something is wrong with a pair itself."""
        return self._append(annotator, assignment, key, "report", "reported", reason)

    def undo(self, annotator: int, key: str) -> Assignment | None:
        """Take back the last thing a person said that stands; its pair is open again and comes next.

        Returns:
            That pair; None where there is nothing to take back.
        """
        _check_key(key)
        with self.store.writing() as session:
            earlier = session.scalar(select(VoteRow).where(VoteRow.key == key))
            if earlier is not None:
                return _shown(session, _assignment_of(session, annotator, earlier.assignment))
            row = session.scalar(
                select(AssignmentRow)
                .join(VoteRow, VoteRow.assignment == AssignmentRow.id)
                .where(AssignmentRow.annotator == annotator, AssignmentRow.state != "open")
                .order_by(VoteRow.id.desc())
                .limit(1)
            )
            if row is None:
                return None
            session.add(VoteRow(key=key, task=row.task, annotator=annotator, assignment=row.id, verdict="undo"))
            row.state, row.reopened = "open", time.time()
            row.expires = row.reopened + self.settings.lease_seconds
            return _shown(session, row)

    def assignment(self, annotator: int, identity: int) -> Assignment:
        """A pair that this person was given, whatever became of it."""
        with self.store.reading() as session:
            return _shown(session, _assignment_of(session, annotator, identity))

    def progress(self, annotator: int) -> Progress:
        """How far a person is."""
        with self.store.reading() as session:
            own = (
                select(AssignmentRow.state, func.count())
                .join(Task, Task.id == AssignmentRow.task)
                .where(AssignmentRow.annotator == annotator, AssignmentRow.round == 0, Task.kind == "task")
                .group_by(AssignmentRow.state)
            )
            states: Mapping[str, int] = {state: number for state, number in session.execute(own)}
            left = session.scalar(select(func.count()).select_from(self._wanted(annotator, time.time()).subquery()))
        return Progress(
            done=states.get("voted", 0),
            open=states.get("open", 0),
            skipped=states.get("skipped", 0) + states.get("reported", 0),
            left=left or 0,
        )

    def adjudicate(self, annotator: int, task: int, verdict: str, key: str, reason: str = "") -> VoteResult:
        """An admin's last word on a task: it stands in place of the votes, which are kept.

        Raises:
            InputError: not an admin, no such task, or no such verdict.
        """
        if verdict not in ADJUDICATIONS:
            raise InputError(f"'{verdict}' is no adjudication; give one of: {', '.join(ADJUDICATIONS)}")
        _check_key(key)
        with self.store.writing() as session:
            who = session.get(AnnotatorRow, annotator)
            if who is None or who.role != "admin":
                raise InputError("only an admin rules on a task; open the admin link")
            if session.get(Task, task) is None:
                raise InputError(f"there is no task {task}; see the queue of disagreements")
            if session.scalar(select(VoteRow.id).where(VoteRow.key == key)) is not None:
                return VoteResult(key, repeated=True)
            session.add(
                VoteRow(
                    key=key, task=task, annotator=annotator, verdict=verdict, probability=PROBABILITY.get(verdict),
                    reason=_clean(reason), adjudicated=True,
                )
            )  # fmt: skip
        return VoteResult(key, repeated=False)

    # --- within ------------------------------------------------------------------------------------------------------

    def _append(
        self, annotator: int, assignment: int, key: str, verdict: str, state: str, reason: str,
        said: Mapping[str, Any] | None = None,
    ) -> VoteResult:  # fmt: skip
        _check_key(key)
        with self.store.writing() as session:
            earlier = session.scalar(select(VoteRow).where(VoteRow.key == key))
            if earlier is not None:
                if (earlier.annotator, earlier.assignment) != (annotator, assignment):
                    raise InputError("this key was used for another vote; make a new key for each vote")
                return VoteResult(key, repeated=True)
            row = _assignment_of(session, annotator, assignment)
            if verdict in ("left", "right"):
                verdict = "first" if (verdict == "left") != row.swapped else "second"
            session.add(
                VoteRow(
                    key=key, task=row.task, annotator=annotator, assignment=row.id, verdict=verdict,
                    probability=PROBABILITY.get(verdict), reason=_clean(reason),
                    guideline=session.scalar(select(func.max(Guideline.id))), **said or {},
                )
            )  # fmt: skip
            row.state = state
        return VoteResult(key, repeated=False)

    def _still_wanted(self, session: Session, row: AssignmentRow, now: float) -> bool:
        """Whether an open assignment is still this person's: its lease holds, or nobody else took its place."""
        if row.expires >= now or row.reopened is not None or row.round == 1:
            return True
        task = session.get_one(Task, row.task)
        if task.kind == "practice":
            return True
        others = session.scalar(
            select(func.count()).where(
                AssignmentRow.task == row.task, AssignmentRow.annotator != row.annotator, _taken(now)
            )
        )
        return (others or 0) < self.settings.overlap

    def _wanted(self, annotator: int, now: float) -> Select[Task]:
        """Tasks that fewer than `overlap` people have and that this person never had."""
        taken = (
            select(AssignmentRow.task, func.count().label("people"))
            .where(AssignmentRow.round == 0, _taken(now))
            .group_by(AssignmentRow.task)
            .subquery()
        )
        mine = aliased(AssignmentRow)
        had = select(mine.id).where(mine.task == Task.id, mine.annotator == annotator).exists()
        return (
            select(Task)
            .outerjoin(taken, taken.c.task == Task.id)
            .where(Task.kind == "task", func.coalesce(taken.c.people, 0) < self.settings.overlap, ~had)
        )

    def _assign(self, session: Session, annotator: int, now: float) -> AssignmentRow | None:
        mine = select(AssignmentRow.task).where(AssignmentRow.annotator == annotator)
        practice = session.scalar(
            select(Task).where(Task.kind == "practice", Task.id.not_in(mine)).order_by(Task.id).limit(1)
        )
        if practice is not None:
            return self._give(session, practice, annotator, now)
        had = session.scalar(select(func.count()).where(AssignmentRow.annotator == annotator)) or 0
        chance = random.Random(f"{self.settings.seed}/{annotator}/{had}")
        if chance.random() < self.settings.repeat_share:
            repeat = self._repeat(session, annotator, now, chance)
            if repeat is not None:
                return repeat
        by_place = chance.random() < self.settings.audit_share or self.settings.order == "random"
        order = [Task.place] if by_place else [case((Task.uncertainty.is_(None), 1), else_=0),
                                               Task.uncertainty.desc(), Task.place]  # fmt: skip
        task = session.scalar(self._wanted(annotator, now).order_by(*order).limit(1))
        return None if task is None else self._give(session, task, annotator, now)

    def _repeat(self, session: Session, annotator: int, now: float, chance: random.Random) -> AssignmentRow | None:
        again = aliased(AssignmentRow)
        shown = session.scalars(
            select(AssignmentRow)
            .join(Task, Task.id == AssignmentRow.task)
            .where(AssignmentRow.annotator == annotator, AssignmentRow.state == "voted", Task.kind == "task")
            .where(
                ~select(again.id).where(again.task == Task.id, again.annotator == annotator, again.round == 1).exists()
            )
            .order_by(AssignmentRow.id)
        ).all()[:-REPEAT_AFTER]
        if not shown:
            return None
        first = chance.choice(shown)
        row = AssignmentRow(
            task=first.task, annotator=annotator, round=1, swapped=not first.swapped,
            expires=now + self.settings.lease_seconds,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row

    def _give(self, session: Session, task: Task, annotator: int, now: float) -> AssignmentRow:
        row = AssignmentRow(
            task=task.id, annotator=annotator, swapped=self._side(session, task, annotator),
            expires=now + self.settings.lease_seconds,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row

    def _side(self, session: Session, task: Task, annotator: int) -> bool:
        """Whether response 1 goes left: where it did so less often, for this pair and then for this person."""
        turned = func.sum(case((AssignmentRow.swapped, 1), else_=-1))
        for condition in (AssignmentRow.task == task.id, AssignmentRow.annotator == annotator):
            lead = session.scalar(select(turned).where(condition, AssignmentRow.round == 0)) or 0
            if lead:
                return lead < 0
        return random.Random(f"{self.settings.seed}/{task.key}/{annotator}").random() < 0.5


def _taken(now: float) -> Any:
    """Voted, or held by somebody whose lease has not run out."""
    return or_(AssignmentRow.state == "voted", (AssignmentRow.state == "open") & (AssignmentRow.expires >= now))


def _open_of(annotator: int) -> Select[AssignmentRow]:
    latest = case((AssignmentRow.reopened.is_(None), 0.0), else_=AssignmentRow.reopened).desc()
    return (
        select(AssignmentRow)
        .where(AssignmentRow.annotator == annotator, AssignmentRow.state == "open")
        .order_by(latest, AssignmentRow.id)
    )


def _assignment_of(session: Session, annotator: int, identity: int | None) -> AssignmentRow:
    row = None if identity is None else session.get(AssignmentRow, identity)
    if row is None or row.annotator != annotator:
        raise InputError(f"assignment {identity} is not yours; reload the page to get the next pair")
    return row


def _shown(session: Session, row: AssignmentRow) -> Assignment:
    task = session.get_one(Task, row.task)
    group = group_of(task)
    left, right = group.responses[::-1] if row.swapped else group.responses
    answer: Choice | None = None
    if task.answer is not None:
        sides: tuple[Choice, Choice] = ("right", "left") if row.swapped else ("left", "right")
        answer = "tie" if task.answer == 0.5 else sides[int(task.answer < 0.5)]
    return Assignment(row.id, task.id, task.kind, group.prompt, left, right, row.reopened is not None, answer)


def _check_key(key: str) -> None:
    if not 8 <= len(key) <= 80:
        raise InputError("a vote needs a key of 8 to 80 characters, a new one for each vote")


def _clean(text: str) -> str:
    """Without the character that no database keeps, and without halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
