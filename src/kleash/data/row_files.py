r"""The rows of a file by its ending, and the files of a folder of data by its splits.

JSON in every layout: a list, one object a line, one object over several lines. A byte-order mark is skipped, and only
`\n` ends a line. Cells of CSV are text, but for columns that cannot be text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kleash.errors import DataError, MachineError, listed
from kleash.io import READABLE_ENDINGS, Json, machine_failure
from kleash.parse import UnreadableError, parse_json, parse_yaml

logger = logging.getLogger("kleash")

NumberedRows = Iterator[tuple[int, Any]]
"""Rows with their numbers, as an editor counts lines."""

SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in a file's path that name its split."""

METADATA = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})

TURNS = ("prompt", "response", "completion", "chosen", "rejected")
"""Columns of text or of turns; in CSV turns are written in JSON."""

STRUCTURED = (
    "messages", "conversations", "conversation", "responses", "history", "score", "scores", "ranks", "probability",
    "chosen_probability", "finished", "better_response_id",
)  # fmt: skip
"""Columns that cannot be text; in CSV they are written in JSON."""


# --- a file ----------------------------------------------------------------------------------------------------------


def file_rows(path: Path, *, streamed: bool = False) -> NumberedRows:
    """The rows of a file, with their numbers from 1.

    Args:
        path: the file.
        streamed: whether it has to be read row by row.

    Raises:
        DataError: the file is damaged or is not what its ending says; or is one that can only be read at once.
    """
    _refuse_pointer(path)
    try:
        if path.name.endswith(".parquet"):
            yield from _batch_rows(path, parquet_batches(path))
        elif path.name.endswith((".arrow", ".feather")):
            yield from _batch_rows(path, _arrow_batches(path))
        elif path.name.endswith((".csv", ".csv.gz")):
            yield from _table_rows(path, ",")
        elif path.name.endswith((".tsv", ".tsv.gz")):
            yield from _table_rows(path, "\t")
        elif _has_an_object_a_line(path):
            yield from _line_rows(path)
        elif streamed:
            raise DataError(
                f"{path.name} can only be read at once, not streamed; write one object a line (.jsonl) or Parquet, or "
                "leave --streaming out"
            )
        else:
            yield from _value_rows(path)
    except UnreadableError as error:
        raise DataError(f"{path.name} is not JSON ({error}); give a list of objects, or one object a line") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is a broken gzip file ({error}); compress it again") from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path.name} is not CSV ({error}); quote cells that hold quotes or line breaks") from None
    except OSError as error:
        raise MachineError(machine_failure(error, path)) from None


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise DataError(f"{path.name} is a pointer of Git LFS, not the data; run `git lfs pull` in its folder")


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """A file for reading, uncompressed."""
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _has_an_object_a_line(path: Path) -> bool:
    with open_bytes(path) as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        return isinstance(parse_json(first), dict)
    except UnreadableError:
        return False


def _line_rows(path: Path) -> NumberedRows:
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except UnreadableError as error:
                raise DataError(f"{path.name} row {number}: not JSON ({error}); one object a line") from None
            yield number, row


def _value_rows(path: Path) -> NumberedRows:
    """The rows of a file that is a list, or objects over several lines each."""
    with open_bytes(path) as file:
        text = file.read().decode("utf-8-sig")
    number = position = 0
    while start := re.compile(r"\S").search(text, position):
        position = _end_of_value(text, start.start())
        value = parse_json(text[start.start() : position])
        for row in value if isinstance(value, list) else [value]:
            number += 1
            yield number, row


def _end_of_value(text: str, start: int) -> int:
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except ValueError as error:
        raise UnreadableError(str(error)) from None


def parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, by the thousand."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=1000)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source:  # not mapped: a file cut short would end the process
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:  # `datasets` writes streams
            source.seek(0)
            yield from pa.ipc.open_stream(source)
        else:
            yield from (file.get_batch(index) for index in range(file.num_record_batches))


def _batch_rows(path: Path, batches: Iterator[pa.RecordBatch]) -> NumberedRows:
    number = 0
    for rows in _as_lists(path, batches):
        for row in rows:
            number += 1
            yield number, without_nulls(row)


def _as_lists(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[list[Json]]:
    try:
        for batch in batches:
            batch.validate(full=True)  # offsets of a damaged file point beyond its end
            yield batch.to_pylist()
    except Exception as error:  # Arrow raises many types, and Python's own where a value has no equal in Python
        kind = "a Parquet" if path.name.endswith(".parquet") else "an Arrow"
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise DataError(f"{path.name} is not {kind} file, or is damaged ({reason}); write it again") from None


def without_nulls(value: Any) -> Any:
    """A value without null keys: Arrow gives every object every key, and null where the row had none."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _table_rows(path: Path, separator: str) -> NumberedRows:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        names = [name.strip() for name in next(reader, [])]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise DataError(f"{path.name} has two columns {repeated[0]!r}; rename one of them")
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(names):
                raise DataError(
                    f"{path.name} row {number}: {len(cells)} cells under {len(names)} columns; quote cells that hold "
                    "the separator or line breaks"
                )
            try:
                yield number, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell}
            except DataError as error:
                raise DataError(f"{path.name} row {number}: {error}") from None


def _cell(name: str, text: str) -> Any:
    """The value of a cell: text, but for lists of turns and for columns that cannot be text, which are JSON."""
    if text in ("True", "False") and name in STRUCTURED:
        return text == "True"
    if name not in STRUCTURED and not (name in TURNS and re.match(r"\s*\[\s*\{", text)):
        return text
    try:
        return parse_json(text)
    except UnreadableError as error:
        raise DataError(
            f"'{name}' is not JSON ({error}): {text[:60]!r}; write lists and numbers as JSON, or use .jsonl"
        ) from None


# --- a folder --------------------------------------------------------------------------------------------------------


def folder_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a split in a folder of data, as repositories of data sets are laid out.

    A README.md whose YAML has `configs` says which files a split has; otherwise the words of their paths do
    (`data/train-00000-of-00002.parquet`), and files without such a word are `train`.

    Args:
        folder: not one that `datasets` saved.
        split: its name; None: the only one, else `train`.

    Raises:
        DataError: the folder holds no rows, or it does not follow from it which ones are meant.
    """
    files = sorted(file for file in folder.rglob("*") if _holds_rows(file, folder))
    if not files or (folder / "run.json").exists() or (folder / "config.json").exists():
        raise DataError(
            f"{folder} is a folder, but not one that `datasets` saved, nor one of files of rows; name a file"
        )
    splits = _splits_of_readme(folder, files) or _splits_of_names(folder, files)
    name = split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if name not in splits:
        raise DataError(f"{folder} has no split '{name}'; it has: {', '.join(splits)}; name a file in it instead")
    names = [str(file.relative_to(folder)) for file in splits[name]]
    endings = {ending for ending in READABLE_ENDINGS for file in names if file.endswith(ending)}
    if len({ending.removesuffix(".gz") for ending in endings}) > 1:
        raise DataError(
            f"{folder} has the split '{name}' in several formats ({listed(sorted(names), most=8)}); name one"
        )
    logger.info("%s: split %s, read from %s", folder, name, listed(names, most=5))
    return splits[name]


def _holds_rows(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    hidden = any(part.startswith((".", "_")) for part in parts)
    return file.name.endswith(READABLE_ENDINGS) and file.name not in METADATA and not hidden and file.is_file()


def _splits_of_names(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())
        name = next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")
        splits.setdefault(name, []).append(file)
    return splits


def _splits_of_readme(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The splits that the YAML at the head of README.md defines; empty where it defines none."""
    readme = folder / "README.md"
    head = (
        re.match(r"\ufeff?---\s*\n(.*?)\n---", readme.read_text(errors="replace"), re.DOTALL)
        if readme.exists()
        else None
    )
    try:
        card = parse_yaml(head[1]) if head else None
    except UnreadableError as error:
        raise DataError(f"{readme}: invalid YAML at its head ({error}); correct it") from None
    configs = card.get("configs") if isinstance(card, Mapping) else None
    if not configs:
        return {}
    config = _only_config(configs, folder)
    patterns = config.get("data_files") or "**"
    parts = patterns if isinstance(patterns, list) and patterns and isinstance(patterns[0], Mapping) else None
    named = {str(part["split"]): part["path"] for part in parts} if parts else {"train": patterns}
    root = folder / str(config.get("data_dir") or "")
    splits: dict[str, list[Path]] = {}
    for name, paths in named.items():
        globs = [paths] if isinstance(paths, str) else list(paths)
        splits[name] = [file for file in files if any(_matches(file, root, str(pattern)) for pattern in globs)]
        if not splits[name]:
            raise DataError(f"{readme}: no file of the split '{name}' ({', '.join(map(str, globs))}) is there")
    return splits


def _only_config(configs: Any, folder: Path) -> Json:
    """The config of a README that is meant: the only one, or the default."""
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise DataError(f"{folder / 'README.md'}: 'configs' must be a list of objects; correct it")
    defaults = [each for each in configs if each.get("default") or each.get("config_name") == "default"]
    chosen = configs if len(configs) == 1 else defaults
    if len(chosen) != 1:
        names = ", ".join(str(config.get("config_name")) for config in configs)
        raise DataError(f"{folder} has several configs ({names}); name one of its files or folders instead")
    config: Json = chosen[0]
    return config


def _matches(file: Path, root: Path, pattern: str) -> bool:
    if not file.is_relative_to(root):
        return False
    return fnmatch(str(file.relative_to(root)), pattern.removeprefix("./").replace("**/", "*"))
