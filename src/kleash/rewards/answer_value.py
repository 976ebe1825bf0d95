r"""The values that answers have: what `read_answer` reads and `equal_answers` compares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kleash.rewards.units import Unit


@dataclass(frozen=True)
class Number:
    """A number or an expression, with what stands at it."""

    value: Any
    """A Fraction where it is rational and has been read here; otherwise an expression of `sympy`."""
    decimal: bool = False
    """Whether it is written with a point, so that it may be a rounded value."""
    percent: bool = False
    unit: Unit | None = None
    base: int = 10


@dataclass(frozen=True)
class Several:
    """Several values: a list, a set or a tuple."""

    items: tuple[Value, ...]
    kind: str
    """`list` (3 and 5), `set` ({3, 5}), `tuple` ((3, 5)) or `either` (3 or 5)."""


@dataclass(frozen=True)
class Interval:
    """An interval; (a, b) is a tuple as long as nothing else shows that it is one."""

    low: Value
    high: Value
    brackets: str
    """`[]`, `[)` or `(]`; `()` from an inequality."""
    variable: str = ""
    """Of an inequality."""


@dataclass(frozen=True)
class Union:
    """A union of intervals and sets."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Matrix:
    """A matrix."""

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation or an inequality that is not an interval: its sides and the signs between them."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]
    names: tuple[str, ...]
    """The sides as they are written."""


@dataclass(frozen=True)
class Moment:
    """A clock time or a date."""

    kind: str
    fields: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Words:
    """An answer in words."""

    text: str


Value = Number | Several | Interval | Union | Matrix | Relation | Moment | Words


def is_name(text: str) -> bool:
    r"""Whether a side of an equation names the value: x, f(x), \theta, AB, the area."""
    text = text.strip()
    return (
        re.fullmatch(
            r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?|[A-Za-z]'*\([A-Za-z0-9, ]{1,10}\)|\\angle\s?\w+|[A-Za-z][A-Za-z ]+", text
        )
        is not None
    )


def magnitude(number: Number) -> float | None:
    """Its absolute value; None where it has letters or is too large."""
    try:
        return abs(float(number.value)) if isinstance(number.value, Fraction) else abs(complex(number.value.evalf(15)))
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
