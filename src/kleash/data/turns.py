"""Turns in the form that a tokenizer's chat template reads: arguments of tool calls, control tokens as letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_template import MARK, last_control_token, name_of, per_tokenizer, render, template_of
from kleash.data.group import Message, Response
from kleash.data.letters import cut_turns
from kleash.data.message_fields import tool_calls, with_arguments
from kleash.errors import DataError, ModelError


def prompt_turns(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[Message, ...]:
    """Turns as the template reads them: no text in them spells a control token (see `letters`)."""
    if any(tool_calls(turn) for turn in turns):
        kind, _ = _measure(tokenizer)
        if kind is None:
            raise DataError(
                f"the chat template of {name_of(tokenizer)} leaves out tool calls; use one that shows them, or leave "
                "the row out"
            )
        turns = [with_arguments(turn, as_text=kind is str) for turn in turns]
    return cut_turns(turns, tokenizer)


def response_turns(response: Response, tokenizer: PreTrainedTokenizerBase) -> tuple[Message, ...]:
    """The turns of a response up to its last answer, as the template reads them.

    An end token that the data spell at the end of an answer is left out, since the template puts one there.

    Raises:
        DataError: the response does not begin with an answer.
    """
    content = response.content
    if content is None:
        raise DataError("a response has neither text nor token ids; give it one of them")
    turns = (
        [{"role": "assistant", "content": content}] if isinstance(content, str) else [dict(turn) for turn in content]
    )
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns or turns[0]["role"] != "assistant":
        raise DataError("a response does not begin with an answer; its first turn must be the assistant's")
    end = template_of(tokenizer).end_token
    for turn in turns:
        if turn["role"] == "assistant":
            for token in (end, tokenizer.eos_token or end):
                turn["content"] = str(turn["content"]).removesuffix(str(token))
    return prompt_turns(turns, tokenizer)


def call_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token, or other text, that ends a turn with tool calls; None where the template puts none there."""
    return _measure(tokenizer)[1]


@per_tokenizer
def _measure(tokenizer: PreTrainedTokenizerBase) -> tuple[type | None, str | None]:
    """The kind of arguments that the template prints as JSON, text or objects (None: it leaves tool calls out), and the
    token that ends a turn with tool calls.
    """
    value = {"argument": MARK.format(1)}
    text = json.dumps(value, ensure_ascii=False)
    as_object, as_text = _printed(value, tokenizer), _printed(text, tokenizer)
    if as_object is None and as_text is None:
        return dict, None  # it refuses this call, and may show those of the data
    kind = str if text in (as_text or "") and text not in (as_object or "") else dict
    _, mark, tail = ((as_text if kind is str else as_object) or "").rpartition(MARK.format(1))
    end = last_control_token(tail, tokenizer) or tail.removeprefix('"}').strip()
    return (kind, end or None) if mark else (None, None)


def _printed(arguments: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A tool call as the template prints it; None where it refuses it."""
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns: list[Message] = [
        {"role": "user", "content": MARK.format(0)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        return render(turns, tokenizer, add_generation_prompt=False)
    except (DataError, ModelError):
        return None
