"""What the field writes into a turn beside role and content: tool calls, and whether an answer is trained.

OpenAI gives the arguments of a tool call as JSON text; most templates print an object, and some print text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kleash.data.group import Message
from kleash.errors import DataError
from kleash.parse import UnreadableError, parse_json

TRAINED = ("weight", "loss_mask", "train", "trainable", "training", "loss")
"""Names under which the field says of a turn of the assistant whether it is trained: OpenAI and mistral-finetune, verl,
axolotl, ms-swift.
"""


def is_trained(turn: Message) -> bool:
    """Whether the answer is trained; one whose weight is 0 is forced."""
    return all(bool(turn[name]) for name in TRAINED if name in turn)


def check_weight(turn: Message, where: str) -> None:
    """Refuse a weight between 0 and 1, or one that is not a number.

    Raises:
        DataError: naming the turn and the weight.
    """
    for name in TRAINED:
        if name in turn and turn[name] not in (0, 1):
            raise DataError(
                f"'{where}' has the {name} {turn[name]!r}; a turn is trained (1 or true) or not (0 or false), "
                "and kleash has no weights between"
            )


def tool_calls(turn: Message) -> list[Mapping[str, Any]]:
    """The tool calls of a turn; a list may be written in JSON.

    Raises:
        DataError: they are not a list of objects.
    """
    calls = turn.get("tool_calls") or []
    if isinstance(calls, str):
        calls = _json(calls, "'tool_calls'")
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError("'tool_calls' must be a list of objects, each with a function's name and arguments")
    return list(calls)


def with_arguments(turn: Message, *, as_text: bool) -> Message:
    """A turn with the arguments of its tool calls as JSON text, or as objects; one without calls has no such key.

    Raises:
        DataError: they are not JSON.
    """
    if "tool_calls" not in turn:
        return turn

    def converted(call: Mapping[str, Any]) -> Mapping[str, Any]:
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": converted(call["function"])}
        if "arguments" not in call:
            return call
        arguments = call["arguments"]
        value = _json(arguments, "the arguments of a tool call") if isinstance(arguments, str) else arguments
        return {**call, "arguments": json.dumps(value, ensure_ascii=False) if as_text else value}

    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    calls = [converted(call) for call in tool_calls(turn)]
    return {**rest, "tool_calls": calls} if calls else rest


def with_marked_arguments(call: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    """A tool call with a mark for its arguments, which stay text where they were."""
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": with_marked_arguments(call["function"], mark)}
    value = {"argument": mark}
    as_text = isinstance(call.get("arguments"), str)
    return {**call, "arguments": json.dumps(value, ensure_ascii=False) if as_text else value}


def _json(text: str, what: str) -> Any:
    try:
        return parse_json(text) if text.strip() else {}
    except UnreadableError as error:
        raise DataError(f"{what} is text that is not JSON ({error}): {text[:80]!r}; correct the row") from None
