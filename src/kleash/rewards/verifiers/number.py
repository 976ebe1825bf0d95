"""A response is right if its last number is the answer's last number, compared exactly as fractions."""

from __future__ import annotations

import re
from fractions import Fraction

from kleash.rewards.non_answers import MANY_GUESSES, count_guesses
from kleash.rewards.verifiers import BadRowError, Outcome

NAME = "number"
COLUMN = "answer"
GUARDED = False

_TOKEN = re.compile(
    r"(?<![A-Za-z_0-9.,])(?P<sign>[-+−]?)[$€£]?(?P<inner>[-−]?)"
    r"(?P<digits>\.?[0-9][0-9.,]*)(?P<power>[eE][-+]?[0-9]+)?"
    r"(?:/(?P<below>[0-9]{1,50})(?![0-9]))?"
)


def check(text: str, answer: str) -> Outcome:
    """Compare the last number of a response with the last number of the answer.

    Raises:
        BadRowError: the answer does not end in a number.
    """
    expected = last_number(answer)
    if expected is None:
        raise BadRowError(f"the answer {answer[:60]!r} does not end in a number; give one, or use another verifier")
    if count_guesses(text) >= MANY_GUESSES:
        return "unparsable"
    value = last_number(text)
    if value is None:
        return "unparsable"
    return "right" if value == expected else "wrong"


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None where there is none, or the last one cannot be read.

    Commas between thousands, a sign, a currency, a percent sign (72% is 72) and the dot that ends a sentence are
    ignored; a/b is a fraction. A minus after a number or a bracket is a subtraction and one within a word a hyphen, not
    a sign.
    """
    last = None
    for last in _TOKEN.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    value = _decimal(last["digits"], last["power"] or "")
    if value is None:
        return None
    if last["below"]:
        if int(last["below"]) == 0:
            return None
        value /= int(last["below"])
    before = text[: last.start()].rstrip(" ")[-1:]
    negative = last["inner"] or (last["sign"] in ("-", "−") and not re.match(r"[0-9)\]}%]", before))
    return -value if negative else value


def _decimal(digits: str, power: str) -> Fraction | None:
    """A number without sign, as people write it; None where it is not one or is too long to be one."""
    digits = digits.rstrip(".,")
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", digits):
        digits = digits.rpartition(",")[2]  # 70,71,72: a list
    digits = digits.replace(",", "")
    if len(digits) > 100 or len(power) > 4 or not re.fullmatch(r"[0-9]+(\.[0-9]+)?|\.[0-9]+", digits):
        return None
    return Fraction("0" * digits.startswith(".") + digits + power)
