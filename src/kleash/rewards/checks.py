"""The checks behind the verifiers: a response and what its row expects give a verdict.

Plain functions of text. Those that a response could keep busy for ever (`GUARDED`: computer algebra, patterns) run in a
process of their own, for which this file is the program: one line of JSON in, one out. Each check there has a budget
of processor time, and the kernel ends the process that uses it up. Computer algebra has time-outs of its own, but they
work by a signal handler, which Python runs in the main thread only and never inside a long step of C.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

RIGHT, WRONG, UNPARSABLE, TIMED_OUT = VERDICTS = ("right", "wrong", "unparsable", "timed_out")

MEMORY = 4 << 30
"""Bytes of address space of the process that checks: 9^(9^9) has more digits than fit."""
SHORTEST_LOOP = 10
"""A response that ends in so many copies of one unit is a loop and answers nothing."""
LONGEST_UNIT = 40
"""Words of the longest unit that is looked for."""
MANY = 3
"""So many different answers in place of one are a guess at all of them."""


class BadRowError(Exception):
    """What the row expects cannot be read: its answer, its pattern or its schema."""


# --- what never earns ------------------------------------------------------------------------------------------------


def loops(text: str, *, finished: bool = True) -> bool:
    """Whether a text ends in one unit of words over and over.

    Words and not characters: the digits of 1000000000000 are no loop, nor is a rule of dashes, which has no word.

    Args:
        text: a response.
        finished: whether it ended by itself; the last word of one that was cut off may be half a word.
    """
    words = re.findall(r"\w+|[^\w\s]", text[-20_000:])
    words = words if finished else words[:-1]
    for unit in range(1, LONGEST_UNIT + 1):
        tail = words[-unit * SHORTEST_LOOP :]
        if len(tail) < unit * SHORTEST_LOOP:
            return False
        if tail[unit:] == tail[:-unit] and any(word[0].isalnum() for word in tail[:unit]):
            return True
    return False


_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_MARK = r"\\boxed\s*\{|####|\banswer(?:\s+is\s*[:=]?|\s*[:=])|^A\s*[:=]"
_MARKED = re.compile(rf"(?:{_MARK})[\s$]*([-−]?[$€£]?(?:{_NUMBER}))", re.IGNORECASE | re.MULTILINE)
_SEPARATOR = re.compile(r"%?(?:[,;|\s]|\bor\b|\band\b)+[-−$€£]*", re.IGNORECASE)


def guesses(text: str) -> int:
    """How many different answers a text offers where one is asked for.

    Counted are numbers that each stand as *the* answer (boxed, after `####`, after "answer is"), and bare numbers in a
    list that the text ends in. Numbers on the way to an answer are not.
    """
    text = text[-20_000:]
    marked = set(_MARKED.findall(text))
    numbers = list(re.finditer(_NUMBER, text))
    listed = {numbers[-1].group()} if numbers and not re.search(r"\w", text[numbers[-1].end() :]) else set()
    for before, after in reversed(list(pairwise(numbers))):
        if not listed or not _SEPARATOR.fullmatch(text, before.end(), after.start()):
            break
        listed.add(before.group())
    return max(len(marked), len(listed))


# --- the checks ------------------------------------------------------------------------------------------------------


def number(text: str, answer: str) -> str:
    """Whether the last number of a text is the answer, compared exactly."""
    expected = last_number(answer)
    if expected is None:
        raise BadRowError(f"the answer {answer[:60]!r} ends in no number; give a number, or take another reward")
    if guesses(text) >= MANY:
        return UNPARSABLE
    given = last_number(text)
    return UNPARSABLE if given is None else RIGHT if given == expected else WRONG


_TOKEN = re.compile(
    r"(?<![A-Za-z_0-9.,])(?P<sign>[-+−]?)[$€£]?(?P<inner>[-−]?)"
    r"(?P<digits>\.?[0-9][0-9.,]*)(?P<power>[eE][-+]?[0-9]+)?"
    r"(?:/(?P<below>[0-9]{1,50})(?![0-9]))?"
)


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None where there is none, or the last one cannot be read.

    Commas between thousands, a sign, a currency, a percent sign (72% is 72) and the dot that ends a sentence are read
    over; a/b is a fraction. A minus after a number or a bracket is a subtraction and one within a word a hyphen, and no
    sign.
    """
    last = None
    for last in _TOKEN.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    digits = last["digits"].rstrip(".,")
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", digits):
        digits = digits.rpartition(",")[2]  # 70,71,72: a list
    digits = digits.replace(",", "")
    if len(digits) > 100 or len(last["power"] or "") > 4 or not re.fullmatch(r"[0-9]+(\.[0-9]+)?|\.[0-9]+", digits):
        return None
    value = Fraction("0" * digits.startswith(".") + digits + (last["power"] or ""))
    if last["below"]:
        if int(last["below"]) == 0:
            return None
        value /= int(last["below"])
    before = text[: last.start()].rstrip(" ")[-1:]
    negative = last["inner"] or (last["sign"] in ("-", "−") and not re.match(r"[0-9)\]}%]", before))
    return -value if negative else value


def exact(text: str, answer: str) -> str:
    """Whether a text is the answer, but for white space around it."""
    return RIGHT if text.strip() == answer.strip() else WRONG


def regex(text: str, pattern: str) -> str:
    """Whether the whole of a text, but for white space around it, matches a pattern."""
    try:
        return RIGHT if re.fullmatch(pattern, text.strip()) else WRONG
    except re.error as error:
        raise BadRowError(f"the pattern {pattern[:60]!r} is no regular expression ({error}); mend it") from None


def json_schema(text: str, schema: Any) -> str:
    """Whether a text is JSON that a JSON Schema accepts."""
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (jsonschema.SchemaError, ValueError) as error:
        reason = str(getattr(error, "message", error))[:100]
        raise BadRowError(f"the schema is no JSON Schema ({reason}); mend it") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return UNPARSABLE
    try:
        # An empty registry: the default one would fetch a $ref to elsewhere from the network.
        return RIGHT if kind(schema, registry=referencing.Registry()).is_valid(value) else WRONG
    except referencing.exceptions.Unresolvable as error:
        raise BadRowError(f"the schema refers to {error.ref!r}, which is not in it; put it under $defs") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


CLOSE = 1e-5
"""Largest relative difference of two numbers that are called equal. Rounding, which math-verify compares by, is to six
places after the point, where 2^-99 and 2^-98 are both 0."""


def math(text: str, answer: str) -> str:
    """Whether the final expression of a text equals the answer, as `math-verify` parses and compares them."""
    from math_verify import verify

    expected = _answer(answer)
    if guesses(text) >= max(MANY, answer.count(",") + 2):
        return UNPARSABLE
    given = _parsed(text)
    if not given:
        return UNPARSABLE
    same = verify(expected, given, timeout_seconds=None, raise_on_error=True)
    return RIGHT if same and _close(expected[0], given[0]) else WRONG


@lru_cache(maxsize=1024)
def _answer(answer: str) -> list[Any]:
    """An answer's expression; bare LaTeX is read as if it stood between dollars."""
    parsed = _parsed(answer if "$" in answer or "\\boxed" in answer else f"${answer}$") or _parsed(answer)
    if not parsed:
        raise BadRowError(f"the answer {answer[:60]!r} cannot be read as mathematics; mend it, or take another reward")
    return parsed


_FUNCTIONS = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi)(?![A-Za-z])")


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    # The last resort of `parse` is to give the text itself, and two texts that it could not read are then compared as
    # texts. In LaTeX, sin without its backslash is s·i·n.
    text = _FUNCTIONS.sub(r"\\\1", text)
    return list(parse(text, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True))


def _close(a: Any, b: Any) -> bool:
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)):
        return True
    try:
        x, y = complex(a.evalf(30)), complex(b.evalf(30))
    except (TypeError, ValueError, OverflowError):
        return True  # no plain number (an interval, something huge): as `verify` says
    # 9 and 9% are called equal by `verify`, as either is written for the other.
    return any(abs(x - y * factor) <= CLOSE * max(abs(x), abs(y * factor)) for factor in (1, 100, 0.01))


CHECKS: dict[str, Callable[[str, Any], str]] = {
    "number": number,
    "math": math,
    "exact": exact,
    "regex": regex,
    "json-schema": json_schema,
}
COLUMNS = {"number": "answer", "math": "answer", "exact": "answer", "regex": "pattern", "json-schema": "schema"}
"""Which column of the row says what is expected."""
GUARDED = {"math", "regex", "json-schema"}


# --- the program -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests (`{"check", "text", "expected", "seconds"}`) until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; this process ends with its input
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _import(request["check"])
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # no handler: the kernel ends the process
        signal.setitimer(signal.ITIMER_REAL, 20 * request["seconds"])  # in case it waits for something
        reply = _reply(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


def _import(check: str) -> None:
    """What a check needs, before its time runs."""
    if check == "math":
        import math_verify  # noqa: F401
    if check == "json-schema":
        import jsonschema  # noqa: F401


def _reply(request: dict[str, Any]) -> dict[str, str]:
    try:
        return {"verdict": CHECKS[request["check"]](request["text"], request["expected"])}
    except BadRowError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"verdict": TIMED_OUT}
    except Exception:  # whatever a parser raises on what a model wrote: it could not be read, and earns nothing
        return {"verdict": UNPARSABLE}


if __name__ == "__main__":
    main()
