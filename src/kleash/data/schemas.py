"""Rows into groups and groups into rows, in the hub's own schemas.

The columns of a row tell its kind:

    messages                            a demonstration: the answers of a conversation (where none is, a prompt)
    prompt                              a prompt
    prompt, response (or completion)    a demonstration; with `score` a scored response
    prompt, responses                   K responses; with `score`, `ranks` or `probability` their label
    prompt, chosen, rejected            a preference; soft with `chosen_probability` (or `probability`)
    chosen, rejected                    the same as whole conversations, which share their beginning

Prompts and responses are text or turns (`[{"role": ..., "content": ...}]`). `finished` is false (or a list) where a
response was cut off, `annotator` names the labeller. Other columns are kept in `Group.columns`; null is read as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kleash.data.group import Content, Group, Label, Message, Preference, Ranking, Response, Scores
from kleash.data.message_fields import check_weight, tool_calls, with_arguments
from kleash.data.template_columns import SYSTEM, template_variables
from kleash.errors import DataError, listed

ROLES = ("system", "developer", "user", "assistant", "tool")
SCHEMA_COLUMNS = {
    *("messages", "prompt", "chosen", "rejected", "response", "completion", "responses"),
    *("score", "scores", "ranks", "probability", "chosen_probability", "annotator", "finished"),
}
SCHEMAS = "messages; prompt; prompt + response; prompt + responses; prompt + chosen + rejected; chosen + rejected"

Row = dict[str, Any]


# --- a row into a group ----------------------------------------------------------------------------------------------


def parse_row(row: Any, *, as_chat: bool = False) -> Group:
    """One row as a group; the module's docstring has the schemas.

    Args:
        row: an object with named columns.
        as_chat: whether a prompt of plain text becomes one turn of the user.

    Raises:
        DataError: a column is missing or wrong; the message names the column, not the row.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row is an object with named columns, got {_kind(row)}")
    # Each reader below removes the columns that it reads; the remaining ones become the group's columns.
    columns = {name: value for name, value in row.items() if value is not None}
    if "chosen" in columns or "rejected" in columns:
        return _with_template_columns(_as_chat(_read_preference(columns), as_chat))
    if "messages" in columns:
        return _with_template_columns(_read_conversation(columns))
    if "prompt" in columns:
        return _with_template_columns(_as_chat(_read_prompt(columns), as_chat))
    raise DataError(f"none of the known schemas fits the columns {columns_of(row)}; a row has one of: {SCHEMAS}")


def columns_of(row: Iterable[object]) -> str:
    """The names of columns or keys, each cut where it is long, for a message."""
    return listed(sorted(repr(str(name)[:60]) for name in row), most=12)


def _as_chat(group: Group, as_chat: bool) -> Group:
    """The group with its prompt of text as one turn of the user; text without a prompt stays text."""
    if not as_chat or not isinstance(group.prompt, str) or not group.prompt:
        return group
    return replace(group, prompt=({"role": "user", "content": group.prompt},))


def _with_template_columns(group: Group) -> Group:
    """A conversation with its system column as the first turn, and with the template's columns checked."""
    if isinstance(group.prompt, str):
        return group
    template_variables(group.columns)
    name = next((name for name in SYSTEM if isinstance(group.columns.get(name), str)), None)
    if name is None:
        return group
    system = _text(group.columns[name], name)
    columns = {column: value for column, value in group.columns.items() if column != name}
    if group.prompt[0]["role"] in ("system", "developer"):
        if system.strip() not in ("", group.prompt[0]["content"].strip()):
            raise DataError(f"'{name}' is another text than the system turn of the row; leave one of them out")
        return replace(group, columns=columns)
    turn = {"role": "system", "content": system}
    return replace(group, prompt=(turn, *group.prompt) if system.strip() else group.prompt, columns=columns)


def _read_preference(columns: Row) -> Group:
    prompt, chosen, rejected = _read_pair(columns)
    for name, content in (("chosen", chosen), ("rejected", rejected)):
        _check_response(prompt, content, name)
    column = _only_column(columns, ("chosen_probability", "probability"), "mean the same; give one of them")
    probability = 1.0 if column is None else _probability(columns.pop(column), column)
    finished = _pop_finished(columns, 2)
    responses = Response(chosen, finished=finished[0]), Response(rejected, finished=finished[1])
    return Group(prompt, responses, Preference(probability, _pop_annotator(columns)), columns)


def _read_pair(columns: Row) -> tuple[Content, Content, Content]:
    """Prompt and both responses, from a separate prompt or from the common beginning of two conversations."""
    for column in ("chosen", "rejected"):
        if column not in columns:
            raise DataError(f"'{column}' is missing; a preference row needs prompt, chosen and rejected")
    chosen, rejected = (_content(columns.pop(column), column) for column in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("'chosen' and 'rejected' are of different kinds; both must be text or both lists of turns")
    prompt = _content(columns.pop("prompt"), "prompt") if "prompt" in columns else None
    whole = not isinstance(chosen, str) and chosen[0]["role"] != "assistant"
    if prompt is not None and not whole:
        return prompt, chosen, rejected
    shared, chosen, rejected = _split_conversations(chosen, rejected)
    if prompt is not None and not _begins_with(shared, prompt):
        raise DataError("'prompt' is not what 'chosen' and 'rejected' begin with; correct it, or choose by --columns")
    return shared, chosen, rejected


def _read_conversation(columns: Row) -> Group:
    turns = _content(columns.pop("messages"), "messages")
    if isinstance(turns, str):
        raise DataError("'messages' is text; it must be a list of turns with role and content")
    if "prompt" in columns and not _begins_with(turns, _content(columns.pop("prompt"), "prompt")):
        raise DataError("'prompt' is not what 'messages' begins with; correct it, or choose by --columns")
    start = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    if start == len(turns):
        return Group(turns, columns=columns)
    if start == 0:
        raise DataError("'messages' begins with the assistant; a conversation begins with a system or a user turn")
    (finished,) = _pop_finished(columns, 1)
    return Group(turns[:start], (Response(turns[start:], finished=finished),), None, columns)


def _read_prompt(columns: Row) -> Group:
    """A prompt with any number of responses, and their label."""
    prompt = _content(columns.pop("prompt"), "prompt")
    column = _only_column(columns, ("response", "completion", "responses"), "together are ambiguous; give one of them")
    if column is None:
        return Group(prompt, columns=columns)
    contents = _response_contents(columns.pop(column), column)
    for content in contents:
        _check_response(prompt, content, column)
    finished = _pop_finished(columns, len(contents))
    responses = tuple(Response(content, finished=end) for content, end in zip(contents, finished, strict=True))
    return Group(prompt, responses, _pop_label(columns, len(contents)), columns)


def _response_contents(value: Any, column: str) -> list[Content]:
    if column != "responses":
        return [_content(value, column)]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        raise DataError("'responses' must be a list with at least one response (text, or a list of turns)")
    contents = [_content(item, f"responses[{i}]") for i, item in enumerate(value)]
    if len({isinstance(content, str) for content in contents}) > 1:
        raise DataError("'responses' are of different kinds; all must be text or all lists of turns")
    return contents


def _pop_label(columns: Row, size: int) -> Label | None:
    column = _only_column(
        columns,
        ("score", "scores", "ranks", "probability", "chosen_probability"),
        "are more than one label; a row has one",
    )
    if column is None:
        return None
    value = columns.pop(column)
    if column in ("score", "scores"):
        values = _one_for_each(value, column, size)  # null: the reward had no opinion
        return Scores(tuple(math.nan if item is None else _number(item, column) for item in values))
    if column == "ranks":
        ranks = _one_for_each(value, column, size)
        if any(isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 for rank in ranks):
            raise DataError(f"'ranks' must be whole numbers from 0 (the best), got {_excerpt(value)}")
        return Ranking(tuple(ranks), _pop_annotator(columns))
    if size != 2:
        raise DataError(f"'{column}' compares two responses, and the row has {size}; give 'ranks' or 'scores'")
    return Preference(_probability(value, column), _pop_annotator(columns))


# --- whole conversations ---------------------------------------------------------------------------------------------


def _split_conversations(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """The common beginning of two conversations, and the rest of each."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _split_texts(str(chosen), str(rejected))
    shared = _shared_length(chosen, rejected)
    if shared == min(len(chosen), len(rejected)):  # one contains the other: both need a response
        shared = max((i for i, turn in enumerate(chosen[:shared]) if turn["role"] == "assistant"), default=0)
    if shared == 0:
        raise DataError("'chosen' and 'rejected' share no first turn; whole conversations do, else give 'prompt'")
    for column, turn in (("chosen", chosen[shared]), ("rejected", rejected[shared])):
        if turn["role"] != "assistant":
            raise DataError(
                f"'{column}[{shared}]' is the first turn to differ and is by '{turn['role']}'; "
                "the two may differ from an assistant turn on"
            )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Conversations as text (HH-RLHF): they diverge after a speaker's mark."""
    mark = "Assistant:"
    start = chosen.rfind(mark, 0, _shared_length(chosen, rejected))
    if start < 0:
        raise DataError("'prompt' is missing; a preference row needs prompt, chosen and rejected")
    shared = start + len(mark)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning of two sequences."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _begins_with(conversation: Content, prompt: Content) -> bool:
    """Whether a conversation begins with a prompt; one that is text may be any of its turns (UltraFeedback)."""
    if isinstance(prompt, str):
        return any(turn["content"] == prompt for turn in conversation if not isinstance(turn, str))
    return conversation[: len(prompt)] == prompt


# --- columns ---------------------------------------------------------------------------------------------------------


def _only_column(columns: Row, names: Sequence[str], problem: str) -> str | None:
    """Which of some columns a row has; None where it has none of them."""
    present = [name for name in names if name in columns]
    if len(present) > 1:
        raise DataError(f"{' and '.join(map(repr, present))} {problem}")
    return present[0] if present else None


def _content(value: Any, column: str) -> Content:
    if isinstance(value, str):
        return _text(value, column)
    if not isinstance(value, Sequence):
        raise DataError(f"'{column}' is {_kind(value)}; it must be text or a list of turns")
    if not value:
        raise DataError(f"'{column}' has no turns; give at least one, or text")
    return tuple(_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value))


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"'{where}' is {_kind(turn)}; a turn is an object with role and content")
    turn = {name: value for name, value in turn.items() if value is not None}
    if "role" not in turn:
        raise DataError(f"'{where}' has no role; a turn needs role and content, got {columns_of(turn)}")
    if turn["role"] not in ROLES:
        raise DataError(f"'{where}' has the role {_excerpt(turn['role'])}; known roles: {', '.join(ROLES)}")
    if "tool_calls" in turn and not tool_calls(turn):
        del turn["tool_calls"]
    content = turn.get("content", "" if "tool_calls" in turn else None)
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(parts) != len(content):
            raise DataError(f"'{where}' has a part that is not text; kleash reads text only")
        content = "".join(parts)
    if not isinstance(content, str):
        raise DataError(f"'{where}' has {'no' if content is None else 'a wrong'} content; it must be text")
    if turn["role"] == "assistant":
        if "function_call" in turn:
            raise DataError(f"'{where}' has a function_call, which chat templates do not read; give 'tool_calls'")
        check_weight(turn, where)
        with_arguments(turn, as_text=False)  # raises where they are not JSON
    return {**turn, "content": _text(content, where)}


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{where}' holds half a character (a lone surrogate); remove it") from None
    return value


def _check_response(prompt: Content, response: Content, column: str) -> None:
    if isinstance(response, str):
        return  # after turns, text counts as one assistant turn
    if isinstance(prompt, str):
        raise DataError(f"'prompt' is text and '{column}' a list of turns; both must be of one kind")
    if response[0]["role"] != "assistant":
        raise DataError(f"'{column}' begins with a turn by '{response[0]['role']}'; it must begin with the assistant")


def _pop_finished(columns: Row, size: int) -> list[bool]:
    value = columns.pop("finished", True)
    values = [value] * size if isinstance(value, bool) else value
    if not _is_list(values) or len(values) != size or not all(isinstance(item, bool) for item in values):
        raise DataError(f"'finished' must be true, false or a list of {size} of them, got {_excerpt(value)}")
    return list(values)


def _pop_annotator(columns: Row) -> str | None:
    value = columns.pop("annotator", None)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'annotator' must be text, got {_kind(value)}")
    return value


def _probability(value: Any, column: str) -> float:
    number = _number(value, column)
    if not 0 <= number <= 1:
        raise DataError(f"'{column}' is {_excerpt(value)}; a probability lies in [0, 1]")
    return number


def _number(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # JSON's whole numbers have no end
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"'{column}' holds {_excerpt(value)}; it must be a finite number")
    return number


def _one_for_each(value: Any, column: str, size: int) -> list[Any]:
    values = list(value) if _is_list(value) else [value]
    if len(values) != size:
        raise DataError(f"'{column}' has {len(values)} values for {size} responses; give one for each")
    return values


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(value: Any) -> str:
    names = {
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "null",
        dict: "an object",
    }
    return names.get(type(value), "a list" if _is_list(value) else f"a {type(value).__name__}")


def _excerpt(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- a group into a row ----------------------------------------------------------------------------------------------


def to_row(group: Group) -> Row:
    """The row of a group, such that `parse_row` gives the group back.

    Raises:
        DataError: a column of the group has a name that the schema uses.
    """
    texts = [_plain(item.text if item.content is None else item.content) for item in group.responses]
    finished = [item.finished for item in group.responses]
    row: Row = {"prompt": _plain(group.prompt), **_response_columns(group.label, texts), **_label_columns(group)}
    if not all(finished):
        row["finished"] = finished
    columns = {name: value for name, value in group.columns.items() if value is not None}
    clash = sorted(row.keys() & columns.keys())
    row |= columns
    if not clash and columns.keys() & SCHEMA_COLUMNS:
        clash = sorted((columns.keys() & SCHEMA_COLUMNS) - parse_row(row).columns.keys())
    if clash:
        raise DataError(f"the column {clash[0]!r} would be read as part of the row's schema; rename it")
    return row


def _response_columns(label: Label | None, texts: Sequence[Any]) -> Row:
    if isinstance(label, Preference):
        return {"chosen": texts[0], "rejected": texts[1]}
    if len(texts) == 1:
        return {"response": texts[0]}
    return {"responses": list(texts)} if texts else {}


def _label_columns(group: Group) -> Row:
    label = group.label
    columns: Row = {}
    if isinstance(label, Preference) and label.probability != 1:
        columns["chosen_probability"] = label.probability
    if isinstance(label, Scores):
        values = [None if math.isnan(value) else value for value in label.values]
        columns["score"] = values[0] if len(group.responses) == 1 else values
    if isinstance(label, Ranking):
        columns["ranks"] = list(label.ranks)
    if isinstance(label, Preference | Ranking) and label.annotator is not None:
        columns["annotator"] = label.annotator
    return columns


def _plain(content: Content) -> Any:
    return content if isinstance(content, str) else [dict(turn) for turn in content]
