"""The label store: tasks, votes, annotators, judge calls and revisions in SQLite, or in PostgreSQL by URL.

A change is committed when its method returns. On SQLite a writer begins with BEGIN IMMEDIATE on a write-ahead log that
is synced at each commit; on PostgreSQL writers take turns by an advisory lock. So a read and the write that depends on
it are one step everywhere, and the rules of the queue need no other lock.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from kleash.data.group import Content, Group, Preference, Response, canonical_prompt, pair_of
from kleash.errors import DataError, InputError
from kleash.labels.labeller import LabelResult
from kleash.labels.schema import AnnotatorRow, AssignmentRow, CallRow, Guideline, Json, RevisionRow, Task, VoteRow

LOCK = 0x6B6C6561  # "klea": our advisory lock on PostgreSQL

ROLES = ("annotator", "admin")

PEOPLE = ("person", "file")
"""Kinds of labellers that are people; the others are models. Imported labels are people's unless they say otherwise."""

CHOICE_OF: dict[float | None, str] = {1.0: "first", 0.0: "second"}
"""Choice of a label with probability 0 or 1; `soft` for others."""


@dataclass(frozen=True)
class Annotator:
    """A labeller of the store."""

    id: int
    alias: str
    """The name in exports; anonymous for people."""
    name: str
    kind: str
    role: str
    revoked: bool
    settings: Json


@dataclass(frozen=True)
class Invitation:
    """A new annotator and the token of their link, which is not stored."""

    annotator: int
    token: str


@dataclass(frozen=True)
class Guidelines:
    """Guidelines for annotators, and their version."""

    version: int
    text: str


@dataclass(frozen=True)
class Call:
    """One request to a model and its reply."""

    key: str
    """Hash of the model and the whole request."""
    model: str
    request: Json
    state: str
    response: Any = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Revision:
    """A response, its critique, and its revision."""

    prompt: Content
    original: str
    critique: str
    revised: str
    principle: str
    round: int
    model: str
    unchanged: bool


@dataclass(frozen=True)
class Match:
    """The task of a pair."""

    task: int
    swapped: bool
    """Whether the responses of the task are in the other order."""


@dataclass(frozen=True)
class Vote:
    """One vote on a task; see `VoteRow`."""

    id: int
    key: str
    task: int
    annotator: int
    alias: str
    kind: str
    assignment: int | None
    choice: str
    probability: float | None
    strength: int | None
    reason: str
    tags: list[str]
    principle: str | None
    order_effect: float | None
    seconds: float | None
    guideline: int | None
    swapped: bool | None
    """Whether response 1 was on the left; None where no sides were assigned."""
    repeat: bool
    """Whether it answers a hidden repeat."""
    adjudicated: bool
    created: float
    counts: bool = field(default=True)
    """Whether it is the last vote of its labeller on its task, and a label: not a skip, a report or an undo."""
    last: bool = field(default=True)
    """Whether it is the last vote of its labeller on its task, of any kind."""


def cannot_be_judged(votes: Sequence[Vote]) -> bool:
    """Whether the votes of people on one task say so: the adjudication, where there is one, or more than half."""
    votes = [vote for vote in votes if vote.adjudicated] or votes
    return 2 * sum(vote.choice == "cannot" for vote in votes) > len(votes)


class Store:
    """A label store; see `open`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite makes waiting writers retry with growing pauses, and some starve; a lock is fair
        self._turn = threading.Lock()

    @classmethod
    def open(cls, where: str | Path) -> Store:
        """Open a store; creates or migrates it where necessary.

        Args:
            where: a path of an SQLite file, or a database URL (`postgresql+psycopg://user@host/name`).

        Raises:
            InputError: it cannot be opened, or is not a label store.
        """
        try:
            if "://" in str(where):
                url = make_url(str(where))
            else:
                Path(where).parent.mkdir(parents=True, exist_ok=True)
                url = URL.create("sqlite", database=str(where))
            engine = create_engine(url, pool_size=20, max_overflow=40)
            _set_transactions(engine)
            with engine.connect() as connection:
                _migrate(connection)
        except (ArgumentError, ModuleNotFoundError, DatabaseError, sqlite3.DatabaseError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
            raise InputError(
                f"{_without_password(where)}: cannot be opened as a label store ({reason}); give the path of an "
                "SQLite file, or a PostgreSQL URL with the extra `postgres` installed"
            ) from None
        return cls(engine)

    @property
    def where(self) -> str:
        """Value of `--store` that opens it, without the password."""
        url = self.engine.url
        return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that reads a consistent state."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """The session of the only writer; committed at the end, rolled back if anything is raised."""
        engine = self.engine.execution_options(kleash_writes=True)
        with self._turn, Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    # --- tasks -------------------------------------------------------------------------------------------------------

    def add_tasks(
        self, groups: Iterable[Group], *, kind: str = "task", uncertainty: Sequence[float] | None = None
    ) -> int:
        """Add every pair of responses of each group; a pair that exists already stays as it is.

        Args:
            groups: of two responses or more.
            kind: `task`, or `practice`, whose preference becomes the answer.
            uncertainty: one number per group; the highest are served first.

        Returns:
            Number of new pairs.

        Raises:
            DataError: a group with fewer than two responses, or a practice group without a preference.
        """
        tasks = []
        for row, group in enumerate(groups):
            if len(group.responses) < 2:
                raise DataError(
                    f"row {row + 1} has {len(group.responses)} responses; a task has two or more to compare"
                )
            if kind == "practice" and not isinstance(group.label, Preference):
                raise DataError(f"row {row + 1} has no preference; give `chosen` and `rejected`")
            for i, j in combinations(range(len(group.responses)), 2):
                task = _task(group, i, j, kind)
                if uncertainty is not None:
                    task.uncertainty = float(uncertainty[row])
                tasks.append(task)
        with self.writing() as session:
            return _add_new(session, tasks)

    def tasks(self) -> dict[int, Group]:
        """The tasks that count, by id, each as a group of two responses without label."""
        with self.reading() as session:
            return {task.id: group_of(task) for task in session.scalars(select(Task).where(Task.kind == "task"))}

    def find(self, groups: Sequence[Group]) -> list[Match | None]:
        """The task of each group of two responses; None where there is none."""
        matches: list[Match | None] = []
        with self.reading() as session:
            for group in groups:
                task = _task(group, 0, 1, "task")
                row = session.execute(select(Task.id, Task.first).where(Task.key == task.key)).one_or_none()
                matches.append(None if row is None else Match(row.id, row.first != task.first))
        return matches

    def record(self, groups: Sequence[Group], results: Sequence[LabelResult], *, kind: str = "judge") -> int:
        """Store a labeller's results on groups of two responses; adds tasks that do not exist yet.

        A result that the same labeller gave already on the same pair under the same principle is not stored again; a
        different one replaces it.

        Args:
            groups, results: one of each, in order.
            kind: of the labeller: `judge`, `simulated` or `file`.

        Returns:
            Number of new votes.
        """
        with self.writing() as session:
            return sum(_record(session, *pair, kind) for pair in zip(groups, results, strict=True))

    # --- people ------------------------------------------------------------------------------------------------------

    def invite(self, name: str = "", role: str = "annotator") -> Invitation:
        """A new annotator; the token goes into their link and is not stored."""
        if role not in ROLES:
            raise InputError(f"'{role}' is not a role; give one of: {', '.join(ROLES)}")
        token = secrets.token_urlsafe(24)
        with self.writing() as session:
            row = AnnotatorRow(
                alias=f"a-{secrets.token_hex(4)}", name=name.replace("\0", ""), kind="person", role=role,
                token=_sha256(token), settings={},
            )  # fmt: skip
            session.add(row)
            session.flush()
            return Invitation(row.id, token)

    def annotator_of(self, token: str) -> Annotator | None:
        """The annotator of a token; None for an unknown or revoked token."""
        with self.reading() as session:
            row = session.scalar(select(AnnotatorRow).where(AnnotatorRow.token == _sha256(token)))
            return None if row is None or row.revoked is not None else _person(row)

    def annotator(self, identity: int) -> Annotator | None:
        """An annotator by id, revoked or not."""
        with self.reading() as session:
            row = session.get(AnnotatorRow, identity)
            return None if row is None else _person(row)

    def annotators(self) -> list[Annotator]:
        """All annotators, in order of arrival."""
        with self.reading() as session:
            return [_person(row) for row in session.scalars(select(AnnotatorRow).order_by(AnnotatorRow.id))]

    def revoke(self, annotator: int) -> None:
        """Revoke a link; the votes stay."""
        with self.writing() as session:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                raise InputError(f"there is no annotator {annotator}; see the list of annotators")
            row.revoked = row.revoked or time.time()

    def set_settings(self, annotator: int, settings: Json) -> None:
        """Keys, theme and goal of an annotator."""
        with self.writing() as session:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                raise InputError(f"there is no annotator {annotator}; see the list of annotators")
            row.settings = dict(settings)

    def guidelines(self) -> Guidelines | None:
        """The current guidelines; None where there are none."""
        with self.reading() as session:
            row = session.scalar(select(Guideline).order_by(Guideline.id.desc()).limit(1))
            return None if row is None else Guidelines(row.id, row.text)

    def set_guidelines(self, text: str) -> Guidelines:
        """Add a version, unless the text is the current one."""
        with self.writing() as session:
            row = session.scalar(select(Guideline).order_by(Guideline.id.desc()).limit(1))
            if row is None or row.text != text:
                row = Guideline(text=text)
                session.add(row)
                session.flush()
            return Guidelines(row.id, row.text)

    # --- votes, calls, revisions -------------------------------------------------------------------------------------

    def votes(self, *, until: int | None = None) -> list[Vote]:
        """All votes, oldest first, each with whether it counts.

        Args:
            until: id of the last vote to include: the store as it was then.
        """
        query = (
            select(VoteRow, AnnotatorRow.alias, AnnotatorRow.kind, AssignmentRow.swapped, AssignmentRow.round)
            .join(AnnotatorRow, AnnotatorRow.id == VoteRow.annotator)
            .join(Task, Task.id == VoteRow.task)
            .outerjoin(AssignmentRow, AssignmentRow.id == VoteRow.assignment)
            .where(Task.kind == "task")
            .order_by(VoteRow.id)
        )
        if until is not None:
            query = query.where(VoteRow.id <= until)
        with self.reading() as session:
            rows = session.execute(query).all()
        last = {_slot(row[0], row.round): row[0].id for row in rows}
        return [
            Vote(
                id=vote.id, key=vote.key, task=vote.task, annotator=vote.annotator, alias=alias, kind=kind,
                assignment=vote.assignment, choice=vote.choice, probability=vote.probability,
                strength=vote.strength, reason=vote.reason, tags=list(vote.tags), principle=vote.principle,
                order_effect=vote.order_effect, seconds=vote.seconds, guideline=vote.guideline, swapped=swapped,
                repeat=bool(repeat), adjudicated=vote.adjudicated, created=vote.created,
                counts=last[_slot(vote, repeat)] == vote.id and vote.choice not in ("undo", "skip", "report"),
                last=last[_slot(vote, repeat)] == vote.id,
            )
            for vote, alias, kind, swapped, repeat in rows
        ]  # fmt: skip

    def last_vote(self) -> int:
        """Id of the newest vote, 0 where there is none."""
        with self.reading() as session:
            return session.scalar(select(func.max(VoteRow.id))) or 0

    def call(self, key: str) -> Call | None:
        """The stored reply to a request; None where there is none."""
        with self.reading() as session:
            row = session.get(CallRow, key)
            if row is None:
                return None
            return Call(**{name: getattr(row, name) for name in Call.__dataclass_fields__})

    def save_call(self, call: Call) -> None:
        """Store a request with its reply, in place of an earlier one to the same request, which failed."""
        with self.writing() as session:
            session.merge(CallRow(**asdict(call)))

    def spent(self) -> float:
        """Cost of all calls so far."""
        with self.reading() as session:
            return float(session.scalar(select(func.sum(CallRow.cost))) or 0.0)

    def save_revision(self, revision: Revision) -> None:
        """Store a revision."""
        with self.writing() as session:
            session.add(RevisionRow(**asdict(revision) | {"prompt": plain(revision.prompt)}))

    def revisions(self) -> list[Revision]:
        """All revisions, oldest first."""
        with self.reading() as session:
            rows = session.scalars(select(RevisionRow).order_by(RevisionRow.id)).all()
        fields = [name for name in Revision.__dataclass_fields__ if name != "prompt"]
        return [Revision(content(row.prompt), **{name: getattr(row, name) for name in fields}) for row in rows]


def group_of(task: Task) -> Group:
    """A task as a group of two responses."""
    responses = (_response(task.first), _response(task.second))
    return Group(content(task.prompt), responses, columns=task.columns)


def plain(value: Content) -> Any:
    """Text or turns as JSON."""
    return value if isinstance(value, str) else [dict(turn) for turn in value]


def content(value: Any) -> Content:
    """Text or turns from JSON."""
    return value if isinstance(value, str) else tuple(value)


def _task(group: Group, i: int, j: int, kind: str) -> Task:
    prompt = plain(group.prompt)
    first, second = (
        {"content": _content_of(group.responses[k]), "finished": group.responses[k].finished} for k in (i, j)
    )
    # sorted: the same pair in the other order is the same task
    key = _hash([kind, prompt, sorted([json.dumps(first, sort_keys=True), json.dumps(second, sort_keys=True)])])
    label = group.label
    return Task(
        key=key,
        kind=kind,
        prompt_key=_hash(canonical_prompt(prompt)),
        prompt=prompt,
        first=first,
        second=second,
        columns=dict(pair_of(group, i, j).columns),
        answer=label.probability if kind == "practice" and isinstance(label, Preference) else None,
        place=int(key[:12], 16) / 16**12,
    )


def _content_of(response: Response) -> Any:
    return plain(response.text if response.content is None else response.content)


def _response(value: Json) -> Response:
    return Response(content(value["content"]), finished=value["finished"])


def _add_new(session: Session, tasks: Sequence[Task]) -> int:
    """Add the tasks that do not exist yet, each once; many at a time, since people wait for the first of them."""
    added = 0
    for start in range(0, len(tasks), 500):
        fresh: dict[str, Task] = {}
        for task in tasks[start : start + 500]:
            fresh.setdefault(task.key, task)
        for key in list(session.scalars(select(Task.key).where(Task.key.in_(fresh)))):
            del fresh[key]
        session.add_all(fresh.values())
        session.flush()
        added += len(fresh)
    return added


def _annotator(session: Session, name: str, kind: str) -> int:
    identity = session.scalar(select(AnnotatorRow.id).where(AnnotatorRow.alias == name))
    if identity is None:
        row = AnnotatorRow(alias=name, name=name, kind=kind, settings={})
        session.add(row)
        session.flush()
        identity = row.id
    return identity


def _record(session: Session, group: Group, result: LabelResult, kind: str) -> bool:
    """Append a labeller's result as a vote, unless it exists already."""
    task = _task(group, 0, 1, "task")
    _add_new(session, [task])
    stored = session.execute(select(Task.id, Task.first).where(Task.key == task.key)).one()
    probability = result.probability
    if probability is not None and stored.first != task.first:
        probability = 1 - probability
    choice = CHOICE_OF.get(probability, "soft") if result.outcome == "preference" else result.outcome
    annotator = _annotator(session, result.labeller, kind)
    earlier = _earlier_votes(session, stored.id, annotator, result.principle)
    if any(vote.choice == choice and _same(vote.probability, probability) for vote in earlier):
        return False
    before = earlier[0].id if earlier else 0
    key = _hash(["record", task.key, result.labeller, kind, result.principle, choice, probability, before])
    session.add(
        VoteRow(
            key=key,
            task=stored.id,
            annotator=annotator,
            choice=choice,
            probability=probability,
            reason=(result.reason or "").replace("\0", ""),
            principle=result.principle,
            order_effect=result.order_effect,
        )
    )
    return True


def _person(row: AnnotatorRow) -> Annotator:
    return Annotator(
        row.id, row.alias, row.name, row.kind, row.role, row.revoked is not None, dict(row.settings)
    )  # fmt: skip


def _earlier_votes(session: Session, task: int, annotator: int, principle: str | None) -> list[VoteRow]:
    """What a labeller said of a task, newest first, back to the last vote that was recorded and not made on the page.

    A file may be older than a person's latest vote on the page: what they said since the last import is known.
    """
    query = (
        select(VoteRow)
        .outerjoin(AssignmentRow, AssignmentRow.id == VoteRow.assignment)
        .where(VoteRow.task == task, VoteRow.annotator == annotator)
        .where(VoteRow.principle.is_(None) if principle is None else VoteRow.principle == principle)
        .where(func.coalesce(AssignmentRow.round, 0) == 0)
        .order_by(VoteRow.id.desc())
    )
    votes: list[VoteRow] = []
    for vote in session.scalars(query):
        votes.append(vote)
        if vote.assignment is None:
            break
    return votes


def _same(one: float | None, other: float | None) -> bool:
    """Equal but for the rounding of 1 − (1 − p), which a file with the responses in the other order makes of p."""
    return one == other or (one is not None and other is not None and math.isclose(one, other, abs_tol=1e-9))


def _slot(vote: VoteRow, repeat: int | None) -> tuple[Any, ...]:
    """A later vote in the same slot replaces it: of one labeller on one task, by one principle; a hidden repeat; an
    adjudication.
    """
    if vote.adjudicated:
        return ("adjudication", vote.task)
    return ("repeat", vote.assignment) if repeat else ("vote", vote.task, vote.annotator, vote.principle)


def _hash(value: Any) -> str:
    return _sha256(json.dumps(value, sort_keys=True, ensure_ascii=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _without_password(where: str | Path) -> str:
    text = str(where)
    return make_url(text).render_as_string(hide_password=True) if "://" in text else text


def _set_transactions(engine: Engine) -> None:
    """SQLite: write-ahead log, BEGIN or BEGIN IMMEDIATE by us. PostgreSQL: writers take an advisory lock."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # no BEGIN but ours
            for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("kleash_writes", False)
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        elif writes:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")


def _migrate(connection: Connection) -> None:
    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    settings.attributes["connection"] = connection.execution_options(kleash_writes=True)
    with connection.begin():  # two processes that open a new store take turns
        alembic.command.upgrade(settings, "head")
