"""Files into groups and groups into files; what the columns of a row mean is in `schemas`.

Reads the files of `row_files`, folders that `datasets` saved, cloned repositories of data sets, and datasets on the
hub; writes .jsonl, .jsonl.gz, .json, .parquet and `datasets` folders.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kleash.config import DATA, YAML
from kleash.content import refuse_missing
from kleash.data.group import Group
from kleash.data.mixture import parts_of
from kleash.data.other_schemas import read_row, renamed
from kleash.data.row_files import NumberedRows, file_rows, folder_files, parquet_batches, without_nulls
from kleash.data.row_format import AS_IT_IS, RowFormat
from kleash.data.schemas import Row, parse_row, to_row
from kleash.errors import DataError, SavingError
from kleash.io import READABLE_ENDINGS as ENDINGS
from kleash.io import machine_errors, replacing, write_folder
from kleash.live import MARK, live_object
from kleash.parse import UnreadableError, parse_json

# --- reading ---------------------------------------------------------------------------------------------------------


def read_groups(source: str | Path, *, split: str | None = None, row_format: RowFormat = AS_IT_IS) -> Iterator[Group]:
    """The groups of a file, a folder of data or a dataset on the hub, one after the other.

    Args:
        source: a path by its ending (.jsonl, .json, .parquet, .csv, .tsv, .arrow, …), a folder that `datasets` saved, a
            cloned repository of a data set, a `mixture` (.yaml), or `owner/name` (`owner/name:config`) on the hub,
            which is contacted only where the name cannot be a path.
        split: which split of a folder or a hub dataset; its only one, else `train`.
        row_format: names of its columns, and whether text becomes turns.

    Raises:
        DataError: at once if there is nothing to read, otherwise at the first row that cannot be read, naming it.
    """
    return (group for _, group in _all_rows(source, split, row_format))


def stream_groups(source: str, *, start: int = 0, row_format: RowFormat = AS_IT_IS) -> Iterator[Group]:
    """The groups of one source after its first `start` rows, in memory that does not grow with their number.

    Raises:
        DataError: as `read_groups`; or a mixture, or a file that can only be read at once.
    """
    if str(source).endswith(YAML):
        raise DataError(
            f"{source}: a mixture is not streamed, its parts would come one after the other; mix them into one file, "
            "or leave --streaming out"
        )
    return (group for _, group in _with_groups(*_open(source, None, streamed=True), row_format, start))


def read_rows(
    source: str | Path, *, split: str | None = None, row_format: RowFormat = AS_IT_IS
) -> Iterator[tuple[Row, Group]]:
    """Rows, each with its group: unchanged, or in the columns of `schemas` where they have others; see
    `read_groups`.
    """
    return ((_own_row(row, group), group) for row, group in _all_rows(source, split, row_format))


def _all_rows(source: str | Path, split: str | None, row_format: RowFormat) -> Iterator[tuple[Any, Group]]:
    """The rows of a source, or of all parts of a mixture; each is opened at once."""
    rows = [
        _with_groups(*_open(part.data, part.split or split), part.row_format(row_format)) for part in parts_of(source)
    ]
    return chain.from_iterable(rows)


def _own_row(row: Any, group: Group) -> Row:
    try:
        unchanged = parse_row(row) == group
    except DataError:
        unchanged = False
    return dict(row) if unchanged else to_row(group)


def _open(source: str | Path, split: str | None, *, streamed: bool = False) -> tuple[str, NumberedRows]:
    """The name for messages and the numbered rows; fails at once where there is nothing to read.

    Args:
        source: one of `read_groups`, but no mixture.
        split: see there.
        streamed: whether a file that can only be read at once is refused.
    """
    if (live := live_object(source)) is not None:
        return str(source), enumerate(live.value, start=1)
    path = Path(source).expanduser()
    if path.is_dir():
        return path.name, _folder_rows(path, split, streamed=streamed)
    if path.exists():
        if not path.name.endswith(ENDINGS):
            raise DataError(f"{path.name} has an ending that kleash does not read; known: {', '.join(ENDINGS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty; give a file with at least one row")
        return path.name, file_rows(path, streamed=streamed)
    if MARK in str(source):
        refuse_missing(source, DATA)
    if not _is_hub_name(str(source)):
        raise DataError(f"there is no file or folder {source}; give a path that exists, or owner/name on the hub")
    return str(source), _hub_rows(str(source), split)


def _is_hub_name(source: str) -> bool:
    """Whether a name can only mean the hub: `owner/name`, no file ending, and no such folder here."""
    shape = re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+)?", source)
    return shape is not None and not source.endswith((*ENDINGS, ".txt", ".gz")) and not Path(source).parent.exists()


def _with_groups(name: str, rows: NumberedRows, row_format: RowFormat, start: int = 0) -> Iterator[tuple[Any, Group]]:
    """Each row after the first `start` with its group; errors name the row."""
    empty = start == 0
    for number, row in islice(renamed(rows, row_format.columns, name), start, None):
        empty = False
        try:
            yield row, read_row(row, row_format)
        except DataError as error:
            raise DataError(f"{name} row {number}: {error}") from None
    if empty:
        raise DataError(f"{name} holds no rows; give a file with at least one")


# --- datasets --------------------------------------------------------------------------------------------------------


def _folder_rows(path: Path, split: str | None, *, streamed: bool) -> NumberedRows:
    import datasets  # slow to import and rarely needed

    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
        files = folder_files(path, split)
        rows = (row for file in files for _, row in file_rows(file, streamed=streamed))
        return enumerate(rows, start=1)
    try:
        data = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(f"{path} is not a whole folder that `datasets` saved; name a file in it instead") from None
    if isinstance(data, datasets.DatasetDict):
        name = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
        if name not in data:
            raise DataError(f"{path} has no split '{name}'; it has: {', '.join(data)}")
        data = data[name]
    elif split is not None:
        raise DataError(f"{path} has no splits; leave out split '{split}'")
    return ((number, without_nulls(row)) for number, row in enumerate(data, start=1))


def _hub_rows(name: str, split: str | None) -> NumberedRows:
    import datasets

    repository, _, config = name.partition(":")
    try:
        data = datasets.load_dataset(repository, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(data, start=1):
            yield number, without_nulls(row)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises many types; the user needs only the reason
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} is not a path here, and the hub has no such dataset ({reason}); check the name"
        ) from None


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
    """Write rows unchanged, and read them back before they take the place of an older file; see `write_groups`.

    Raises:
        SavingError: what was written does not hold the same rows.
    """
    path = Path(path)
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    passed = RowsPassed(rows)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        with replacing(path) as temporary:
            _write_lines(passed, temporary, compress=path.name.endswith(".gz"))
            _compare(path, passed, _line_rows(temporary, compressed=path.name.endswith(".gz")))
    elif path.name.endswith(".json"):
        items = list(passed)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            _compare(path, passed, parse_json(temporary.read_bytes()))
    elif path.name.endswith(".parquet"):
        table = _table(list(passed), path.name)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)
            _compare(path, passed, chain.from_iterable(map(pa.RecordBatch.to_pylist, parquet_batches(temporary))))
    elif path.suffix:
        raise DataError(
            f"{path.name} has an ending that kleash does not write; known: .jsonl, .jsonl.gz, .json, .parquet"
        )
    else:
        _write_folder(_table(list(passed), path.name), path, passed)
    return passed.count


class RowsPassed:
    """Rows on their way to or from a file, counted and hashed.

    What files hold otherwise and readers take for equal counts as equal: nulls in objects, 1 and 1.0, tuples and lists.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self._digest = hashlib.sha256()
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            self._digest.update(json.dumps(_canonical(row), sort_keys=True, default=str).encode())
            yield row

    @property
    def sha256(self) -> str:
        """Of the rows so far."""
        return self._digest.hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compare(path: Path, passed: RowsPassed, rows: Iterable[Row]) -> None:
    """Refuse a file whose rows are not those that were to be written."""
    read = RowsPassed(rows)
    try:
        deque(read, maxlen=0)
    except (UnreadableError, DataError) as error:
        raise SavingError(f"{path}: what was written cannot be read back ({error}); write .jsonl") from None
    if (read.count, read.sha256) != (passed.count, passed.sha256):
        raise SavingError(
            f"{path}: what was written holds {read.count} rows that are not the {passed.count} in memory; write .jsonl "
            "and check the disk"
        )


def _write_lines(rows: Iterable[Row], path: Path, *, compress: bool) -> None:
    with path.open("wb") as raw:
        # No name and no time in the gzip header: equal groups give equal bytes, and so equal hashes.
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compress else raw
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if compress:
            file.close()


def _line_rows(path: Path, *, compressed: bool) -> Iterator[Row]:
    with gzip.open(path, "rb") if compressed else path.open("rb") as file:
        yield from map(parse_json, file)


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


def _write_folder(table: pa.Table, path: Path, passed: RowsPassed) -> None:
    import datasets

    def fill(folder: Path) -> None:
        datasets.Dataset(table).save_to_disk(str(folder))
        _compare(path, passed, datasets.load_from_disk(str(folder)))

    if path.exists() and not (path / "dataset_info.json").exists():
        raise DataError(f"{path} exists and is not a `datasets` folder; choose another path")
    write_folder(path, fill)
