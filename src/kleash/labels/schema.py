"""The tables of the label store. `migrations/` creates them; a test compares the two.

Votes are appended and never changed: a correction is a new row, and so is taking a vote back. The last row of an
assignment counts. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]
"""A JSON object."""


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {Json: JSON, list[str]: JSON}


class Task(Base):
    """Two responses to compare."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    """Hash of the prompt, both responses and the kind: the same pair is one task."""
    kind: Mapped[str] = mapped_column(String(16))
    """`task`, or `practice`, which has an answer and does not count."""
    prompt_key: Mapped[str] = mapped_column(String(64), index=True)
    """Hash of the prompt."""
    prompt: Mapped[Any] = mapped_column(JSON)
    first: Mapped[Json]
    """Response 0: `content` and `finished`."""
    second: Mapped[Json]
    columns: Mapped[Json]
    """The other columns of the row; never shown to an annotator."""
    answer: Mapped[float | None]
    """P(first ≻ second) of a practice task."""
    uncertainty: Mapped[float | None]
    """How uncertain a reward is about this pair; the most uncertain are served first."""
    place: Mapped[float] = mapped_column(Float, index=True)
    """In [0, 1), by hash: the random order."""
    created: Mapped[float] = mapped_column(default=time.time)


class Guideline(Base):
    """Guidelines for annotators; each change is a version."""

    __tablename__ = "guidelines"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(default=time.time)


class AnnotatorRow(Base):
    """A labeller: a person, a judge, a simulated labeller, a file."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(Text, unique=True)
    """The name in exports; anonymous for people."""
    name: Mapped[str] = mapped_column(Text, default="")
    """The name that the admin gave."""
    kind: Mapped[str] = mapped_column(String(16))
    role: Mapped[str] = mapped_column(String(16), default="annotator")
    token: Mapped[str | None] = mapped_column(String(64), unique=True)
    """SHA-256 of the invitation's token; the token itself is not stored."""
    revoked: Mapped[float | None]
    settings: Mapped[Json] = mapped_column(default=dict)
    created: Mapped[float] = mapped_column(default=time.time)


class AssignmentRow(Base):
    """A task assigned to a person, with the side on which they see each response."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task", "annotator", "round"),
        Index("assignments_of_annotator", "annotator", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    annotator: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    round: Mapped[int] = mapped_column(default=0)
    """1 for a hidden repeat with the sides swapped."""
    swapped: Mapped[bool]
    """Whether response 1 is on the left."""
    state: Mapped[str] = mapped_column(String(16), default="open")
    """`open`, `voted`, `skipped` or `reported`."""
    expires: Mapped[float]
    """Until when an open assignment keeps the pair from others."""
    reopened: Mapped[float | None]
    """When its vote was last taken back; such an assignment is served first."""
    created: Mapped[float] = mapped_column(default=time.time)


class VoteRow(Base):
    """One vote on a task; appended, never changed."""

    __tablename__ = "votes"
    __table_args__ = (Index("votes_of_task", "task", "annotator"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(80), unique=True)
    """Chosen by the voter, so that a vote sent twice is counted once."""
    task: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    assignment: Mapped[int | None] = mapped_column(ForeignKey("assignments.id"), index=True)
    """None for judges, files and adjudications, which have no assignment."""
    choice: Mapped[str] = mapped_column("verdict", String(16))
    """`first`, `second`, `tie`, `both_bad`, `cannot`; `soft` for a label between these (see `probability`); `skip`,
    `report`, `undo`; a judge's `unparsable` and `error`."""
    probability: Mapped[float | None]
    """P(first ≻ second), where the choice has one."""
    strength: Mapped[int | None]
    """1 slightly, 2 clearly, 3 by far."""
    reason: Mapped[str] = mapped_column(Text, default="")
    tags: Mapped[list[str]] = mapped_column(default=list)
    principle: Mapped[str | None] = mapped_column(Text)
    order_effect: Mapped[float | None]
    """Of a judge; see `LabelResult`."""
    seconds: Mapped[float | None]
    """Seconds from the pair on screen to the vote."""
    guideline: Mapped[int | None] = mapped_column(ForeignKey("guidelines.id"))
    adjudicated: Mapped[bool] = mapped_column(default=False)
    """Whether it is an admin's decision, which replaces the votes on its task."""
    created: Mapped[float] = mapped_column(default=time.time)


class CallRow(Base):
    """One request to a model and its reply, by the hash of the request: sent once, paid once."""

    __tablename__ = "calls"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    request: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16))
    response: Mapped[Any] = mapped_column(JSON)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    cost: Mapped[float] = mapped_column(default=0.0)
    """In the currency of the configured prices."""
    seconds: Mapped[float] = mapped_column(default=0.0)
    created: Mapped[float] = mapped_column(default=time.time)


class RevisionRow(Base):
    """A response, its critique, and its revision."""

    __tablename__ = "revisions"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[Any] = mapped_column(JSON)
    original: Mapped[str] = mapped_column(Text)
    critique: Mapped[str] = mapped_column(Text)
    revised: Mapped[str] = mapped_column(Text)
    principle: Mapped[str] = mapped_column(Text)
    round: Mapped[int]
    model: Mapped[str] = mapped_column(Text)
    unchanged: Mapped[bool]
    created: Mapped[float] = mapped_column(default=time.time)
