"""A response is right if the pattern matches all of it, except for white space around it; the dot matches all signs."""

from __future__ import annotations

import re

from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "regex"
COLUMN = "pattern"
GUARDED = True
ACCEPTS = (str, int, float)


def check(text: str, pattern: str) -> Outcome:
    """Match a response, without white space around it, with a pattern of Python's `re`.

    Raises:
        BadRowError: the pattern is not a regular expression.
    """
    try:
        return "right" if re.fullmatch(pattern, text.strip(), re.DOTALL) else "wrong"
    except (re.error, OverflowError, RecursionError) as error:
        raise BadRowError(f"invalid regular expression: {pattern[:60]!r} ({error}); correct the pattern") from None
