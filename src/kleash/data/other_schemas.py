"""Rows as other tools write them into rows of `schemas`, and which columns win where a row fits two schemas.

`SCHEMAS` is the table of precedence, first to last (docs/data.md). A row that fits two of them is read by the first one
if both say the same; if they would give other tokens, the row is refused, since a choice here would be a guess. A
mapping of columns (`--columns prompt=question`) renames and chooses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from kleash.data.group import Group, Message, Response, canonical_prompt
from kleash.data.row_files import NumberedRows
from kleash.data.row_format import RowFormat
from kleash.data.schemas import SCHEMAS as OWN_SCHEMAS
from kleash.data.schemas import Row, columns_of, parse_row
from kleash.errors import DataError
from kleash.parse import UnreadableError, parse_json

ROWS_TO_LOOK_AT = 1000
"""Rows in which every column of a mapping has to occur."""

ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system", "developer": "developer",
    "tool": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
"""Speakers of ShareGPT turns → roles."""

CALLS = ("function_call", "tool_call")
"""Speakers whose text is a tool call in JSON."""

NUMBERED = re.compile(r"(response|completion|answer|output|conversation)_?(\d|[abcd])")
"""Columns of several responses: `response_0`, `response_1`; `answer_a`, `answer_b`; …"""

BETTER = ("better_response_id", "winner", "preference")
"""Columns that name the better one of several responses: by its number, its letter or its column; or `tie`."""


@dataclass(frozen=True)
class Schema:
    """Columns that belong together, and how to read them."""

    name: str
    columns: tuple[str, ...]
    """What it reads."""
    names: Callable[[Row], set[str]]
    """The columns by which a row fits; empty where it does not."""
    read: Callable[[Row], Row]
    """A row that fits, in the columns of `parse_row`."""
    compared: tuple[str, ...] = ()
    """Columns of other schemas that `parse_row` compares with its own."""

    def reads(self, columns: Row) -> set[str]:
        """Every column that it may read of a row."""
        return {*self.columns, *self.compared, *self.names(columns)}


def read_row(row: Any, row_format: RowFormat) -> Group:
    """A row of any known schema as a group; its columns are renamed already (`renamed`).

    Raises:
        DataError: no schema fits, or two that disagree; a column is wrong.
    """
    if not isinstance(row, Mapping):
        return parse_row(row)
    columns = {name: value for name, value in row.items() if value is not None}
    fitting = [schema for schema in SCHEMAS if schema.names(columns)]
    mapped = (row_format.columns or {}).keys() & {name for schema in SCHEMAS for name in schema.columns}
    if "question" not in mapped:
        mapped -= {"answer"}  # by itself it names the column that verifiers read, beside any schema
    chosen = [schema for schema in fitting if mapped <= set(schema.columns)]
    if not chosen:
        missing = f"with the columns of --columns ({columns_of(mapped)}) " if mapped else ""
        raise DataError(
            f"{missing}none of the known schemas fits the columns {columns_of(row)}; a row has one of: {OWN_SCHEMAS}; "
            "or name its columns: --columns prompt=…,response=…"
        )
    first = chosen[0]
    rivals = [schema for schema in fitting if schema.names(columns) - first.reads(columns)]
    if mapped:
        return _read(first, _without(columns, rivals, first), row_format)
    others = {schema.name: group for schema in rivals if (group := _read_if_possible(schema, columns, row_format))}
    rivals = [schema for schema in rivals if schema.name in others]
    group = _read(first, _without(columns, rivals, first), row_format)
    for rival in rivals:
        if not _agree(group, others[rival.name]):
            raise DataError(
                f"the columns fit two schemas with different words, '{first.name}' and '{rival.name}'; choose: "
                f"--columns {_example(first, columns)} or --columns {_example(rival, columns)}"
            )
    return group


def renamed(rows: NumberedRows, mapping: Mapping[str, str] | None, source: str) -> NumberedRows:
    """Rows with the names that a mapping gives to their columns.

    Raises:
        DataError: the first rows lack a column; the message lists those present.
    """
    if not mapping:
        yield from rows
        return
    head = list(islice(rows, ROWS_TO_LOOK_AT))
    present = {name for _, row in head if isinstance(row, Mapping) for name in row}
    for name in mapping.values() if head else ():
        if name not in present:
            raise DataError(f"{source} has no column {name!r}, named by --columns; it has: {columns_of(present)}")
    for number, row in chain(head, rows):
        if not isinstance(row, Mapping):
            yield number, row
            continue
        others = {name: value for name, value in row.items() if name not in (*mapping, *mapping.values())}
        yield number, {new: row[name] for new, name in mapping.items() if name in row} | others


def _read(schema: Schema, columns: Row, row_format: RowFormat) -> Group:
    return parse_row(schema.read(columns), as_chat=row_format.as_chat)


def _read_if_possible(schema: Schema, columns: Row, row_format: RowFormat) -> Group | None:
    """The row by one schema; None where its columns hold something else than the schema means."""
    rivals = [rival for rival in SCHEMAS if rival is not schema]
    try:
        return _read(schema, _without(columns, rivals, schema), row_format)
    except DataError:
        return None


def _without(columns: Row, rivals: Sequence[Schema], schema: Schema) -> Row:
    """The columns without those by which rivals fit and this schema does not."""
    names = {name for rival in rivals for name in rival.names(columns)} - schema.reads(columns)
    return {name: value for name, value in columns.items() if name not in names}


def _agree(first: Group, second: Group) -> bool:
    """Whether two readings of a row hold the same words."""
    if not first.responses or not second.responses:
        return canonical_prompt(_turns_of(first.prompt)) == canonical_prompt(_turns_of(second.prompt))
    a, b = _conversations(first), _conversations(second)
    return a <= b or b <= a


def _conversations(group: Group) -> set[str]:
    return {
        repr(canonical_prompt([*_turns_of(group.prompt), *_answer_turns(response)])) for response in group.responses
    }


def _turns_of(content: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": content}] if isinstance(content, str) else list(content)


def _answer_turns(response: Response) -> list[Message]:
    if isinstance(response.content, str):
        return [{"role": "assistant", "content": response.content}]
    return list(response.content or ())


def _example(schema: Schema, columns: Row) -> str:
    """What to give as `--columns` to choose a schema."""
    return ",".join(f"{name}={name}" for name in schema.columns if name in columns)


# --- the schemas -----------------------------------------------------------------------------------------------------


def _present(*names: str) -> Callable[[Row], set[str]]:
    """Fits where all of some columns are there."""
    return lambda columns: set(names) if set(names) <= columns.keys() else set()


def _turns(name: str) -> Callable[[Row], set[str]]:
    """Fits where a column is a list."""
    return lambda columns: {name} if isinstance(columns.get(name), list | tuple) else set()


def _preference_names(columns: Row) -> set[str]:
    return {"chosen", "rejected"} & columns.keys()


def _read_preference(columns: Row) -> Row:
    """A preference whose prompt may stand in the columns of another tool, and whose sides may be lists of texts."""
    row = dict(columns)
    for side in _preference_names(row):
        row[side] = [row[side]] if isinstance(row[side], Mapping) else row[side]
        row[side] = _from_sharegpt(row[side])
    if "prompt" not in row:
        if "conversations" in row:
            row["prompt"] = _from_sharegpt(row.pop("conversations"))
        elif "instruction" in row:
            row = _read_alpaca(row)
        elif "question" in row:
            row["prompt"] = row.pop("question")
    sides = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(side, list) and side and all(isinstance(text, str) for text in side) for side in sides):
        return row
    chosen, rejected = row.pop("chosen"), row.pop("rejected")  # lists of texts (RewardBench 2)
    if len(chosen) == len(rejected) == 1:
        return {**row, "chosen": chosen[0], "rejected": rejected[0]}
    return {**row, "responses": [*chosen, *rejected], "ranks": [0] * len(chosen) + [1] * len(rejected)}


def _numbered_names(columns: Row) -> set[str]:
    """The columns of several responses, in order; empty where there are fewer than two of one kind or no prompt."""
    stems: dict[str, set[str]] = {}
    for name in columns:
        if match := NUMBERED.fullmatch(name):
            stems.setdefault(match[1], set()).add(name)
    stem = next((stem for stem, names in stems.items() if len(names) > 1), None)
    if stem is None or not (stem == "conversation" or {"prompt", "question", "instruction"} & columns.keys()):
        return set()
    return stems[stem]


def _read_numbered(columns: Row) -> Row:
    row, names = dict(columns), sorted(_numbered_names(columns))
    responses = [_from_sharegpt(row.pop(name)) for name in names]
    if "prompt" not in row and "instruction" in row:
        row = _read_alpaca(row)
    elif "prompt" not in row and "question" in row:
        row["prompt"] = row.pop("question")
    label = next((name for name in BETTER if name in row), None)
    better = None if label is None else _better(row.pop(label), label, names)
    if names[0].startswith("conversation"):
        if len(names) != 2 or label is None:
            raise DataError(f"{' and '.join(map(repr, names))} need 'winner', which names the better one of two")
        first = better or 0
        return {**row, "chosen": responses[first], "rejected": responses[1 - first],
                "chosen_probability": 0.5 if better is None else 1.0}  # fmt: skip
    row["responses"] = responses
    if label is not None and len(names) == 2:
        row["probability"] = 0.5 if better is None else float(better == 0)
    elif label is not None:
        row["ranks"] = [int(better is not None and place != better) for place in range(len(names))]
    return row


def _better(value: Any, column: str, names: Sequence[str]) -> int | None:
    """The place of the response that a label names; None for a tie."""
    text = str(value).strip().lower()
    if text.startswith("tie"):
        return None
    places = [place for place, name in enumerate(names) if text == name or text.split("_")[-1] == name[-1]]
    if isinstance(value, bool) or len(places) != 1:
        raise DataError(f"'{column}' is {value!r}; it must name one of {', '.join(names)}, or be 'tie'")
    return places[0]


def _read_turns(name: str) -> Callable[[Row], Row]:
    def read(columns: Row) -> Row:
        row = dict(columns)
        return {"messages": _from_sharegpt(row.pop(name)), **row}

    return read


def _read_prompt(columns: Row) -> Row:
    turns = ("prompt", "response", "completion")
    return {name: _from_sharegpt(value) if name in turns else value for name, value in columns.items()}


def _read_alpaca(columns: Row) -> Row:
    """Instruction, input and output; turns where the row has a history or a system prompt."""
    row = dict(columns)
    request, more = row.pop("instruction"), row.pop("input", "")
    if isinstance(request, str) and isinstance(more, str) and more.strip():
        request = f"{request}\n{more}" if request.strip() else more
    history = row.pop("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError("'history' must be a list of pairs, each a request and its answer")
    if history or str(row.get("system") or "").strip():
        past = [
            {"role": role, "content": text}
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        request = [*past, {"role": "user", "content": request}]
    if "output" in row:
        row["response"] = row.pop("output")
    return {**row, "prompt": request}


def _read_question(columns: Row) -> Row:
    """A question, and its answer where that is text; the answer stays a column, which verifiers read."""
    row = dict(columns)
    answer = {"response": row["answer"]} if isinstance(row.get("answer"), str) else {}
    return {"prompt": row.pop("question"), **answer, **row}


def _text_names(columns: Row) -> set[str]:
    return {"text"} if isinstance(columns.get("text"), str) else set()


def _read_text(columns: Row) -> Row:
    """Text without a prompt, for language modelling: all its tokens are trained."""
    row = dict(columns)
    return {"prompt": "", "response": row.pop("text"), **row}


def _prompt_names(columns: Row) -> set[str]:
    return {"prompt", "response", "completion", "responses"} & columns.keys() if "prompt" in columns else set()


ALPACA = ("instruction", "input", "output", "history", "system")

SCHEMAS = (
    Schema(
        "chosen and rejected",
        ("chosen", "rejected", "prompt", "question", "conversations", *ALPACA),
        _preference_names,
        _read_preference,
    ),
    Schema(
        "several responses",
        ("prompt", "question", "instruction", "input", "system", *BETTER),
        _numbered_names,
        _read_numbered,
    ),
    Schema("messages", ("messages",), _present("messages"), _read_turns("messages"), compared=("prompt",)),
    Schema("conversations (ShareGPT)", ("conversations",), _turns("conversations"), _read_turns("conversations")),
    Schema("conversation (ShareGPT)", ("conversation",), _turns("conversation"), _read_turns("conversation")),
    Schema("prompt and response", ("prompt", "response", "completion", "responses"), _prompt_names, _read_prompt),
    Schema("instruction and output (Alpaca)", ALPACA, _present("instruction", "output"), _read_alpaca),
    Schema("question and answer", ("question", "answer"), _present("question"), _read_question),
    Schema("text", ("text",), _text_names, _read_text),
)
"""The schemas by precedence."""


# --- turns -----------------------------------------------------------------------------------------------------------


def _from_sharegpt(content: Any) -> Any:
    """Turns of ShareGPT (`from`, `value`) as turns with role and content; everything else unchanged."""
    if not isinstance(content, list | tuple):
        return content
    return [
        _turn(turn) if isinstance(turn, Mapping) and "from" in turn and "value" in turn else turn for turn in content
    ]


def _turn(turn: Mapping[str, Any]) -> Message:
    speaker = str(turn["from"]).strip().lower()
    if speaker not in ROLES:
        raise DataError(f"a turn is from {turn['from']!r}; known speakers: {', '.join(ROLES)}")
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    if speaker in CALLS:
        return {"role": "assistant", "content": "", "tool_calls": _calls(turn["value"]), **rest}
    return {"role": ROLES[speaker], "content": turn["value"], **rest}


def _calls(text: Any) -> list[Message]:
    try:
        value = parse_json(text) if isinstance(text, str) else text
    except UnreadableError:
        value = None
    calls: Iterable[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise DataError(f"a tool call is not JSON with name and arguments: {str(text)[:60]!r}")
    return [{"type": "function", "function": dict(call)} for call in calls]
