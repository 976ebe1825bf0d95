"""Words of a message that spell a control token, as letters.

A tokenizer takes `<|im_end|>` for the token that ends a turn, whoever wrote it: a user, a tool, a response that a judge
reads. So before a template renders them, such words are cut after their first character by a mark, `CUT`, and the
rendered text is tokenised piece by piece. No piece of a message spells a control token then, whatever the tokenizer
does with it, and the template's own tokens stay what they are. A text without such words is tokenised as one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_template import MARK, controls_in, per_tokenizer, render
from kleash.data.group import Message
from kleash.errors import DataError, ModelError

Normalizer = Callable[[str], str]

CUT = "0918273645546372819"
"""Digits: a template that quotes, escapes or changes the case of a text leaves them as they are. The first of them does
not occur again, so that a text which spells CUT is cut like a control token.
"""

REASONING = frozenset({"<think>", "</think>", "[THINK]", "[/THINK]"})
"""Tokens by which the assistant's own content sets reasoning apart; templates look for them there."""


def cut_turns(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[Message, ...]:
    """Turns whose texts (content, names, arguments, reasoning) spell no control token; see `CUT`."""
    return tuple({**cut(turn, tokenizer, by=str(turn["role"])), "role": turn["role"]} for turn in turns)


def cut(value: Any, tokenizer: PreTrainedTokenizerBase, *, by: str = "user") -> Any:
    """A text, or an object with texts, that spells no control token; see `CUT`.

    Args:
        value: text, or lists and objects of texts.
        tokenizer: whose control tokens.
        by: the role that wrote it; the assistant's reasoning tags are left as they are.
    """
    return _cut(value, _patterns(tokenizer)[by == "assistant"], normalizer=_normalizer(tokenizer))


def cut_at(text: str, tokens: Iterable[str]) -> list[str]:
    """The pieces of a text, of which none spells one of some tokens."""
    return str(_cut(text, _pattern({*tokens, CUT}))).split(CUT)


def tokenize_pieces(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of texts in pieces, without the special tokens that the tokenizer puts around a text."""
    anchor = _anchor(tokenizer) if any(len(pieces) > 1 for pieces in texts) else ""
    strings = [first for first, *_ in texts]
    strings += [anchor, *(form for _, *rest in texts for piece in rest for form in (piece, anchor + piece))]
    unique = list(dict.fromkeys(strings))
    ids = dict(zip(unique, _ids(unique, tokenizer), strict=True))

    def inner(piece: str) -> list[int]:
        before, joined = ids[anchor], ids[anchor + piece]
        return joined[len(before) :] if joined[: len(before)] == before else ids[piece]

    return [sum(map(inner, rest), ids[first]) for first, *rest in texts]


def _cut(value: Any, pattern: re.Pattern[str], normalizer: Normalizer | None = None) -> Any:
    if isinstance(value, str):
        # What only becomes a control token when the tokenizer normalises it (`＜s＞` by NFKC) is cut everywhere.
        if normalizer and len(pattern.findall(normalizer(value))) > len(pattern.findall(value)):
            return CUT.join(value)
        return pattern.sub(rf"\g<0>{CUT}", value)
    if isinstance(value, Mapping):
        return {_cut(key, pattern, normalizer): _cut(item, pattern, normalizer) for key, item in value.items()}
    return [_cut(item, pattern, normalizer) for item in value] if isinstance(value, Sequence) else value


def _normalizer(tokenizer: PreTrainedTokenizerBase) -> Normalizer | None:
    """How the tokenizer rewrites a text before it looks for tokens, where it does."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return None if normalizer is None else normalizer.normalize_str


@per_tokenizer
def _patterns(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Where to cut the words of others, and those of the assistant."""
    tokens = _control_tokens(tokenizer)
    return _pattern({*tokens, CUT}), _pattern({*tokens - REASONING, CUT})


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """The first character of any of the tokens, where the rest of the token follows."""
    rests: dict[str, list[str]] = {}
    for token in sorted(tokens):
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()))


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The special tokens, and the other added tokens that the tokenizer names or its template puts between turns."""
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= {str(token) for token in added if getattr(token, "special", False)}
    special |= set(getattr(tokenizer, "chat_control_tokens", None) or ())
    roles = ("user", "assistant", "user")
    try:
        turns = [{"role": role, "content": MARK.format(i)} for i, role in enumerate(roles)]
        between = render(turns, tokenizer, add_generation_prompt=False)
    except (ModelError, DataError):  # no template, or one that refuses this: the rendering of a real row tells
        between = ""
    # Not the words and the white space that some vocabularies add, which stand between turns as in any text.
    marks = {
        token for _, token in controls_in(between, tokenizer) if not all(c.isalnum() or c.isspace() for c in token)
    }
    return special | marks


@per_tokenizer
def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text to put before a piece that stands amid a text, where the tokenizer treats the start of a text differently
    from its middle (SentencePiece's leading space); empty where it does not.
    """
    for anchor in ("\n", "a", "="):
        before, alone, joined = _ids([anchor, "m", f"{anchor}m"], tokenizer)
        if before and joined[: len(before)] == before and joined[len(before) :]:
            return anchor if joined[len(before) :] != alone else ""
    return ""


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
