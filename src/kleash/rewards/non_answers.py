"""Responses that get no reward in spite of the verifier: loops, and lists of guesses (F15).

Functions of text, fast on any text. This module does not import torch.
"""

from __future__ import annotations

import re
from itertools import pairwise

SHORTEST_LOOP = 10
"""A response that ends in this many copies of one unit is a loop."""
LONGEST_UNIT = 40
"""Longest unit of a loop, in words."""
MANY_GUESSES = 3
"""From this many different answers a response is a list of guesses."""


def is_loop(text: str, *, finished: bool = True) -> bool:
    """Whether a text ends in a repeated unit of words.

    Words and not characters: the digits of 1000000000000 are not a loop, nor is a rule of dashes, which has no word.

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
_MARK = r"\\boxed\s*+\{|####|\banswer(?:\s++is(?:\s*+[:=])?|\s*+[:=])|^A\s*+[:=]"
_MARKED_ANSWER = re.compile(rf"(?:{_MARK})[\s$]*([-−]?[$€£]?(?:{_NUMBER}))", re.IGNORECASE | re.MULTILINE)
_SEPARATOR = re.compile(r"%?(?:[,;|\s]|\bor\b|\band\b)+[-−$€£]*", re.IGNORECASE)


def count_guesses(text: str) -> int:
    """The number of different answers in a text.

    Two kinds of numbers count: those that each stand as *the* answer (boxed, after `####`, after "answer is"), and bare
    numbers in a list that ends the text. Numbers on the way to an answer do not.
    """
    text = text[-20_000:]
    return max(len(set(_MARKED_ANSWER.findall(text))), len(final_list(text)))


def final_list(text: str) -> set[str]:
    """The numbers of the list that a text ends in; one where it ends in a number, none where it ends in words."""
    numbers = list(re.finditer(_NUMBER, text))
    if not numbers or re.search(r"\w", text[numbers[-1].end() :]):
        return set()
    items = {numbers[-1].group()}
    for before, after in reversed(list(pairwise(numbers))):
        between = text[before.end() : after.start()]
        if not _SEPARATOR.fullmatch(between) or re.fullmatch(r" +[-−]", between):  # `5 -3` is a subtraction
            break
        items.add(before.group())
    return items
