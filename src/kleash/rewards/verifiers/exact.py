"""A response is right if it is the answer, except for white space around it, and for reasoning before it."""

from __future__ import annotations

from kleash.rewards.final_answer import answer_part
from kleash.rewards.verifiers import ANSWER_COLUMNS, Outcome

NAME = "exact"
COLUMN = "answer"
OTHER_COLUMNS = ANSWER_COLUMNS
GUARDED = False
LOOPS_COUNT = True


def check(text: str, answer: str) -> Outcome:
    """Compare a response, or what remains of it without reasoning, with the answer; white space around them is free."""
    return "right" if answer.strip() in (text.strip(), answer_part(text)) else "wrong"
