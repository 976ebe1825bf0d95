r"""Read an answer as a value.

`math-verify` parses expressions. What stands around them is read here, since it is what `math-verify` gets wrong: which
brackets an interval has, that a tuple has an order and a set has none, units, currencies, bases, clock times, and that
the letters of words are not factors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

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
from kleash.rewards.notation import DOLLAR, latex
from kleash.rewards.units import ONE_LETTER, Unit, counted, is_generic, read_unit

LONGEST = 600
"""Characters of an answer; what is longer is not one."""
DEEPEST = 12
"""Levels of brackets."""


@lru_cache(maxsize=4096)
def read_value(text: str, *, attached: bool = False) -> Value | None:
    """The value of an answer; None where it cannot be read.

    Args:
        text: an answer by itself, without a sentence around it.
        attached: whether a letter at a number is a unit (`5m`), and not a variable.
    """
    if len(text) > LONGEST or not text.strip():
        return None
    if _depth(text) > DEEPEST:
        return None
    return _read(_trimmed(latex(text)), attached, wordy=_is_text(text))


def _depth(text: str) -> int:
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_text(text: str) -> bool:
    """Whether an answer says that it is text."""
    return re.fullmatch(r"[\s$(\\]*\\(?:text\w*|mbox|mathrm|textbf)\s*\{[^{}]*\}[\s$.)\\]*", text) is not None


def _trimmed(text: str) -> str:
    text = text.strip().strip("\"'`").strip()
    text = re.sub(r"^(?:≈|~|\\approx)\s*", "", text)
    return re.sub(r"(?:(?<![.])[.,;:?]|[*_]{2})+$", "", text).strip()


def _read(text: str, attached: bool, *, wordy: bool = False, nested: bool = False) -> Value | None:
    text = _trimmed(text)
    if not text:
        return None
    if wordy and not re.search(r"\d", text):
        return _read_moment(text) or _words(text)
    for reader in _READERS:
        try:
            value = reader(text, attached)
        except _UnreadableError:
            return None
        if value is not None:
            return value
    return None if nested and not re.search(r"[A-Za-z]{2}", text) else _words(text)


class _UnreadableError(Exception):
    """A text has the form of a kind of value, but its parts cannot be read."""


def _all(texts: list[str], attached: bool) -> tuple[Value, ...]:
    values = tuple(_read(text, attached, nested=True) for text in texts)
    if any(value is None for value in values):
        raise _UnreadableError
    return tuple(value for value in values if value is not None)


def _split(text: str, separator: str) -> list[str]:
    """A text at the separators that stand in no brackets."""
    parts, depth, start, place = [], 0, 0, 0
    pattern = re.compile(separator)
    while place < len(text):
        if depth == 0 and (match := pattern.match(text, place)) and match.end() > place:
            parts.append(text[start:place])
            start = place = match.end()
            continue
        if text[place] == "\\" and place + 1 < len(text):
            depth += {"{": 1, "}": -1}.get(text[place + 1], 0)
            place += 2
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[place], 0)
        place += 1
    return [*parts, text[start:]]


_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?|{month[:4]}" for month in _MONTHS)


def _read_moment(text: str, _: bool = False) -> Value | None:
    clock = re.fullmatch(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:([ap])\s?\.?\s?m\b\.?)?", text, re.IGNORECASE)
    clock = clock or re.fullmatch(r"(\d{1,2})()()\s*([ap])\.?\s?m\b\.?", text, re.IGNORECASE)
    if clock and int(clock[1]) < 24:
        half = clock[4].lower() if clock[4] else None
        hour = int(clock[1])
        if half and 1 <= hour <= 12:
            hour, half = hour % 12 + 12 * (half == "p"), "24"
        elif hour > 12 or clock[1][0] == "0":
            half = "24"
        return Moment("clock", (hour, int(clock[2] or 0), int(clock[3] or 0), half))
    flat = re.sub(
        r"(?<=\d)(?:st|nd|rd|th)\b|,|\bof\b|\bthe\b|^(?:on\s+)?(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
        " ",
        text,
        flags=re.IGNORECASE,
    )
    flat = " ".join(flat.split())
    date = re.fullmatch(rf"({_MONTH})\.? (\d{{1,2}})(?: (\d{{4}}))?", flat, re.IGNORECASE)
    if date:
        return Moment("date", (_month(date[1]), int(date[2]), int(date[3]) if date[3] else None))
    date = re.fullmatch(rf"(\d{{1,2}}) ({_MONTH})\.?(?: (\d{{4}}))?", flat, re.IGNORECASE)
    if date:
        return Moment("date", (_month(date[2]), int(date[1]), int(date[3]) if date[3] else None))
    date = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})", flat)
    if date and 1 <= int(date[2]) <= 12:
        return Moment("date", (int(date[2]), int(date[3]), int(date[1])))
    date = re.fullmatch(r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})", flat)
    if date:
        first, second, year = int(date[1]), int(date[2]), int(date[3])
        if first > 12:
            return Moment("date", (second, first, year))
        return Moment("date", (first, second, year)) if second > 12 else Moment("digits", (first, second, year))
    return None


def _month(name: str) -> int:
    return next(number for number, month in enumerate(_MONTHS, start=1) if month.startswith(name[:3].lower()))


_ASIDE = re.compile(r"\s*\(?\s*(?:in\s+)?base[\s-]*(\w+)\s*\)?$", re.IGNORECASE)
_NAMED_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
                "twelve": 12, "sixteen": 16}  # fmt: skip


def _read_base(text: str, _: bool) -> Value | None:
    """Numbers with a base: 101_2, 0x1F, 101 (base 2)."""
    compact = text.replace(" ", "")
    prefixed = re.fullmatch(r"(-?)0([xXbBoO])([0-9A-Fa-f]+)", compact)
    if prefixed:
        base = {"x": 16, "b": 2, "o": 8}[prefixed[2].lower()]
        return _in_base(prefixed[1] + prefixed[3], base)
    match = re.fullmatch(r"(-?[0-9A-Z]+)_(?:\{?(\d{1,2}|[a-z]+)\}?)", compact) or re.fullmatch(
        r"\{?\(?(-?[0-9A-Z]+)\)?\}?_\{?(\d{1,2}|[a-z]+)\}?", compact
    )
    if match is None and (aside := _ASIDE.search(text)):
        digits = text[: aside.start()].strip()
        if re.fullmatch(r"-?[0-9A-Za-z]+", digits):
            return _in_base(
                digits, _NAMED_BASES.get(aside[1].lower()) or (int(aside[1]) if aside[1].isdecimal() else 0)
            )
    if match is None:
        return None
    base = _NAMED_BASES.get(match[2]) or (int(match[2]) if match[2].isdecimal() else 0)
    if not re.search(r"\d", match[1]) and not (base > 10 and len(match[1]) > 1):
        return None  # A_1 is a symbol
    return _in_base(match[1], base)


def _in_base(digits: str, base: int) -> Value:
    if not 2 <= base <= 36:
        raise _UnreadableError
    try:
        return Number(Fraction(int(digits, base)), base=base)
    except ValueError:
        raise _UnreadableError from None


def _read_union(text: str, attached: bool) -> Value | None:
    parts = _split(text, r"\\cup(?![a-zA-Z])|(?<=[)\]}])\s*U\s*(?=[(\[{\\])")
    if len(parts) > 1:
        return Union(_all(parts, attached))
    alternatives = _split(text, r",?\s+(?:or|and)\s+")
    if len(alternatives) > 1 and re.search(r"<|>|\\l[et]\b|\\g[et]\b|\\in(?![a-z])", text):
        values = _all(alternatives, attached)
        if all(
            isinstance(value, Interval) or (isinstance(value, Several) and value.kind == "tuple") for value in values
        ):
            if " or " in text:
                return Union(values)
            raise _UnreadableError
    return None


def _read_brackets(text: str, attached: bool) -> Value | None:
    """A set, an interval, a tuple; in one pair of brackets around everything."""
    text = re.sub(r"^\\langle(.*)\\rangle$", r"(\1)", text)
    text = re.sub(r"^\\\{(.*)\\\}$", r"{\1}", text)
    text = re.sub(r"^\\lbrack", "[", re.sub(r"\\rbrack$", "]", text))
    if not text or text[0] not in "([{]" or text[-1] not in ")]}[" or not _one_pair(text):
        named = re.fullmatch(r"\(?\s*[a-z]\s*,\s*[a-z](?:\s*,\s*[a-z])?\s*\)?\s*=\s*(\(.*\))", text)
        return _read_brackets(named[1], attached) if named else None
    inner = text[1:-1].strip()
    if not inner:
        return Several((), "set") if text in ("{}", "{ }") else None
    brackets = {"]": "(", "[": "["}.get(text[0], text[0]) + {"[": ")", "]": "]"}.get(text[-1], text[-1])
    items = _items(inner)
    if brackets == "{}":
        if re.search(r"\\mid(?![a-z])|(?<!\|)\|(?!\|)(?=.*(?:<|>|\\l|\\g|\\in))|:", inner):
            condition = re.split(r"\\mid(?![a-z])|\||:", inner, maxsplit=1)[1]
            return _read(condition, attached, nested=True)
        return Several(_all(items, attached), "set")
    if len(items) == 1:
        return _read(inner, attached, nested=True) if brackets in ("()", "[]") and "_" not in text[-1:] else None
    if len(items) == 2 and brackets in ("[]", "[)", "(]"):
        low, high = _all(items, attached)
        return Interval(low, high, brackets)
    return Several(_all(items, attached), "tuple")


def _items(inner: str) -> list[str]:
    """The items between brackets: parted by semicolons where there are some, else by commas."""
    parts = _split(inner, r";")
    return parts if len(parts) > 1 else _split(inner, r",")


def _one_pair(text: str) -> bool:
    """Whether the first bracket of a text closes at its end."""
    depth = 0
    if text[0] == "]" or text[-1] == "[":
        return not re.search(r"[\[\]]", text[1:-1])
    for place, sign in enumerate(text):
        if text[place - 1 : place] == "\\":
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(sign, 0)
        if depth <= 0:
            return place == len(text) - 1
    return False


def _read_matrix(text: str, attached: bool) -> Value | None:
    match = re.fullmatch(r"\\begin\{([pbBv]?(?:matrix|array))\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text, re.DOTALL)
    if match is None or match[1] == "vmatrix":
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    return Matrix(tuple(_all(_split(row, "&"), attached) for row in rows))


_SIGNS = {
    "<": "<",
    ">": ">",
    "=": "=",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\approx": "~",
    r"\in": "in",
    r"\equiv": "==",
}
_SIGN = r"\\(?:le|ge|ne|approx|in|equiv)(?![a-zA-Z])|(?<![<>!\\])=|<|>"


def _read_several(text: str, attached: bool) -> Value | None:
    """Lists: 3 and 5; x = 2 or x = 3; 2 ± √3; x = 1, y = 2."""
    text = re.sub(r"^(?:both|either)\s+", "", text)
    if re.search(r"\\pm(?![a-z])", text):
        plus = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", text))
        minus = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", text))
        signs = [re.sub(r"^\s*\+|(?<=[=(,])\s*\+", " ", side) for side in (plus, minus)]
        items = _all(signs, attached)
        flat = [item for value in items for item in (value.items if isinstance(value, Several) else (value,))]
        return Several(tuple(map(_unassigned, flat)), "list")
    either = re.search(r"\bor\b", text) is not None
    parts = _split(text, r"\s*(?:,|;)?\s*(?<![A-Za-z])(?:or|and)(?![A-Za-z])\s*|\s*[,;]\s*")
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    if not any(re.search(r"[\d\\=<>]|^\s*[a-z]\s*$", part) for part in parts):
        return None  # words: `salt and pepper`
    variable = re.match(r"\s*([a-zA-Z](?:_\{?\w\}?)?)\s*(?:=|\\in(?![a-z]))\s*(.*)", parts[0])
    if variable and not any(re.search(_SIGN, part) for part in parts[1:]):
        parts[0] = variable[2]  # x = 2, 3
    names = [re.match(r"\s*([a-zA-Z])(?:_\{?\w\}?)?\s*=", part) for part in parts]
    values = _all(parts, attached)
    if all(names) and len({name[1] for name in names if name}) == len(parts):
        return Several(values, "list")  # x = 1, y = 2: each has its name
    if any(isinstance(value, Words) for value in values):
        return None
    return Several(tuple(map(_unassigned, values)), "either" if either else "list")


def _unassigned(value: Value) -> Value:
    """The value of `x = 2`, which is 2."""
    if isinstance(value, Relation) and value.signs == ("=",) and is_name(value.names[0]):
        return value.sides[1]
    return value


def _read_relation(text: str, attached: bool) -> Value | None:
    signs: list[str] = []
    parts = _split(text, _SIGN)
    if len(parts) < 2:
        return None
    place = len(parts[0])
    for part in parts[1:]:
        match = re.compile(_SIGN).match(text, place)
        if match is None:
            return None
        signs.append(_SIGNS[match[0]])
        place = match.end() + len(part)
    names = [part.strip() for part in parts]
    if not all(names):
        raise _UnreadableError
    if signs == ["in"]:
        inside = _read(names[1], attached, nested=True)
        return _with_variable(inside, names[0])
    if all(sign in ("=", "~") for sign in signs):
        return _read_equation(names, signs, attached)
    return _as_interval(names, signs, attached) or Relation(_all(names, attached), tuple(signs), tuple(names))


def _with_variable(value: Value | None, name: str) -> Value | None:
    return replace(value, variable=name.strip()) if isinstance(value, Interval) else value


def _read_equation(names: list[str], signs: list[str], attached: bool) -> Value | None:
    """An equation: x = 2 + 3 = 5 is x = 5, and x = 1/3 ≈ 0.333 is x = 1/3."""
    if signs[-1] == "~":
        exact, rounded = _read(names[-2], attached, nested=True), _read(names[-1], attached, nested=True)
        close = isinstance(exact, Number) and isinstance(rounded, Number) and _close(exact, rounded)
        if close or (exact is not None and is_name(names[-2]) is False and len(names) == 2):
            if not close:
                raise _UnreadableError
            names, signs = names[:-1], signs[:-1]
        if len(names) == 1:
            return exact
    right = _read(names[-1], attached, nested=True)
    if right is None or isinstance(right, Words):
        raise _UnreadableError
    first = _read(names[0], attached, nested=True)
    if first is None or (isinstance(first, Words) and not is_name(names[0])):
        raise _UnreadableError
    is_number = re.search(r"\d", names[0]) is not None and not re.search(r"(?<!\\)\b[a-zA-Z]\b", names[0])
    if isinstance(first, Number) and is_number and is_name(names[-1]) and len(names) == 2:
        return Relation((right, first), ("=",), (names[-1], names[0]))  # 5 = x
    return Relation((first, right), ("=",), (names[0], names[-1]))


def _as_interval(names: list[str], signs: list[str], attached: bool) -> Value | None:
    """An inequality of one variable with numbers as bounds; None for others."""
    flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    infinity, minus_infinity = _all([r"\infty", r"-\infty"], attached)
    if len(names) == 2 and signs[0] == "!=" and _is_variable(names[0]):
        hole = _read(names[1], attached, nested=True)
        if isinstance(hole, Number):
            return Union((Interval(minus_infinity, hole, "()", names[0]), Interval(hole, infinity, "()", names[0])))
    if len(names) == 2 and signs[0] in flipped:
        sign = signs[0]
        if not _is_variable(names[0]) and _is_variable(names[1]):
            names, sign = names[::-1], flipped[sign]
        bound = _read(names[1], attached, nested=True)
        if not _is_variable(names[0]) or not isinstance(bound, Number):
            return None
        if sign in ("<", "<="):
            return Interval(minus_infinity, bound, "(]" if sign == "<=" else "()", names[0])
        return Interval(bound, infinity, "[)" if sign == ">=" else "()", names[0])
    if len(names) == 3 and _is_variable(names[1]) and all(sign in flipped for sign in signs):
        if signs[0][0] == ">":
            names, signs = names[::-1], [flipped[sign] for sign in signs[::-1]]
        if signs[0][0] != "<" or signs[1][0] != "<":
            return None
        low, high = _read(names[0], attached, nested=True), _read(names[2], attached, nested=True)
        if isinstance(low, Number) and isinstance(high, Number):
            return Interval(
                low, high, ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")"), names[1]
            )
    return None


def _is_variable(text: str) -> bool:
    return re.fullmatch(r"[a-zA-Z]|\\(?:theta|alpha|beta|lambda)", text.strip()) is not None


_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6, "bn": 9}
_CURRENCY = re.compile(
    rf"(?P<sign>-?)\s*(?P<currency>{DOLLAR}|US{DOLLAR}|€|£|¥|₹|Rs\.?)\s*(?P<rest>-?[\d.\\(].*)", re.DOTALL
)
_RATE = re.compile(r"(?P<amount>.*\d)\s*(?:/|\bper\b|\ban?\b)\s*(?P<of>[A-Za-z][A-Za-z\s]*)", re.DOTALL)
"""What money is paid for: `28/month`, `135 per person`."""
_SUFFIX = re.compile(
    r"(?P<head>.*?(?:[\d)}!.]|\\pi|\\infty|[½%]))(?P<gap>\s*)(?P<unit>[A-Za-zμΩ°€£¥₹¢℃℉][^\d\\()=<>]*(?:\^\{?-?\d\}?[^\d\\()=<>]*)*)",
    re.DOTALL,
)


def _read_money(text: str) -> Value | None:
    """An amount that a currency's sign stands before, whose comma does not part a list: €1.234,50."""
    money = _CURRENCY.fullmatch(text)
    return _read_number(text, False) if money and read_plain_number(money["rest"]) is not None else None


def _read_number(text: str, attached: bool) -> Value | None:
    """A number or an expression with a unit, a currency, a percent sign, a scale."""
    money = _CURRENCY.fullmatch(text)
    if money:
        currency = "USD" if money["currency"].endswith(DOLLAR) else money["currency"]
        unit = read_unit(currency)
        if rate := _RATE.fullmatch(money["rest"]):
            plain, per = read_plain_number(rate["amount"]), read_unit(f"{currency}/{rate['of']}")
            if plain is not None and (per or counted(rate["of"])):
                return replace(plain, value=-plain.value if money["sign"] else plain.value, unit=per or unit)
        amount = _read_number(money["rest"], attached)
        if isinstance(amount, Number) and (amount.unit is None or amount.unit == unit or amount.unit.words):
            value = -amount.value if money["sign"] else amount.value
            return replace(amount, value=value, unit=unit)
        scaled = re.fullmatch(r"(-?[\d.]+)\s?([kKMB]|bn)", money["rest"])
        if scaled:
            size = _SCALES[{"K": "k", "M": "m", "B": "bn"}.get(scaled[2], scaled[2])]
            plain = read_plain_number(scaled[1])
            return plain and replace(plain, value=plain.value * 10**size, unit=unit)
        return None
    number = read_plain_number(text)
    if number is not None:
        return number
    percent = re.fullmatch(r"(.*[\d})])\s*%", text, re.DOTALL)
    if percent:
        value = _read_number(percent[1], attached)
        return replace(value, percent=True) if isinstance(value, Number) and not value.percent else None
    scale = re.fullmatch(r"(.*\d)\s+(thousand|million|billion|trillion)\b\s*(.*)", text, re.IGNORECASE | re.DOTALL)
    if scale:
        plain = read_plain_number(scale[1])
        if plain is not None:
            unit = _unit_of(scale[3], "  ", attached=True) if scale[3] else None
            return replace(plain, value=plain.value * 10 ** _SCALES[scale[2].lower()], decimal=False, unit=unit)
    text = re.sub(
        r"(?<=\d)\s*\\frac\s*\{\s*([A-Za-z]+)\s*\}\s*\{\s*([A-Za-z]+(?:\s*\^\{?\d\}?)?)\s*\}$", _unit_fraction, text
    )
    suffix = _SUFFIX.fullmatch(text)
    if suffix and not re.search(r"_\{?$", suffix["head"]):
        unit_text, gap = suffix["unit"].strip(), suffix["gap"]
        if suffix["head"].rstrip()[-1:] != "\\" and (gap or attached or unit_text not in ONE_LETTER):
            head = read_plain_number(suffix["head"]) or _expression_if_numeric(suffix["head"])
            if head is not None:
                if is_generic(unit_text):
                    return head
                unit = _unit_of(unit_text, gap, attached=attached)
                if unit is not None:
                    return replace(head, unit=unit)
    return _expression(text)


def _unit_fraction(match: re.Match[str]) -> str:
    quotient = f"{match[1]}/{match[2]}"
    return f" {quotient}" if read_unit(quotient) else match[0]


def _unit_of(text: str, gap: str, *, attached: bool) -> Unit | None:
    unit = read_unit(text)
    if unit is not None:
        return unit
    return counted(text) if gap and len(text) > 2 else None


def _expression_if_numeric(text: str) -> Number | None:
    value = _expression(text)
    return value if isinstance(value, Number) and not getattr(value.value, "free_symbols", None) else None


_DECIMAL = r"\d+(?:\.\d*)?|\.\d+"


def read_plain_number(text: str) -> Number | None:
    r"""Numbers that need no computer algebra: 1,234.5; 1.234,5; 1.2e3; 1.2·10^3; 3/4; 1 1/2; 0.\overline{3}."""
    text = text.strip()
    text = (
        re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
        if re.fullmatch(r"[-+]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?", text)
        else text
    )
    if re.fullmatch(r"[-+]?\d{1,3}(?:\.\d{3})+,\d+", text) or re.fullmatch(r"[-+]?\d{1,3}(?:\.\d{3}){2,}", text):
        text = text.replace(".", "").replace(",", ".")
    if re.fullmatch(r"[-+]?(?:0|\d+),\d+", text) and not re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text):
        text = text.replace(",", ".") if re.fullmatch(r"[-+]?0,\d+", text) else text
    match = re.fullmatch(rf"([-+]?)\s*(?:({_DECIMAL}))(?:[eE]([-+]?\d{{1,3}}))?", text)
    if match:
        if len(match[2]) > 300:
            return None
        value = Fraction(match[2].rstrip(".") if match[2].endswith(".") else match[2]) * Fraction(10) ** int(
            match[3] or 0
        )
        return Number(-value if match[1] == "-" else value, decimal="." in match[2].rstrip("."))
    match = re.fullmatch(
        rf"([-+]?)\s*({_DECIMAL})\s*(?:\\times|\\cdot|\*|x|X)\s*10\s*\^\s*\{{?\s*([-+]?\d{{1,3}})\s*\}}?", text
    )
    if match:
        value = Fraction(match[2]) * Fraction(10) ** int(match[3])
        return Number(-value if match[1] == "-" else value, decimal="." in match[2])
    for pattern in (
        r"([-+]?)\s*(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}",
        r"([-+]?)\s*(\d+)(?:\s+|\s+and\s+)(\d+)\s*/\s*(\d+)",
    ):
        match = re.fullmatch(pattern, text)
        if match and 0 < int(match[3]) < int(match[4]) and max(map(len, match.groups())) < 100:
            value = int(match[2]) + Fraction(int(match[3]), int(match[4]))
            return Number(-value if match[1] == "-" else value)
    match = re.fullmatch(
        rf"([-+]?)\s*(?:\\frac\s*\{{\s*([-+]?)\s*({_DECIMAL})\s*\}}\s*\{{\s*([-+]?)\s*({_DECIMAL})\s*\}}"
        rf"|\(?\s*([-+]?)\s*({_DECIMAL})\s*\)?\s*/\s*\(?\s*([-+]?)\s*({_DECIMAL})\s*\)?)",
        text,
    )
    if match and text.count("(") == text.count(")"):
        signs = "".join(filter(None, (match[1], match[2], match[4], match[6], match[8])))
        above, below = Fraction(match[3] or match[7]), Fraction(match[5] or match[9])
        if below == 0:
            raise _UnreadableError
        return Number(above / below * (-1) ** signs.count("-"))
    match = re.fullmatch(r"([-+]?)(\d*)\.(\d*)(?:\\overline|\\bar|\\dot)\s*\{?\s*(\d+)\s*\}?", text)
    if match and len(match[3] + match[4]) < 50:
        whole = Fraction(int(match[2] or 0)) + Fraction(int(match[3] or 0), 10 ** len(match[3]))
        value = whole + Fraction(int(match[4]), (10 ** len(match[4]) - 1) * 10 ** len(match[3]))
        return Number(-value if match[1] == "-" else value)
    return None


@lru_cache(maxsize=4096)
def _expression(text: str) -> Number | None:
    """An expression, parsed by `math-verify`; None where it cannot be."""
    if not re.search(r"[\dA-Za-z]", text) or (re.fullmatch(r"[A-Za-z][A-Za-z\s.'-]*", text) and not _is_product(text)):
        return None
    if re.search(r"(?<![\\a-zA-Z{])[A-Za-z]{3,}(?![a-zA-Z}])", text) and not re.fullmatch(
        r"[xyzwabc\d\s^{}()+*/-]+", text
    ):
        return None  # words beside numbers
    if any(word in _SHORT_WORDS for word in re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2}(?![A-Za-z}])", text.lower())):
        return None
    if re.search(r"\d{301}", text):
        return None
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    normal = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none", equations=False)
    config = LatexExtractionConfig(normalization_config=normal, boxed_match_priority=-1)
    text = re.sub(r"(?<=[\d.)}])i(?![A-Za-z])", " i", text.replace("*", r" \cdot "))
    text = re.sub(r"(?<![A-Za-z\\])j(?![A-Za-z])", " i ", text) if re.fullmatch(r"[-+.\d\sj]+", text) else text
    text = _mixed(text)
    parsed = parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)
    if not parsed or isinstance(parsed[0], str):
        return None
    expression = parsed[0]
    if isinstance(
        expression, (sympy.core.relational.Relational, sympy.logic.boolalg.BooleanFunction, sympy.Set, sympy.Tuple)
    ):
        return None
    imaginary = [symbol for symbol in getattr(expression, "free_symbols", ()) if str(symbol) == "i"]
    if imaginary:
        expression = expression.subs(dict.fromkeys(imaginary, sympy.I))
    if isinstance(expression, sympy.Rational):
        return Number(Fraction(int(expression.p), int(expression.q)))
    if isinstance(expression, sympy.Basic) and expression.has(sympy.nan, sympy.zoo):
        return None
    return Number(expression, decimal=isinstance(expression, sympy.Float))


def _mixed(text: str) -> str:
    r"""Mixed numbers within an expression: 1\frac{1}{2} is 1 + 1/2."""

    def total(match: re.Match[str]) -> str:
        if int(match[2]) >= int(match[3]):
            return match[0]
        return rf"({match[1]}+\frac{{{match[2]}}}{{{match[3]}}})"

    return re.sub(r"(?<![\d.^_{A-Za-z}])(\d{1,9})\s*\\frac\{(\d{1,9})\}\{(\d{1,9})\}", total, text)


_SHORT_WORDS = frozenset("no on up in at so go he it as is us we me my by of to an am be do if or".split())


def _is_product(text: str) -> bool:
    """Whether letters are variables: one of them, two in small letters, or some of x, y, z, w."""
    word = text.strip()
    if re.fullmatch(r"[A-Za-z]", word) or re.fullmatch(r"[a-z]\s[a-z]", word):
        return True
    return (re.fullmatch(r"[a-z]{2}", word) is not None and word not in _SHORT_WORDS) or (
        re.fullmatch(r"[xyzw]{2,4}", word) is not None
    )


def _words(text: str) -> Value | None:
    if re.search(r"\\[A-Za-z]+\s*[{\[]|\\(?:sqrt|frac|begin|end)", text):
        return None  # mathematics that could not be read
    text = re.sub(r"[\\{}$\"“”]", "", text).lower()
    text = " ".join(re.sub(r"[.,;:!?]+$", "", text.strip()).split())
    text = re.sub(r"^(?:the|a|an)\s+", "", text)
    if text in ("emptyset", "empty set", "null set"):
        return Several((), "set")
    return Words(text) if re.search(r"\w", text) else None


_READERS: tuple[Callable[[str, bool], Value | None], ...] = (
    _read_moment,
    _read_base,
    lambda text, _: read_plain_number(text),
    lambda text, attached: _read_money(text) if (DOLLAR in text or text[:1] in "€£¥₹R") else None,
    _read_matrix,
    _read_union,
    _read_brackets,
    _read_several,
    _read_relation,
    lambda text, attached: (
        _read_number(text, attached)
        if not re.fullmatch(r"[A-Za-z][A-Za-z\s'-]{2,}", text) or _is_product(text)
        else None
    ),
)


def _close(a: Number, b: Number) -> bool:
    """Whether one number may be the other one, rounded."""
    if isinstance(a.value, Fraction) and isinstance(b.value, Fraction):
        return abs(a.value - b.value) <= abs(a.value) / 50
    x, y = magnitude(a), magnitude(b)
    return x is not None and y is not None and abs(x - y) <= max(x, y) / 50
