"""The label store: tasks, votes, annotators, judge calls and revisions in SQLite, or in PostgreSQL by URL.

What a method returned from is committed. On SQLite a writer begins with BEGIN IMMEDIATE on a write-ahead log that is
synced at each commit; on PostgreSQL writers take turns by an advisory lock. So a read and the write that follows from
it are one step everywhere, and the rules of the queue need no other lock.
"""

from __future__ import annotations

import hashlib
import json
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

from kleash.data.group import Content, Group, Preference, Response
from kleash.errors import DataError, InputError
from kleash.labels.labeller import LabelResult
from kleash.labels.schema import AnnotatorRow, AssignmentRow, CallRow, Guideline, RevisionRow, Task, VoteRow

LOCK = 0x6B6C6561  # "klea": our advisory lock on PostgreSQL

ROLES = ("annotator", "admin")


@dataclass(frozen=True)
class Annotator:
    """Who labels."""

    id: int
    alias: str
    """Anonymous, and the name in exports."""
    name: str
    kind: str
    role: str
    revoked: bool
    settings: dict[str, Any]


@dataclass(frozen=True)
class Invitation:
    """A new annotator and the token of their link, which is nowhere kept."""

    annotator: int
    token: str


@dataclass(frozen=True)
class Guidelines:
    """What annotators are told, and which version of it."""

    version: int
    text: str


@dataclass(frozen=True)
class Call:
    """One question to a model and what came back."""

    key: str
    """Hash of the model and the whole question."""
    model: str
    request: dict[str, Any]
    state: str
    response: Any = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Revision:
    """A response, what was said against it, and what became of it."""

    prompt: Content
    original: str
    critique: str
    revised: str
    principle: str
    round: int
    model: str
    unchanged: bool


@dataclass(frozen=True)
class Vote:
    """One thing said about a task."""

    id: int
    key: str
    task: int
    annotator: int
    alias: str
    kind: str
    assignment: int | None
    verdict: str
    probability: float | None
    strength: int | None
    reason: str
    tags: list[str]
    principle: str | None
    order_effect: float | None
    seconds: float | None
    guideline: int | None
    swapped: bool | None
    """Whether response 1 stood on the left; None where no sides were assigned."""
    repeat: bool
    """Whether it answers a hidden repeat."""
    adjudicated: bool
    created: float
    counts: bool = field(default=True)
    """Whether it is the last word of its assignment, and a label: no later vote or undo, no skip or report."""


class Store:
    """A label store; see `open`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite lets writers that wait try again after longer and longer pauses, and some starve; a lock is fair
        self._turn = threading.Lock()

    @classmethod
    def open(cls, where: str | Path) -> Store:
        """Open a store, made or migrated where it must be.

        Args:
            where: a path of an SQLite file, or a database URL (`postgresql+psycopg://user@host/name`).

        Raises:
            InputError: it cannot be opened, or is no label store.
        """
        try:
            if "://" in str(where):
                url = make_url(str(where))
            else:
                Path(where).parent.mkdir(parents=True, exist_ok=True)
                url = URL.create("sqlite", database=str(where))
            engine = create_engine(url, pool_size=20, max_overflow=40)
            _begin_as_told(engine)
            with engine.connect() as connection:
                _migrate(connection)
        except (ArgumentError, ModuleNotFoundError, DatabaseError, sqlite3.DatabaseError) as error:
            told = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise InputError(
                f"{_shown(where)}: cannot be opened as a label store ({told}); give the path of an SQLite file, or a "
                "PostgreSQL URL with the extra `postgres` installed"
            ) from None
        return cls(engine)

    @property
    def where(self) -> str:
        """What `--store` is told to open it; without its password."""
        url = self.engine.url
        return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """The only writer there is; committed at the end, and not at all if anything is raised."""
        engine = self.engine.execution_options(kleash_writes=True)
        with self._turn, Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    # --- tasks -------------------------------------------------------------------------------------------------------

    def add_tasks(
        self, groups: Iterable[Group], *, kind: str = "task", uncertainty: Sequence[float] | None = None
    ) -> int:
        """Add every pair of responses of each group; a pair that is there already is left as it is.

        Args:
            groups: of two responses or more.
            kind: `task`, or `practice`, whose preference becomes the answer.
            uncertainty: one number a group; where given, the greatest are asked first.

        Returns:
            How many are new.

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
                raise DataError(f"row {row + 1} has no preference; a practice row says which response is right")
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

    def find(self, groups: Sequence[Group]) -> list[tuple[int, bool] | None]:
        """Task of each group of two, and whether its responses stand the other way round there; None where none is."""
        found: list[tuple[int, bool] | None] = []
        with self.reading() as session:
            for group in groups:
                task = _task(group, 0, 1, "task")
                row = session.execute(select(Task.id, Task.first).where(Task.key == task.key)).one_or_none()
                found.append(None if row is None else (row.id, row.first != task.first))
        return found

    def record(self, groups: Sequence[Group], verdicts: Sequence[LabelResult], *, kind: str = "judge") -> int:
        """Keep what a labeller said of groups of two; tasks that are not there are added.

        The same verdict on the same pair, from the same labeller under the same principle, is kept once.

        Args:
            groups, verdicts: one of each, in order.
            kind: of the labeller: `judge`, `simulated` or `file`.

        Returns:
            How many are new.
        """
        added = 0
        with self.writing() as session:
            for group, verdict in zip(groups, verdicts, strict=True):
                task = _task(group, 0, 1, "task")
                _add_new(session, [task])
                found = session.execute(select(Task.id, Task.first).where(Task.key == task.key)).one()
                turned = found.first != task.first
                annotator = _annotator(session, verdict.labeller, kind)
                said = verdict.probability
                first = None if said is None else 1 - said if turned else said
                answer = {1.0: "first", 0.0: "second"}.get(-1.0 if first is None else first, "soft")
                key = _hash(["record", task.key, verdict.labeller, kind, verdict.principle, verdict.state, said])
                if session.scalar(select(VoteRow.id).where(VoteRow.key == key)) is not None:
                    continue
                session.add(
                    VoteRow(
                        key=key,
                        task=found.id,
                        annotator=annotator,
                        verdict=answer if verdict.state == "verdict" else verdict.state,
                        probability=first,
                        reason=(verdict.reason or "").replace("\0", ""),
                        principle=verdict.principle,
                        order_effect=verdict.order_effect,
                    )
                )
                added += 1
        return added

    # --- people ------------------------------------------------------------------------------------------------------

    def invite(self, name: str = "", role: str = "annotator") -> Invitation:
        """A new annotator; the token goes into their link and is kept nowhere."""
        if role not in ROLES:
            raise InputError(f"'{role}' is no role; give one of: {', '.join(ROLES)}")
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
        """Whose token this is; None for one that is unknown or revoked."""
        with self.reading() as session:
            row = session.scalar(select(AnnotatorRow).where(AnnotatorRow.token == _sha256(token)))
            return None if row is None or row.revoked is not None else _person(row)

    def annotator(self, identity: int) -> Annotator | None:
        """An annotator by id, revoked or not."""
        with self.reading() as session:
            row = session.get(AnnotatorRow, identity)
            return None if row is None else _person(row)

    def annotators(self) -> list[Annotator]:
        """Everyone, in order of arrival."""
        with self.reading() as session:
            return [_person(row) for row in session.scalars(select(AnnotatorRow).order_by(AnnotatorRow.id))]

    def revoke(self, annotator: int) -> None:
        """Make a link void; the votes stay."""
        with self.writing() as session:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                raise InputError(f"there is no annotator {annotator}; see the list of annotators")
            row.revoked = row.revoked or time.time()

    def set_settings(self, annotator: int, settings: dict[str, Any]) -> None:
        """Keys, theme and goal of an annotator."""
        with self.writing() as session:
            row = session.get(AnnotatorRow, annotator)
            if row is None:
                raise InputError(f"there is no annotator {annotator}; see the list of annotators")
            row.settings = dict(settings)

    def guidelines(self) -> Guidelines | None:
        """What annotators are told today; None where nothing is."""
        with self.reading() as session:
            row = session.scalar(select(Guideline).order_by(Guideline.id.desc()).limit(1))
            return None if row is None else Guidelines(row.id, row.text)

    def set_guidelines(self, text: str) -> Guidelines:
        """A new version, unless the text is today's."""
        with self.writing() as session:
            row = session.scalar(select(Guideline).order_by(Guideline.id.desc()).limit(1))
            if row is None or row.text != text:
                row = Guideline(text=text)
                session.add(row)
                session.flush()
            return Guidelines(row.id, row.text)

    # --- votes, calls, revisions -------------------------------------------------------------------------------------

    def votes(self, *, until: int | None = None) -> list[Vote]:
        """All that was said, oldest first, each with whether it counts.

        Args:
            until: the last vote's id to look at: the store as it was then.
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
        last = {_place_of(row[0]): row[0].id for row in rows}
        return [
            Vote(
                id=vote.id, key=vote.key, task=vote.task, annotator=vote.annotator, alias=alias, kind=kind,
                assignment=vote.assignment, verdict=vote.verdict, probability=vote.probability,
                strength=vote.strength, reason=vote.reason, tags=list(vote.tags), principle=vote.principle,
                order_effect=vote.order_effect, seconds=vote.seconds, guideline=vote.guideline, swapped=swapped,
                repeat=bool(repeat), adjudicated=vote.adjudicated, created=vote.created,
                counts=last[_place_of(vote)] == vote.id and vote.verdict not in ("undo", "skip", "report"),
            )
            for vote, alias, kind, swapped, repeat in rows
        ]  # fmt: skip

    def last_vote(self) -> int:
        """Id of the newest vote, 0 where there is none."""
        with self.reading() as session:
            return session.scalar(select(func.max(VoteRow.id))) or 0

    def call(self, key: str) -> Call | None:
        """What a model answered to this question before."""
        with self.reading() as session:
            row = session.get(CallRow, key)
            if row is None:
                return None
            return Call(**{name: getattr(row, name) for name in Call.__dataclass_fields__})

    def keep_call(self, call: Call) -> None:
        """Keep a question and its answer; an answer to the same question replaces one that failed."""
        with self.writing() as session:
            session.merge(CallRow(**asdict(call)))

    def spent(self) -> float:
        """Cost of all calls so far."""
        with self.reading() as session:
            return float(session.scalar(select(func.sum(CallRow.cost))) or 0.0)

    def keep_revision(self, revision: Revision) -> None:
        """Keep a revision."""
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
    """Text or turns as JSON has them."""
    return value if isinstance(value, str) else [dict(turn) for turn in value]


def content(value: Any) -> Content:
    """Text or turns out of JSON."""
    return value if isinstance(value, str) else tuple(value)


def _task(group: Group, i: int, j: int, kind: str) -> Task:
    prompt = plain(group.prompt)
    first, second = ({"content": _said(group.responses[k]), "finished": group.responses[k].finished} for k in (i, j))
    # which of the two stands first is nothing that a task should be told apart by
    key = _hash([kind, prompt, sorted([json.dumps(first, sort_keys=True), json.dumps(second, sort_keys=True)])])
    label = group.label
    return Task(
        key=key,
        kind=kind,
        prompt_key=_hash(prompt),
        prompt=prompt,
        first=first,
        second=second,
        columns=dict(group.columns),
        answer=label.probability if kind == "practice" and isinstance(label, Preference) else None,
        place=int(key[:12], 16) / 16**12,
    )


def _said(response: Response) -> Any:
    return plain(response.text if response.content is None else response.content)


def _response(value: dict[str, Any]) -> Response:
    return Response(content(value["content"]), finished=value["finished"])


def _add_new(session: Session, tasks: Sequence[Task]) -> int:
    """Add those that are not there already, each once; many at a time, since people wait for the first of them."""
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
    found = session.scalar(select(AnnotatorRow.id).where(AnnotatorRow.alias == name))
    if found is None:
        row = AnnotatorRow(alias=name, name=name, kind=kind, settings={})
        session.add(row)
        session.flush()
        found = row.id
    return found


def _person(row: AnnotatorRow) -> Annotator:
    return Annotator(
        row.id, row.alias, row.name, row.kind, row.role, row.revoked is not None, dict(row.settings)
    )  # fmt: skip


def _place_of(vote: VoteRow) -> tuple[Any, ...]:
    """What a later vote replaces: the same assignment's; a judge's under the same principle; an adjudication's."""
    if vote.assignment is not None:
        return ("assignment", vote.assignment)
    return (
        ("task", vote.task, "adjudicated") if vote.adjudicated else ("task", vote.task, vote.annotator, vote.principle)
    )


def _hash(value: Any) -> str:
    return _sha256(json.dumps(value, sort_keys=True, ensure_ascii=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(where: str | Path) -> str:
    text = str(where)
    return make_url(text).render_as_string(hide_password=True) if "://" in text else text


def _begin_as_told(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves
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
