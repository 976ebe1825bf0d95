"""A row's prompt as whoever judges its responses should see it: with what its columns gave to the model.

The chat template puts tools, documents and a system text before the conversation; a judge, a critic and a person who
labels see them as turns there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kleash.data.group import Content, Group, Message
from kleash.data.template_columns import LISTS, SYSTEM, template_variables
from kleash.errors import DataError


def turns_of(prompt: Content) -> tuple[Message, ...]:
    """A prompt as turns; a plain text is one turn of the user."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def shown_prompt(group: Group) -> Content:
    """The prompt, unchanged where there is nothing before it."""
    before = turns_before(group)
    return (*before, *turns_of(group.prompt)) if before else group.prompt


def turns_before(group: Group) -> tuple[Message, ...]:
    """The row's system text (of a plain prompt; turns hold it already), tools and documents, as turns."""
    texts: dict[str, str] = {}
    if isinstance(group.prompt, str):
        texts["system"] = next((str(group.columns[name]) for name in SYSTEM if group.columns.get(name)), "")
    try:
        variables: Mapping[str, Any] = template_variables(group.columns)
    except DataError:  # not what a template can use; the text itself can be read
        variables = group.columns
    for name in LISTS:
        if value := variables.get(name):
            texts[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return tuple({"role": role, "content": text} for role, text in texts.items() if text)
