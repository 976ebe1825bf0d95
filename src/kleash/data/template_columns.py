"""Columns of a row that its chat template reads beside the turns: tools, documents, and how to answer.

They stay columns of the group, as they came, so that every stage hands them on, and are read here wherever turns are
rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kleash.errors import DataError
from kleash.parse import UnreadableError, parse_json

LISTS = ("tools", "documents")
FLAGS = ("enable_thinking", "reasoning_effort")
KEYWORDS = "chat_template_kwargs"
TEMPLATE_COLUMNS = (*LISTS, *FLAGS, KEYWORDS)

SYSTEM = ("system", "system_prompt")
"""Columns with the text of a system turn before the prompt."""

RESERVED = frozenset({
    "messages", "conversation", "conversations", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""What `chat_template_kwargs` cannot set: kleash does."""


def template_variables(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives to its chat template beside the turns.

    Lists of objects may be written in JSON, whole or each object, as Parquet sets store them.

    Raises:
        DataError: a column is not what a template can use; the message names it.
    """
    variables = {name: columns[name] for name in FLAGS if name in columns}
    keywords = _parsed(columns.get(KEYWORDS, {}), KEYWORDS) or {}
    if not isinstance(keywords, Mapping):
        raise DataError(f"'{KEYWORDS}' must be an object with the template's variables, got {keywords!r}")
    if RESERVED & keywords.keys():
        raise DataError(f"'{KEYWORDS}' cannot set {sorted(RESERVED & keywords.keys())[0]!r}; remove it")
    variables |= keywords
    for name in LISTS:
        value = variables.pop(name, columns.get(name))
        if items := _objects(value, name):
            variables[name] = items
    return variables


def _objects(value: Any, column: str) -> list[Any]:
    parsed = _parsed(value, column)
    if parsed is None or parsed == []:
        return []
    items = [_parsed(item, column) for item in parsed] if isinstance(parsed, list | tuple) else parsed
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise DataError(f"'{column}' must be a list of objects, or the same in JSON; correct it, or rename the column")
    return items


def _parsed(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except UnreadableError as error:
        raise DataError(
            f"'{column}' is text that is not JSON ({error}); give a list of objects, or rename the column"
        ) from None
