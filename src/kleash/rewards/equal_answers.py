"""Whether two values of answers are equal.

`math-verify` compares expressions with letters. Numbers are compared exactly, or to twelve digits; a decimal number
and one that is not (1/3, π) to six places, as `math-verify` has it, and to five digits, so that 2^-99 is not 2^-98.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from math import isfinite
from typing import Any

from kleash.rewards.answer_value import (
    Interval,
    Matrix,
    Moment,
    Number,
    Relation,
    Several,
    Union,
    Value,
    Words,
    is_name,
    magnitude,
)
from kleash.rewards.units import POUND, STERLING, comparable

PLACES = 6
"""Places after the point to which a decimal number must agree with one that is not."""
DIGITS = 5
"""Significant digits that must agree besides."""
EXACT = 12
"""Digits to which two constants must agree that are not decimal numbers."""


def equal(expected: Value, other: Value) -> bool:
    """Whether another value is the expected one. Not symmetric: a part that the answer leaves out may be there."""
    match expected, other:
        case _, Several(items=items, kind="either") if not _is_plural(expected):
            return all(equal(expected, item) for item in items)  # `1/2 or 0.5`
        case Words(), Number():
            return len(expected.text.strip("()")) == 1 and str(other.value).lower() == expected.text.strip("()")
        case Words(), Words():
            return _same_words(expected.text, other.text)
        case Moment(), Moment():
            return _same_moment(expected, other)
        case Relation(), Relation():
            return _same_relation(expected, other)
        case Relation(), _:
            return expected.signs == ("=",) and is_name(expected.names[0]) and equal(expected.sides[1], other)
        case _, Relation():
            return other.signs == ("=",) and not isinstance(expected, Words) and equal(expected, other.sides[1])
        case Interval(), Interval():
            same_variable = not expected.variable or not other.variable or expected.variable == other.variable
            ends = equal(expected.low, other.low) and equal(expected.high, other.high)
            return same_variable and expected.brackets == other.brackets and ends
        case Interval(brackets="()"), Several(kind="tuple", items=(low, high)):
            return equal(expected.low, low) and equal(expected.high, high)
        case Several(kind="tuple", items=(low, high)), Interval(brackets="()"):
            return equal(low, other.low) and equal(high, other.high)
        case Interval(brackets="[]"), Several(kind="list"):
            return False
        case Union(), Union():
            return _same_set(expected.parts, other.parts)
        case Matrix(), Matrix():
            shape = [len(row) for row in expected.rows] == [len(row) for row in other.rows]
            cells = zip(sum(expected.rows, ()), sum(other.rows, ()), strict=False)
            return shape and all(equal(a, b) for a, b in cells)
        case Several(), Several():
            return _same_several(expected, other)
        case Several(kind="set" | "list", items=(only,)), _:
            return equal(only, other)
        case _, Several(kind="set" | "list", items=(only,)):
            return equal(expected, only)
        case Number(), Number():
            return _same_number(expected, other)
        case _:
            return False


def _is_plural(value: Value) -> bool:
    return isinstance(value, (Several, Union)) or (
        isinstance(value, Relation) and any(isinstance(side, Several) for side in value.sides)
    )


def _same_words(expected: str, other: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"\bsolutions\b", "solution", re.sub(r"[^\w\s+/-]", "", text)).strip()

    return bare(expected) == bare(other) and bool(bare(expected))


def _same_moment(expected: Moment, other: Moment) -> bool:
    if expected.kind != other.kind:
        return False
    if expected.kind == "clock":
        a, b = expected.fields, other.fields
        if a[3] == b[3]:
            return a[:3] == b[:3]
        if a[3] is None:  # 7:30, answered with 7:30 p.m.
            return isinstance(b[0], int) and isinstance(a[0], int) and a[0] % 12 == b[0] % 12 and a[1:3] == b[1:3]
        return False
    if expected.kind == "date" and expected.fields[2] is None:
        return expected.fields[:2] == other.fields[:2]
    return expected.fields == other.fields


def _same_several(expected: Several, other: Several) -> bool:
    a, b = expected.items, other.items
    if expected.kind == "tuple":
        return other.kind in ("tuple", "list") and len(a) == len(b) and all(map(equal, a, b))
    if other.kind == "tuple":
        return expected.kind == "list" and len(a) == len(b) and all(map(equal, a, b))
    return _same_set(a, b)


def _same_set(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    if len(a) > 50 or len(b) > 50:
        return False
    return all(any(equal(x, y) for y in b) for x in a) and all(any(equal(x, y) for x in a) for y in b)


def _same_relation(expected: Relation, other: Relation) -> bool:
    if expected.signs == other.signs == ("=",):
        if is_name(expected.names[0]) and is_name(other.names[0]):
            names = [name.replace(" ", "").lstrip("\\") for name in (expected.names[0], other.names[0])]
            same_name = names[0] == names[1] or any(
                re.fullmatch(r"[a-zA-Z]\(.*\)|[A-Za-z ]{4,}", name) for name in names
            )
            if same_name and equal(expected.sides[1], other.sides[1]):
                return True
            if same_name and len(names[0]) == 1 and not _symbols(expected.sides[1]) | _symbols(other.sides[1]):
                return False
        return _proportional(expected, other)
    if len(expected.sides) == len(other.sides):
        if expected.signs == other.signs and all(map(equal, expected.sides, other.sides)):
            return True
        flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
        turned = tuple(flipped.get(sign, sign) for sign in reversed(other.signs))
        if turned == expected.signs and all(map(equal, expected.sides, reversed(other.sides))):
            return True
        return len(expected.signs) == 1 and _same_inequality(expected, other)
    return False


def _symbols(value: Value) -> frozenset[Any]:
    symbols = getattr(value.value, "free_symbols", ()) if isinstance(value, Number) else ()
    return frozenset(map(str, symbols))


def _difference(relation: Relation) -> Any:
    """Left side minus right side, as an expression; None where a side is not one."""
    first, second = relation.sides
    if not isinstance(first, Number) or not isinstance(second, Number):
        return None
    try:
        return _sympy(first) - _sympy(second)
    except TypeError:
        return None


def _proportional(expected: Relation, other: Relation) -> bool:
    """Whether one equation is the other times a number: 2x + 4y = 6 and x = 3 - 2y."""
    import sympy

    a, b = _difference(expected), _difference(other)
    if a is None or b is None or not a.free_symbols or a.free_symbols != b.free_symbols:
        return False
    ratio = sympy.simplify(a / b)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)


def _same_inequality(expected: Relation, other: Relation) -> bool:
    """Whether one inequality is the other times a number; a negative one turns its sign."""
    import sympy

    a, b = _difference(expected), _difference(other)
    if a is None or b is None or not a.free_symbols or a.free_symbols != b.free_symbols:
        return False
    ratio = sympy.simplify(a / b)
    if not (ratio.is_number and ratio.is_finite and not ratio.is_zero and ratio.is_real):
        return False
    turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    sign = other.signs[0] if ratio > 0 else turned.get(other.signs[0], other.signs[0])
    return bool(sign == expected.signs[0])


# --- numbers ---------------------------------------------------------------------------------------------------------


def _same_number(expected: Number, other: Number) -> bool:
    if {expected.unit, other.unit} == {POUND, STERLING}:
        return _same_value(expected, other)
    if not comparable(expected.unit, other.unit):
        return _same_angle(expected, other)
    if expected.unit is not None and other.unit is not None and expected.unit.dimensions:
        ratio = other.unit.size / expected.unit.size
        other = replace(other, value=_times(other.value, ratio))
    if expected.percent != other.percent and expected.unit is None and other.unit is None:
        share = Fraction(1, 100)
        by_value = [
            replace(number, value=_times(number.value, share)) if number.percent else number
            for number in (expected, other)
        ]
        if _same_value(by_value[0], by_value[1]):
            return True
        # `9` for 9 %: the sign is left out, as a unit is; not below 1, where it is more likely a share
        size = magnitude(expected)
        return size is not None and size >= 1 and _same_value(expected, other)
    return _same_value(expected, other)


def _same_angle(expected: Number, other: Number) -> bool:
    r"""45° and \frac{\pi}{4} rad."""
    import sympy

    if expected.unit is None or other.unit is None or not (expected.unit.is_angle and other.unit.is_angle):
        return False
    values = []
    for number in (expected, other):
        degrees = number.unit is not None and number.unit.dimensions == (("angle", 1),)
        values.append(Number(_sympy(number) * sympy.pi / 180 if degrees else _sympy(number)))
    return _same_value(*values)


def _times(value: Any, factor: Fraction) -> Any:
    if isinstance(value, Fraction):
        return value * factor
    import sympy

    return value * sympy.Rational(factor.numerator, factor.denominator)


def _same_value(a: Number, b: Number) -> bool:
    x, y = a.value, b.value
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        if x == y:
            return True
        rounded = (a.decimal and not _terminates(y)) or (b.decimal and not _terminates(x))
        return rounded and _agree(x, y)
    from math_verify import verify

    p, q = _sympy(a), _sympy(b)
    if getattr(p, "is_number", False) and getattr(q, "is_number", False):
        return _agree_as_numbers(p, q, rounded=a.decimal or b.decimal)
    return bool(verify([p], [q], timeout_seconds=None, raise_on_error=True))


def _sympy(number: Number) -> Any:
    import sympy

    value = number.value
    return sympy.Rational(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def _terminates(value: Fraction) -> bool:
    """Whether a fraction has a last decimal."""
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def _agree(x: Fraction, y: Fraction) -> bool:
    difference = abs(x - y)
    return difference <= Fraction(1, 2 * 10**PLACES) and difference <= max(abs(x), abs(y)) / 10**DIGITS


def _agree_as_numbers(a: Any, b: Any, *, rounded: bool) -> bool:
    """Whether two constants agree: to twelve digits, or as a rounded number and an exact one do."""
    if a == b:
        return True
    try:
        x, y = complex(a.evalf(30)), complex(b.evalf(30))
    except (TypeError, ValueError, OverflowError):
        return False
    if not (isfinite(x.real) and isfinite(x.imag) and isfinite(y.real) and isfinite(y.imag)):
        return bool(a.doit() == b.doit())  # infinity
    difference, largest = abs(x - y), max(abs(x), abs(y))
    if rounded:
        return difference <= 0.5 * 10**-PLACES * max(1.0, largest / 10**3) and difference <= largest / 10**DIGITS
    return difference <= largest / 10**EXACT
