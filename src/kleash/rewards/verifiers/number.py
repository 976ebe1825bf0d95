"""A response is right if its final number is the answer's final number, compared exactly as fractions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from kleash.rewards.final_answer import LONGEST, answer_part, boxed, final_answer, without_corrected
from kleash.rewards.non_answers import MANY_GUESSES, count_guesses, final_list
from kleash.rewards.notation import plain, ungrouped
from kleash.rewards.units import Unit, comparable, read_unit
from kleash.rewards.verifiers import ANSWER_COLUMNS, BadRowError, Outcome

NAME = "number"
COLUMN = "answer"
OTHER_COLUMNS = ANSWER_COLUMNS
GUARDED = False
READS_ANSWER = True

UNREADABLE = " 1e9999 "
"""What a number becomes that is not one by itself: √2, 2π, 3i, 7:30."""

_TOKEN = re.compile(
    r"(?<![A-Za-z_0-9.,])(?P<sign>[-+−]?)\s?(?P<currency>[$€£]?)(?P<inner>[-−]?)"
    r"(?P<digits>\.?[0-9][0-9.,]*)(?P<power>[eE][-+]?[0-9]+)?"
    r"(?:/(?P<below>[0-9]{1,50})(?![0-9]))?(?P<percent>\s?\\?%)?"
)
_UNIT = re.compile(
    r"(?:\s|\\[,;: ]|~)?(?:\\(?:text|mathrm)\s*\{)?\s*"
    r"((?!in\s)(?:square |cubic )?(?:[A-Za-zμΩ]{1,12}|°[CF]?|[€£¥])(?:/[a-z]{1,8})?(?:\^?[23])?)(?![A-Za-z])"
)


def check(text: str, answer: str) -> Outcome:
    """Compare the final number of a response with the final number of the answer.

    Raises:
        BadRowError: the answer does not end in a number.
    """
    given_answer = answer if "####" in answer or not (boxes := boxed(answer)) else boxes[-1].text
    expected = _last(given_answer)
    if expected is None:
        raise BadRowError(f"the answer {answer[:60]!r} does not end in a number; give one, or use another verifier")
    part = answer_part(text)
    if count_guesses(_legible(without_corrected(part))) >= MANY_GUESSES:
        return "unparsable"
    final = final_answer(part, _only_number, _ending)
    if final is None or (len(final_list(_legible(final.text))) > 1 and len(final_list(_legible(given_answer))) < 2):
        return "unparsable"
    values = [_last(text) for text in (final.text, *final.alternatives)]
    if any(value is None for value in values):
        return "unparsable"
    return "right" if all(value is not None and value.equals(expected) for value in values) else "wrong"


@dataclass(frozen=True)
class _Quantity:
    """A number with its percent sign and its unit."""

    value: Fraction
    percent: bool
    unit: Unit | None

    def equals(self, other: _Quantity) -> bool:
        """Whether it is another one; a unit or a percent sign may be left out, but for a share (0.5 is not 0.5 %)."""
        if self.percent != other.percent and abs(other.value) < 1 and other.value:
            return False
        if not comparable(self.unit, other.unit):
            return False
        size = self.unit.size / other.unit.size if self.unit and other.unit else 1
        return self.value * size == other.value


def _last(text: str) -> _Quantity | None:
    """The last number of a text; None where there is none, or the last one cannot be read.

    Commas and spaces between thousands, a sign, a currency and the dot that ends a sentence are ignored; a/b is a
    fraction. A minus after a number or a bracket is a subtraction and one within a word a hyphen, not a sign.
    """
    text = _legible(text[-LONGEST:])
    last = None
    for last in _TOKEN.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    value = _decimal(last["digits"], last["power"] or "")
    if value is None:
        return None
    start, sign = last.start(), last["sign"]
    if last["below"]:
        if int(last["below"]) == 0:
            return None
        value /= int(last["below"])
        whole = re.search(r"(?<![\d.,/])([-+−]?)(\d{1,9})\s?$", text[max(0, start - 16) : start])
        if whole and value < 1 and not sign:
            value, sign, start = value + int(whole[2]), whole[1], start - len(whole[0])
    before = text[:start].rstrip(" ")[-1:]
    negative = last["inner"] or (sign in ("-", "−") and not re.match(r"[0-9)\]}%]", before))
    after = _UNIT.match(text, last.end())
    unit = (read_unit(after[1]) if after else None) or read_unit({"$": "USD"}.get(last["currency"], last["currency"]))
    return _Quantity(-value if negative else value, bool(last["percent"]), unit)


def _only_number(text: str) -> _Quantity | None:
    """The number of a text that has one only."""
    legible = re.sub(r"(?<![\d.,/])\d{1,9}\s(?=\s?\d{1,9}/\d)", "", _legible(text))  # a mixed number is one
    return _last(text) if len(_TOKEN.findall(legible)) == 1 else None


def _ending(text: str, read: object) -> str | None:
    return text if _TOKEN.search(_legible(text)) else None


_REWRITTEN: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\[dtc]?frac\s?\{\s?([-−]?\d{1,50})\s?\}\s?\{\s?(\d{1,50})\s?\}"), lambda m: f" {m[1]}/{m[2]} "),
    (re.compile(r"\\[dtc]?frac\s?\{?(\d)\}?\s?\{?(\d)(?!\d)\}?"), lambda m: f" {m[1]}/{m[2]} "),
    (
        re.compile(
            r"(?<![\d.,])(\d[\d.,]{0,40})\s{0,2}(?:\\times|\\cdot|\*|[xX])\s{0,2}10\s?\^\s?\{?([-+]?\d{1,3})\}?"
        ),
        lambda m: f"{m[1]}e{m[2]}",
    ),
    (re.compile(r"(?<=[A-Za-z])\s?\^\s?\{?[23]\}?"), lambda m: ""),
    (re.compile(r"(?<![\d.,])(\d{1,9})\s?\^\s?\{?(\d{1,2})\}?"), lambda m: _power(int(m[1]), int(m[2]))),
    (re.compile(r"\^\s?\{?[-+\w.]{0,40}\}?|\\sqrt\s*(?:\[\d\])?\s*\{?[\w.]{0,40}\}?"), lambda m: UNREADABLE),
    (re.compile(r"(?<![\w.])0[xX]([0-9A-Fa-f]{1,40})\b"), lambda m: str(int(m[1], 16))),
    (re.compile(r"(?<![\w.,])(\d{1,40})_\{?(\d{1,2})\}?"), lambda m: _in_base(m[1], int(m[2]))),
    (re.compile(r"(?<![\d.,])\d[\d.,]{0,40}\s?(?:\\pi|pi\b|[ijxyzn](?![A-Za-z]))"), lambda m: UNREADABLE),
    (re.compile(r"(?<![\d:])\d{1,4}\s?:\s?\d{1,4}(?!\d)"), lambda m: UNREADABLE),
    (
        re.compile(r"(?<![\d.,])(\d[\d.]{0,20})\s(thousand|million|billion|trillion)\b", re.IGNORECASE),
        lambda m: f"{m[1]}e{ {'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}[m[2].lower()] }",
    ),
)
"""Numbers that are written with more than digits → how `_TOKEN` reads them."""


def _legible(text: str) -> str:
    text = ungrouped(plain(text))
    for pattern, rewritten in _REWRITTEN:
        text = pattern.sub(rewritten, text)
    return text


def _power(base: int, exponent: int) -> str:
    value = base**exponent
    return str(value) if value < 10**100 else UNREADABLE


def _in_base(digits: str, base: int) -> str:
    try:
        return str(int(digits, base)) if 2 <= base <= 36 else UNREADABLE
    except ValueError:
        return UNREADABLE


def _decimal(digits: str, power: str) -> Fraction | None:
    """A number without sign, as people write it; None where it is not one or is too long to be one."""
    digits = digits.rstrip(".,")
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", digits):
        digits = digits.rpartition(",")[2]  # 70,71,72: a list
    digits = digits.replace(",", "")
    if len(digits) > 100 or len(power) > 4 or not re.fullmatch(r"[0-9]+(\.[0-9]+)?|\.[0-9]+", digits):
        return None
    return Fraction("0" * digits.startswith(".") + digits + power)
