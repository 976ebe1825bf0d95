"""Columns of a row that no stage reads, so that they can be named."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kleash.data.group import Group
from kleash.data.message_fields import TRAINED
from kleash.data.template_columns import SYSTEM, TEMPLATE_COLUMNS, template_variables
from kleash.data.unpaired import LABELS
from kleash.errors import listed

READ = frozenset({"role", "content", "tool_calls", "tool_call_id", "id", *TRAINED})
"""Keys of turns that kleash reads itself, or that mean nothing to a model."""

REASONING = frozenset({"reasoning_content", "reasoning", "thinking"})
"""Names of one thing: `transformers` gives it to a template under each of them."""

logger = logging.getLogger("kleash")


def log_unread_columns(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, source: str, *, reads_columns: bool
) -> None:
    """One line with the columns of a source that nothing reads; see `unread_columns`."""
    if unread := unread_columns(groups, tokenizer, reads_columns=reads_columns):
        logger.warning("%s: columns that are not used: %s", source, listed(unread, most=12))


def unread_columns(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, *, reads_columns: bool = False
) -> list[str]:
    """The columns of rows that nothing reads; of a chat template's own, those that this one does not mention.

    Args:
        groups: as they were read.
        tokenizer: whose template.
        reads_columns: whether the stage reads the other columns.
    """
    template = str(tokenizer.chat_template)
    chat = any(not isinstance(group.prompt, str) for group in groups)
    unread: dict[str, str] = {}
    for group in groups:
        for name in group.columns.keys() - unread.keys():
            if name in TEMPLATE_COLUMNS:
                variables = template_variables({name: group.columns[name]}) if chat else {}
                if not chat or any(variable not in template for variable in variables):
                    unread[name] = f"{name} (the chat template does not read it)" if chat else name
            elif name in SYSTEM and isinstance(group.prompt, str):
                unread[name] = f"{name} (plain text has no place for it; give the prompt as turns)"
            elif any(group.columns[name] == response.content for response in group.responses):
                continue  # the answer of a question is both, its response and a column
            elif not reads_columns and name not in LABELS:
                unread[name] = name
        for key in _keys_of_turns(group) - unread.keys():
            if not any(_reads_key(template, name) for name in (REASONING if key in REASONING else {key})):
                unread[key] = f"{key} in turns (the chat template does not read it)"
    return sorted(unread.values())


def _reads_key(template: str, key: str) -> bool:
    name = re.escape(key)
    return re.search(rf"(message|msg|turn|\bm)(\.{name}\b|\[.{name}.\]|\.get\(.{name}\b)", template) is not None


def _keys_of_turns(group: Group) -> set[str]:
    """The keys of turns that only the template can read."""
    contents = [group.prompt, *(response.content for response in group.responses)]
    turns = [turn for content in contents if isinstance(content, tuple) for turn in content]
    return {key for turn in turns for key in turn.keys() - READ - ({"name"} if turn["role"] == "tool" else set())}
