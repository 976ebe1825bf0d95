"""Files into groups and groups into files, in the hub's own schemas.

A row is told by its columns:

    messages                            a demonstration: the answers of a conversation (where none is, a prompt)
    prompt                              a prompt
    prompt, response (or completion)    a demonstration; with `score` a scored response
    prompt, responses                   K responses; with `score`, `ranks` or `probability` their label
    prompt, chosen, rejected            a preference; soft with `chosen_probability` (or `probability`)
    chosen, rejected                    the same as whole conversations, which share their beginning

Prompts and responses are text or turns (`[{"role": ..., "content": ...}]`). `finished` is false (or a list) where a
response was cut off, `annotator` says who labelled. Other columns are kept in `Group.columns`; null is read as absent.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kleash.data.group import Content, Group, Label, Message, Preference, Ranking, Response, Scores
from kleash.errors import DataError
from kleash.io import ROW_ENDINGS as ENDINGS

ROLES = ("system", "developer", "user", "assistant", "tool")

Row = dict[str, Any]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_groups(source: str | Path, *, split: str | None = None) -> Iterator[Group]:
    """The groups of a file, a saved `datasets` folder or a dataset on the hub, one after the other.

    Args:
        source: a path by its ending (.jsonl, .jsonl.gz, .json, .parquet), a folder that `datasets` saved, or
            `owner/name` (`owner/name:config`) on the hub. The hub is asked only where no such path can be meant.
        split: which split of a folder or a hub dataset; its only one, else `train`.

    Raises:
        DataError: at once where there is nothing to read, or at the row that cannot be read, naming it.
    """
    return (group for _, group in read_rows(source, split=split))


def read_rows(source: str | Path, *, split: str | None = None) -> Iterator[tuple[Row, Group]]:
    """Rows as they stand, each with its group; see `read_groups`."""
    name, rows = _open(source, split)
    return _parsed(name, rows)


def parse_row(row: Any) -> Group:
    """One row as a group; the module's docstring has the schemas.

    Raises:
        DataError: a column is missing or wrong; the message names the column, not the row.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row is an object with named columns, got {_kind(row)}")
    left = {name: value for name, value in row.items() if value is not None}
    if "chosen" in left or "rejected" in left:
        return _preference(left)
    if "messages" in left:
        return _conversation(left)
    if "prompt" in left:
        return _responses(left)
    known = "messages; prompt; prompt + response; prompt + responses; prompt + chosen + rejected; chosen + rejected"
    raise DataError(f"none of the known schemas fits the columns {sorted(row)}; a row has one of: {known}")


def _parsed(name: str, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[Row, Group]]:
    empty = True
    for number, row in rows:
        empty = False
        try:
            yield row, parse_row(row)
        except DataError as error:
            raise DataError(f"{name} row {number}: {error}") from None
    if empty:
        raise DataError(f"{name} holds no rows; give a file with at least one")


def _preference(left: Row) -> Group:
    for column in ("chosen", "rejected"):
        if column not in left:
            raise DataError(f"'{column}' is missing; a preference row needs prompt, chosen and rejected")
    chosen, rejected = _content(left.pop("chosen"), "chosen"), _content(left.pop("rejected"), "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("'chosen' and 'rejected' are of unequal kinds; both must be text or both lists of turns")
    prompt = _content(left.pop("prompt"), "prompt") if "prompt" in left else None
    if prompt is None or (not isinstance(chosen, str) and chosen[0]["role"] != "assistant"):
        shared, chosen, rejected = _split(chosen, rejected)
        if prompt is not None and not _begins(shared, prompt):
            raise DataError("'prompt' is not what 'chosen' and 'rejected' begin with; leave it out, or correct it")
        prompt = shared
    for column, content in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(prompt, content, column)
    named = [column for column in ("chosen_probability", "probability") if column in left]
    if len(named) == 2:
        raise DataError("'chosen_probability' and 'probability' are one thing; give one of them")
    probability = _probability(left.pop(named[0]), named[0]) if named else 1.0
    finished = _finished(left, 2)
    responses = Response(chosen, finished=finished[0]), Response(rejected, finished=finished[1])
    return Group(prompt, responses, Preference(probability, _annotator(left)), left)


def _conversation(left: Row) -> Group:
    turns = _content(left.pop("messages"), "messages")
    if isinstance(turns, str):
        raise DataError("'messages' is text; it must be a list of turns with role and content")
    if "prompt" in left and not _begins(turns, _content(left.pop("prompt"), "prompt")):
        raise DataError("'prompt' is not what 'messages' begins with; leave it out, or correct it")
    start = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    if start == len(turns):
        return Group(turns, columns=left)
    if start == 0:
        raise DataError("'messages' begins with the assistant; a conversation begins with a system or a user turn")
    (finished,) = _finished(left, 1)
    return Group(turns[:start], (Response(turns[start:], finished=finished),), None, left)


def _responses(left: Row) -> Group:
    prompt = _content(left.pop("prompt"), "prompt")
    named = [column for column in ("response", "completion", "responses") if column in left]
    if len(named) > 1:
        raise DataError(f"{' and '.join(map(repr, named))} together are ambiguous; give one of them")
    if not named:
        return Group(prompt, columns=left)
    column = named[0]
    value = left.pop(column)
    if column == "responses":
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
            raise DataError("'responses' must be a list with at least one response (text, or a list of turns)")
        contents = [_content(item, f"responses[{i}]") for i, item in enumerate(value)]
    else:
        contents = [_content(value, column)]
    if len({isinstance(content, str) for content in contents}) > 1:
        raise DataError("'responses' are of unequal kinds; all must be text or all lists of turns")
    for content in contents:
        _check_answer(prompt, content, column)
    finished = _finished(left, len(contents))
    responses = tuple(Response(content, finished=end) for content, end in zip(contents, finished, strict=True))
    return Group(prompt, responses, _label(left, len(contents)), left)


def _label(left: Row, size: int) -> Label | None:
    named = [column for column in ("score", "scores", "ranks", "probability", "chosen_probability") if column in left]
    if not named:
        return None
    if len(named) > 1:
        raise DataError(f"{' and '.join(map(repr, named))} are more than one label; a row has one")
    column, value = named[0], left.pop(named[0])
    if column in ("score", "scores"):
        return Scores(tuple(_number(item, column) for item in _listed(value, column, size)))
    if column == "ranks":
        ranks = _listed(value, column, size)
        if any(isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 for rank in ranks):
            raise DataError(f"'ranks' must be whole numbers from 0 (the best), got {_short(value)}")
        return Ranking(tuple(ranks), _annotator(left))
    if size != 2:
        raise DataError(f"'{column}' compares two responses, and the row has {size}; give 'ranks' or 'scores'")
    return Preference(_probability(value, column), _annotator(left))


def _split(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """What two whole conversations share, and what follows it in each."""
    least = min(len(chosen), len(rejected))
    shared = next((i for i in range(least) if chosen[i] != rejected[i]), least)
    if isinstance(chosen, str) or isinstance(rejected, str):
        # Conversations written out as text (HH-RLHF) part after a speaker's mark.
        shared = str(chosen).rfind("Assistant:", 0, shared) + len("Assistant:")
        if shared < len("Assistant:"):
            raise DataError("'prompt' is missing; a preference row needs prompt, chosen and rejected")
        return chosen[:shared], chosen[shared:], rejected[shared:]
    if shared == least:  # one holds the other: the last answer that both have begins the response
        shared = max((i for i, turn in enumerate(chosen[:least]) if turn["role"] == "assistant"), default=0)
    if shared == 0:
        raise DataError("'chosen' and 'rejected' share no first turn; whole conversations do, else give 'prompt'")
    for column, turn in (("chosen", chosen[shared]), ("rejected", rejected[shared])):
        if turn["role"] != "assistant":
            raise DataError(
                f"'{column}[{shared}]' is the first turn to differ and is by '{turn['role']}'; "
                "the two may differ from an assistant turn on"
            )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _begins(shared: Content, prompt: Content) -> bool:
    if isinstance(prompt, str):
        return any(turn["content"] == prompt for turn in shared if not isinstance(turn, str))
    return shared[: len(prompt)] == prompt


def _content(value: Any, column: str) -> Content:
    if isinstance(value, str):
        return _text(value, column)
    if not isinstance(value, Sequence):
        raise DataError(f"'{column}' is {_kind(value)}; it must be text or a list of turns")
    if not value:
        raise DataError(f"'{column}' has no turns; give at least one, or text")
    return tuple(_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value))


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"'{place}' is {_kind(turn)}; a turn is an object with role and content")
    turn = {name: value for name, value in turn.items() if value is not None}
    if "role" not in turn:
        raise DataError(f"'{place}' has no role; a turn needs role and content, got {sorted(turn)}")
    if turn["role"] not in ROLES:
        raise DataError(f"'{place}' has the role {_short(turn['role'])}; known roles: {', '.join(ROLES)}")
    content = turn.get("content", "" if "tool_calls" in turn else None)
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        if len(parts) != len(content):
            raise DataError(f"'{place}' holds a part that is not text; kleash reads text alone")
        content = "".join(parts)
    if not isinstance(content, str):
        raise DataError(f"'{place}' has {'no' if content is None else 'a wrong'} content; it must be text")
    return {**turn, "content": _text(content, place)}


def _text(value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{place}' holds half a character (a lone surrogate); remove it") from None
    return value


def _check_answer(prompt: Content, response: Content, column: str) -> None:
    if isinstance(response, str):
        return  # after turns, text stands for one assistant turn
    if isinstance(prompt, str):
        raise DataError(f"'prompt' is text and '{column}' a list of turns; both must be of one kind")
    if response[0]["role"] != "assistant":
        raise DataError(f"'{column}' begins with a turn by '{response[0]['role']}'; it must begin with the assistant")


def _finished(left: Row, size: int) -> list[bool]:
    value = left.pop("finished", True)
    values = [value] * size if isinstance(value, bool) else value
    if not _is_list(values) or len(values) != size or not all(isinstance(item, bool) for item in values):
        raise DataError(f"'finished' must be true, false or a list of {size} of them, got {_short(value)}")
    return list(values)


def _annotator(left: Row) -> str | None:
    value = left.pop("annotator", None)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'annotator' must be text, got {_kind(value)}")
    return value


def _probability(value: Any, column: str) -> float:
    number = _number(value, column)
    if not 0 <= number <= 1:
        raise DataError(f"'{column}' is {_short(value)}; a probability lies in [0, 1]")
    return number


def _number(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # JSON's whole numbers have no end
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"'{column}' holds {_short(value)}; it must be a finite number")
    return number


def _listed(value: Any, column: str, size: int) -> list[Any]:
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


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- where rows come from --------------------------------------------------------------------------------------------


def _open(source: str | Path, split: str | None) -> tuple[str, Iterator[tuple[int, Any]]]:
    """The name for messages and the numbered rows; fails at once where there is nothing to read."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.name, _folder_rows(path, split)
    if path.exists():
        if not path.name.endswith(ENDINGS):
            raise DataError(f"{path.name} has an ending that kleash does not read; known: {', '.join(ENDINGS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty; give a file with at least one row")
        return path.name, _file_rows(path)
    if not _is_hub_name(str(source)):
        raise DataError(f"there is no file or folder {source}; give a path that exists, or owner/name on the hub")
    return str(source), _hub_rows(str(source), split)


def _is_hub_name(source: str) -> bool:
    """Whether a name can only mean the hub: `owner/name`, no file ending, and no such folder here."""
    shape = re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+)?", source)
    return (
        shape is not None
        and not source.endswith((*ENDINGS, ".csv", ".txt", ".gz"))
        and not Path(source).parent.exists()
    )


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif ".jsonl" in path.suffixes or not _begins_with_list(path):  # .json often holds lines of JSON
            yield from _line_rows(path)
        else:
            with _open_bytes(path) as file:
                yield from enumerate(json.load(file), start=1)
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name} is not JSON ({error}); give a list of objects, or one object a line") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is a broken gzip file ({error}); make it again") from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8; save it as UTF-8") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path.name} is not a Parquet file ({str(error).splitlines()[0]}); make it again") from None


def _open_bytes(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _begins_with_list(path: Path) -> bool:
    with _open_bytes(path) as file:
        return file.read(4096).lstrip()[:1] == b"["


def _line_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path.name} row {number}: not JSON ({error}); one object a line") from None
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, _without_nulls(row)


def _folder_rows(path: Path, split: str | None) -> Iterator[tuple[int, Any]]:
    import datasets  # slow to import, and few need it

    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(f"{path} is a folder, but not one that `datasets` saved; name a file in it instead") from None
    if isinstance(data, datasets.DatasetDict):
        chosen = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
        if chosen not in data:
            raise DataError(f"{path} has no split '{chosen}'; it has: {', '.join(data)}")
        data = data[chosen]
    elif split is not None:
        raise DataError(f"{path} has no splits; leave out split '{split}'")
    return ((number, _without_nulls(row)) for number, row in enumerate(data, start=1))


def _hub_rows(name: str, split: str | None) -> Iterator[tuple[int, Any]]:
    import datasets

    repository, _, config = name.partition(":")
    try:
        data = datasets.load_dataset(repository, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(data, start=1):
            yield number, _without_nulls(row)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises whatever its layers raise; the user needs the reason alone
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} is no path here, and the hub gave no such dataset ({reason}); check the name"
        ) from None


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object every key; those that a row did not have come back as null."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


# --- writing ---------------------------------------------------------------------------------------------------------


def write_groups(groups: Iterable[Group], path: str | Path) -> int:
    """Write groups by the path's ending, whole or not at all: a reader never sees half a file.

    A path without an ending becomes a `datasets` folder. Sampled responses are written as text.

    Returns:
        The number of rows.

    Raises:
        DataError: an ending that is not known, a column that the schema uses, or columns that the format cannot hold.
    """
    return write_rows(map(to_row, groups), path)


def write_rows(rows: Iterable[Row], path: str | Path) -> int:
    """Write rows as they stand; see `write_groups`."""
    path = Path(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        with _replacing(path) as temporary:
            return _write_lines(rows, temporary, packed=path.name.endswith(".gz"))
    if path.name.endswith(".json"):
        listed = list(rows)
        with _replacing(path) as temporary:
            temporary.write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return len(listed)
    if path.name.endswith(".parquet"):
        table = _table(list(rows), path.name)
        with _replacing(path) as temporary:
            pq.write_table(table, temporary)
        return table.num_rows
    if path.suffix:
        raise DataError(
            f"{path.name} has an ending that kleash does not write; known: .jsonl, .jsonl.gz, .json, .parquet"
        )
    return _write_folder(_table(list(rows), path.name), path)


def to_row(group: Group) -> Row:
    """The row of a group, such that `parse_row` gives the group back.

    Raises:
        DataError: a column of the group bears a name that the schema uses.
    """
    row: Row = {"prompt": _plain(group.prompt)}
    texts = [_plain(item.text if item.content is None else item.content) for item in group.responses]
    finished = [item.finished for item in group.responses]
    label = group.label
    if isinstance(label, Preference):
        row |= {"chosen": texts[0], "rejected": texts[1]}
        if label.probability != 1:
            row["chosen_probability"] = label.probability
    elif len(texts) == 1:
        row["response"] = texts[0]
    elif texts:
        row["responses"] = texts
    if isinstance(label, Scores):
        row["score"] = label.values[0] if len(texts) == 1 else list(label.values)
    if isinstance(label, Ranking):
        row["ranks"] = list(label.ranks)
    if isinstance(label, Preference | Ranking) and label.annotator is not None:
        row["annotator"] = label.annotator
    if not all(finished):
        row["finished"] = finished
    columns = {name: value for name, value in group.columns.items() if value is not None}
    clash = sorted(row.keys() & columns.keys())
    row |= columns
    if not clash and columns.keys() & _SCHEMA:
        clash = sorted((columns.keys() & _SCHEMA) - parse_row(row).columns.keys())
    if clash:
        raise DataError(f"the column {clash[0]!r} would be read as part of the row's schema; rename it")
    return row


_SCHEMA = {
    *("messages", "prompt", "chosen", "rejected", "response", "completion", "responses"),
    *("score", "scores", "ranks", "probability", "chosen_probability", "annotator", "finished"),
}


def _plain(content: Content) -> Any:
    return content if isinstance(content, str) else [dict(turn) for turn in content]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when all went well, and is gone when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only the owner may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_lines(rows: Iterable[Row], path: Path, *, packed: bool) -> int:
    count = 0
    with path.open("wb") as raw:
        # No name and no time in the gzip header: equal groups give equal bytes, and so equal hashes.
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else raw
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        if packed:
            file.close()
    return count


def _table(rows: list[Row], name: str) -> pa.Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    arrays = []
    for column in columns:
        try:
            arrays.append(pa.array([row.get(column) for row in rows]))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise DataError(
                f"{name}: the column '{column}' mixes types, which Arrow cannot hold; write .jsonl"
            ) from None
    return pa.table(arrays, names=columns)


def _write_folder(table: pa.Table, path: Path) -> int:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        datasets.Dataset(table).save_to_disk(str(Path(folder, "data")))
        if path.exists():
            if not (path / "dataset_info.json").exists():
                raise DataError(f"{path} exists and is no `datasets` folder; choose another path")
            path.replace(Path(folder, "old"))
        Path(folder, "data").replace(path)
    return table.num_rows
