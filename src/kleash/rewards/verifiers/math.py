"""A response is right if its final expression equals the answer, as `math-verify` parses and compares them.

Two known false positives of `math-verify` are avoided: texts that it could not parse are not compared as texts, and
numbers that are equal after rounding to six places are also compared relatively. Its own time-outs work by a signal
handler, which Python runs in the main thread only and never inside a long step of C, so the check runs in the sandbox.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from kleash.rewards.non_answers import MANY_GUESSES, count_guesses
from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "math"
COLUMN = "answer"
GUARDED = True
IMPORTS = ("math_verify",)

TOLERANCE = 1e-5
"""Largest relative difference of two equal numbers. Rounding, which `math-verify` compares by, is to
six places after the point, where 2^-99 and 2^-98 are both 0."""

_FUNCTIONS = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi)(?![A-Za-z])")


def check(text: str, answer: str) -> Outcome:
    """Compare the final expression of a response with the answer.

    Raises:
        BadRowError: the answer cannot be parsed.
    """
    from math_verify import verify

    expected = _parse_answer(answer)
    if count_guesses(text) >= max(MANY_GUESSES, answer.count(",") + 2):
        return "unparsable"
    expressions = _parse(text)
    if not expressions:
        return "unparsable"
    equal = verify(expected, expressions, timeout_seconds=None, raise_on_error=True)
    return "right" if equal and _within_tolerance(expected[0], expressions[0]) else "wrong"


@lru_cache(maxsize=1024)
def _parse_answer(answer: str) -> list[Any]:
    """An answer's expression; bare LaTeX is read as if it stood between dollars."""
    delimited = answer if "$" in answer or "\\boxed" in answer else f"${answer}$"
    expressions = _parse(delimited) or _parse(answer)
    if not expressions:
        raise BadRowError(
            f"the answer {answer[:60]!r} cannot be parsed as mathematics; correct it, or use another verifier"
        )
    return expressions


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # The last resort of `parse` is to give the text itself, and two texts that it could not read are then compared as
    # texts. In LaTeX, sin without its backslash is s·i·n.
    text = _FUNCTIONS.sub(r"\\\1", text)
    return list(parse(text, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True))


def _within_tolerance(a: Any, b: Any) -> bool:
    """Whether two expressions that `verify` calls equal are equal as numbers; True where they are not numbers."""
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)):
        return True
    try:
        x, y = complex(a.evalf(30)), complex(b.evalf(30))
    except (TypeError, ValueError, OverflowError):
        return True  # an interval, or something huge: as `verify` says
    # 9 and 9% are called equal by `verify`, as either is written for the other.
    return any(abs(x - y * factor) <= TOLERANCE * max(abs(x), abs(y * factor)) for factor in (1, 100, 0.01))
