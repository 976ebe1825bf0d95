"""Turns in the form that a tokenizer's chat template reads: arguments of tool calls, control tokens as letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kleash.data.chat_template import MARK, per_tokenizer, render, template_of
from kleash.data.group import Message, Response
from kleash.data.letters import cut_turns
from kleash.data.message_fields import with_arguments
from kleash.errors import DataError, ModelError


def prompt_turns(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[Message, ...]:
    """Turns as the template reads them: no text in them spells a control token (see `letters`)."""
    as_text = any("tool_calls" in turn for turn in turns) and _prints_text(tokenizer)
    return cut_turns([with_arguments(turn, as_text=as_text) for turn in turns], tokenizer)


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


@per_tokenizer
def _prints_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template prints the arguments of a tool call as they are, so that they have to be text."""

    def printed(arguments: Any) -> str:
        call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": arguments}}
        turns: list[Message] = [
            {"role": "user", "content": MARK.format(0)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            return render(turns, tokenizer, add_generation_prompt=False)
        except (DataError, ModelError):
            return ""

    value = {"argument": "its value"}
    text = json.dumps(value)
    return text in printed(text) and text not in printed(value)
