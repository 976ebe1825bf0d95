"""Attribution of a reward to the sentences of a response: the drop of its score when a sentence is removed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kleash.data.group import Content, Group, Response
from kleash.rewards.reward import Reward

LONGEST = 16
"""Longest piece in words; a longer sentence is cut into pieces of at most this length."""

# A run of stops is tried at its first one and never given back, so that the time is linear in the length of any text.
_SENTENCE = re.compile(r".+?(?:(?<![.!?…。！？])[.!?…。！？]++[\"'”’)\]]*+(?=\s|$)\s*+|\n\s*+|$)", re.DOTALL)
_WORD = re.compile(r"\S+\s*|\s+")


def pieces(text: str) -> list[str]:
    """Sentences of a text, long ones in parts; joined they give the text."""
    sentences = [match.group() for match in _SENTENCE.finditer(text)]
    words = [_WORD.findall(sentence) for sentence in sentences]
    return ["".join(part) for each in words for part in _even(each)]


def leave_one_out(reward: Reward, prompt: Content, text: str, **row: Any) -> list[tuple[str, float]]:
    """Each piece of a response with the drop of its score when that piece is left out.

    Positive: the reward likes the piece. The drops need not add up to the score: two pieces with the same content hide
    each other's effect, and removing a sentence may change the meaning of the rest.

    Args:
        reward: called once, for the response and all its shortened forms together.
        prompt: the prompt of the response.
        text: the response.
        row: `finished`, and the columns that the reward reads.

    A response without any text counts as ended, since an empty response that did not end cannot exist.
    """
    parts = pieces(text)
    if not parts:
        return []
    finished = row.pop("finished", True)
    shortened = ["".join(parts[:place] + parts[place + 1 :]).rstrip() for place in range(len(parts))]
    forms = [Response(_answer(prompt, form), finished=finished or not form) for form in [text, *shortened]]
    full, *reduced = reward([Group(prompt, tuple(forms), columns=row)])[0].tolist()
    return [(part, full - score) for part, score in zip(parts, reduced, strict=True)]


def _even(words: Sequence[str]) -> list[Sequence[str]]:
    """Words in as few parts as `LONGEST` allows, of nearly equal size."""
    count = -(-len(words) // LONGEST)
    cuts = [round(len(words) * place / count) for place in range(count + 1)]
    return [words[start:end] for start, end in pairwise(cuts)]


def _answer(prompt: Content, text: str) -> Content:
    return text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)
