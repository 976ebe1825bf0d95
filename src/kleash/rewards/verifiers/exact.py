"""A response is right if it is the answer, except for white space around it."""

from __future__ import annotations

from kleash.rewards.verifiers import Outcome

NAME = "exact"
COLUMN = "answer"
GUARDED = False
LOOPS_COUNT = True


def check(text: str, answer: str) -> Outcome:
    """Compare a response with the answer, without white space around either."""
    return "right" if text.strip() == answer.strip() else "wrong"
