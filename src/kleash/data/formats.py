"""Files into groups and groups into files; what the columns of a row mean is in `schemas`.

Reads .jsonl, .jsonl.gz, .json (a list, or one object per line), .parquet, folders that `datasets` saved, and datasets
on the hub; writes the same formats, except to the hub.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kleash.data.group import Group
from kleash.data.schemas import Row, parse_row, to_row
from kleash.errors import DataError, MachineError
from kleash.io import ROW_ENDINGS as ENDINGS
from kleash.io import machine_errors, machine_failure, replacing, write_folder
from kleash.parse import UnreadableError, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")

NumberedRows = Iterator[tuple[int, Any]]
"""Rows with their numbers, as an editor counts lines."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_groups(source: str | Path, *, split: str | None = None) -> Iterator[Group]:
    """The groups of a file, a saved `datasets` folder or a dataset on the hub, one after the other.

    Args:
        source: a path by its ending (.jsonl, .jsonl.gz, .json, .parquet), a folder that `datasets` saved, or
            `owner/name` (`owner/name:config`) on the hub. The hub is contacted only where the name cannot be a path.
        split: which split of a folder or a hub dataset; its only one, else `train`.

    Raises:
        DataError: at once if there is nothing to read, otherwise at the first row that cannot be read, naming it.
    """
    return (group for _, group in read_rows(source, split=split))


def read_rows(source: str | Path, *, split: str | None = None) -> Iterator[tuple[Row, Group]]:
    """Rows unchanged, each with its group; see `read_groups`."""
    name, rows = _open(source, split)
    return _with_groups(name, rows)


def _open(source: str | Path, split: str | None) -> tuple[str, NumberedRows]:
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


def _with_groups(name: str, rows: NumberedRows) -> Iterator[tuple[Row, Group]]:
    """Each row with its group; errors name the row."""
    empty = True
    for number, row in rows:
        empty = False
        try:
            yield row, parse_row(row)
        except DataError as error:
            raise DataError(f"{name} row {number}: {error}") from None
    if empty:
        raise DataError(f"{name} holds no rows; give a file with at least one")


# --- files -----------------------------------------------------------------------------------------------------------


def _file_rows(path: Path) -> NumberedRows:
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif ".jsonl" in path.suffixes or not _begins_with_list(path):  # .json often holds lines of JSON
            yield from _line_rows(path)
        else:
            with _open_bytes(path) as file:
                yield from enumerate(parse_json(file.read()), start=1)
    except UnreadableError as error:
        raise DataError(f"{path.name} is not JSON ({error}); give a list of objects, or one object a line") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is a broken gzip file ({error}); compress it again") from None
    except OSError as error:
        raise MachineError(machine_failure(error, path)) from None


def _open_bytes(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _begins_with_list(path: Path) -> bool:
    with _open_bytes(path) as file:
        return file.read(4096).lstrip()[:1] == b"["


def _line_rows(path: Path) -> NumberedRows:
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except UnreadableError as error:
                raise DataError(f"{path.name} row {number}: not JSON ({error}); one object a line") from None
            yield number, row


def _parquet_rows(path: Path) -> NumberedRows:
    number = 0
    for rows in _parquet_batches(path):
        for row in rows:
            number += 1
            yield number, _without_nulls(row)


def _parquet_batches(path: Path) -> Iterator[list[Row]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield batch.to_pylist()
    except Exception as error:  # Arrow raises many types, and Python's own where a value has no equal in Python
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise DataError(f"{path.name} is not a Parquet file, or is damaged ({reason}); write it again") from None


# --- datasets --------------------------------------------------------------------------------------------------------


def _folder_rows(path: Path, split: str | None) -> NumberedRows:
    import datasets  # slow to import and rarely needed

    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(f"{path} is a folder, but not one that `datasets` saved; name a file in it instead") from None
    if isinstance(data, datasets.DatasetDict):
        name = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
        if name not in data:
            raise DataError(f"{path} has no split '{name}'; it has: {', '.join(data)}")
        data = data[name]
    elif split is not None:
        raise DataError(f"{path} has no splits; leave out split '{split}'")
    return ((number, _without_nulls(row)) for number, row in enumerate(data, start=1))


def _hub_rows(name: str, split: str | None) -> NumberedRows:
    import datasets

    repository, _, config = name.partition(":")
    try:
        data = datasets.load_dataset(repository, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(data, start=1):
            yield number, _without_nulls(row)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises many types; the user needs only the reason
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} is not a path here, and the hub has no such dataset ({reason}); check the name"
        ) from None


def _without_nulls(value: Any) -> Any:
    """A value without null keys: Arrow gives every object every key, and null where the row had none."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


# --- writing ---------------------------------------------------------------------------------------------------------


def write_groups(groups: Iterable[Group], path: str | Path) -> int:
    """Write groups in the format of the path's ending, atomically: a reader never sees half a file.

    A path without an ending becomes a `datasets` folder. Sampled responses are written as text.

    Returns:
        The number of rows.

    Raises:
        DataError: an unknown ending, a column that the schema uses, or columns that the format cannot hold.
    """
    return write_rows(map(to_row, groups), path)


def write_rows(rows: Iterable[Row], path: str | Path) -> int:
    """Write rows unchanged; see `write_groups`."""
    path = Path(path)
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        with replacing(path) as temporary:
            return _write_lines(rows, temporary, compress=path.name.endswith(".gz"))
    if path.name.endswith(".json"):
        items = list(rows)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return len(items)
    if path.name.endswith(".parquet"):
        table = _table(list(rows), path.name)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)
        return table.num_rows
    if path.suffix:
        raise DataError(
            f"{path.name} has an ending that kleash does not write; known: .jsonl, .jsonl.gz, .json, .parquet"
        )
    return _write_folder(_table(list(rows), path.name), path)


def _write_lines(rows: Iterable[Row], path: Path, *, compress: bool) -> int:
    count = 0
    with path.open("wb") as raw:
        # No name and no time in the gzip header: equal groups give equal bytes, and so equal hashes.
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compress else raw
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        if compress:
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

    if path.exists() and not (path / "dataset_info.json").exists():
        raise DataError(f"{path} exists and is not a `datasets` folder; choose another path")
    write_folder(path, lambda folder: datasets.Dataset(table).save_to_disk(str(folder)))
    return table.num_rows
