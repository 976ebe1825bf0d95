"""A response is right if its final answer equals the answer, as mathematics.

`math-verify` parses and compares expressions. Which expression is the response's answer is decided in `final_answer`,
and what stands around expressions (units, brackets, words) is read in `read_answer`: both are where `math-verify`
alone goes wrong. Its own time-outs work by a signal handler, which Python runs in the main thread only and never inside
a long step of C, so the check runs in the sandbox.
"""

from __future__ import annotations

import re
from functools import lru_cache

from kleash.rewards.answer_value import Number, Several, Value, Words
from kleash.rewards.equal_answers import equal
from kleash.rewards.final_answer import (
    FinalAnswer,
    answer_part,
    boxed,
    final_answer,
    without_corrected,
    words_at_answer,
)
from kleash.rewards.non_answers import MANY_GUESSES, count_guesses
from kleash.rewards.notation import latex, ungrouped
from kleash.rewards.read_answer import read_plain_number, read_value
from kleash.rewards.verifiers import ANSWER_COLUMNS, BadRowError, Outcome

NAME = "math"
COLUMN = "answer"
OTHER_COLUMNS = ANSWER_COLUMNS
GUARDED = True
READS_ANSWER = True
IMPORTS = ("math_verify",)


def check(text: str, answer: str) -> Outcome:
    """Compare the final answer of a response with the answer.

    Raises:
        BadRowError: the answer cannot be read.
    """
    expected = _read_answer(answer)
    part = answer_part(text)
    final = _words_answer(part, expected) if isinstance(expected, Words) else final_answer(part, _read_response)
    if final is None:
        return "unparsable"
    items = len(expected.items) if isinstance(expected, Several) else 1
    if count_guesses(ungrouped(without_corrected(part))) >= max(MANY_GUESSES, items + 1):
        return "unparsable"
    if items > 1 and len(final.boxes) == items and _is_right(expected, ", ".join(final.boxes), answer):
        return "right"
    outcomes = [_is_right(expected, candidate, answer) for candidate in (final.text, *final.alternatives)]
    if all(outcome is True for outcome in outcomes):
        return "right"
    return "unparsable" if outcomes[0] is None else "wrong"


_NO_ANSWERS = re.compile(
    r"(?:there (?:is|are) )?(?:no (?:real |integer |such )?(?:solutions?|answers?|values?|roots?)(?: exists?)?|none"
    r"|undefined|does not exist|dne|unknown|unclear|infinitely many(?: solutions)?"
    r"|(?:it )?(?:cannot|can't) be (?:determined|found)|not enough information|impossible"
    r"|i (?:do not|don't) know|not sure)"
)
"""Answers in words that are answers where the right one is a number."""


@lru_cache(maxsize=1024)
def _read_answer(answer: str) -> Value:
    """The value of a row's answer: by itself, after GSM8K's `####`, or in the last box of a worked solution."""
    text = answer_text(answer)
    value = read_value(text)
    if value is None or (isinstance(value, Words) and not re.search(r"[^\W\d_]", value.text)):
        raise BadRowError(
            f"the answer {answer[:60]!r} cannot be parsed as mathematics; correct it, or use another verifier"
        )
    return value


def answer_text(answer: str) -> str:
    """The answer in a row's column: what follows the last `####` or stands in the last box; else all of it."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    boxes = boxed(answer)
    return boxes[-1].text if boxes else answer


def _read_response(text: str) -> Value | None:
    """What may be the answer of a response where the right one is not in words."""
    value = read_value(text)
    if isinstance(value, Words):
        return value if _NO_ANSWERS.fullmatch(value.text) else None
    return value


def _is_right(expected: Value, text: str, answer: str) -> bool | None:
    """Whether a text is the answer; None where it cannot be read."""
    value = read_value(text)
    if value is None:
        return None
    if _is_calculation(text) and isinstance(expected, Number) and not _is_calculation(answer_text(answer)):
        return False
    if equal(expected, value) or _bare(text) == _bare(answer_text(answer)):
        return True
    has_unit, other = isinstance(expected, Number) and expected.unit, isinstance(value, Number) and value.unit
    if has_unit and not other:  # 5m is 500 cm, where the answer shows that metres are meant
        again = read_value(text, attached=True)
        return again is not None and equal(expected, again)
    if other and not has_unit and (again := read_value(answer_text(answer), attached=True)) is not None:
        return isinstance(again, Number) and again.unit is not None and equal(again, value)
    if isinstance(expected, Number) and re.fullmatch(
        r"[\s$\\{}a-z]*-?\d+,\d+[\s$}]*", text
    ):  # 1,5 is 1.5 beside a number
        decimal = read_value(text.replace(",", "."))
        grouped = re.search(r"\d,\d{3}(?!\d)", text) is not None
        return not grouped and decimal is not None and equal(expected, decimal)
    return False


def _is_calculation(text: str) -> bool:
    """Whether a text is a sum or a product of numbers without its value: `2+3`, which may be copied from the prompt."""
    text = latex(text)
    if read_plain_number(text) is not None or not re.fullmatch(r"(?:[\d.,\s()+*/-]|\\times|\\cdot)+", text):
        return False
    return re.search(r"\d\s*\)?\s*(?:[-+*]|\\times|\\cdot)\s*\(?\s*-?\d", text) is not None


def _bare(text: str) -> str:
    return re.sub(r"[\s$]|\\[,;:! ]|\\left|\\right|\.$", "", text)


def _words_answer(part: str, expected: Words) -> FinalAnswer | None:
    """The final answer where the right one is in words: the words at the place of the answer, if they are the words."""
    candidates = list(words_at_answer(part))
    for text in candidates:
        value = read_value(text)
        if value is not None and equal(expected, value):
            return FinalAnswer(text)
    return FinalAnswer(candidates[0]) if candidates else None
