"""A response is right if the pattern matches all of it, except for white space around it."""

from __future__ import annotations

import re

from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "regex"
COLUMN = "pattern"
GUARDED = True


def check(text: str, pattern: str) -> Outcome:
    """Match a response, without white space around it, with a pattern of Python's `re`.

    Raises:
        BadRowError: the pattern is not a regular expression.
    """
    try:
        return "right" if re.fullmatch(pattern, text.strip()) else "wrong"
    except re.error as error:
        raise BadRowError(f"invalid regular expression: {pattern[:60]!r} ({error}); correct the pattern") from None
