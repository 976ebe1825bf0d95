"""Rows that Python passes: lists of mappings, `datasets`, data frames, tables, iterators; as a list of plain rows."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from kleash.data.group import Group
from kleash.data.row_files import without_nulls
from kleash.data.schemas import Row, to_row
from kleash.errors import DataError, described
from kleash.live import LiveObject

KINDS = "a list of rows (dicts such as {'prompt': …, 'response': …}), a Dataset, a DataFrame, a path or a hub name"


def live_rows(value: Any, *, argument: str) -> LiveObject:
    """Rows that were passed in place of a name. They are read once, here, so that an iterator may be given.

    Args:
        value: a list or another iterable of mappings or `Group`s, a dataset of `datasets` (of a `DatasetDict` its only
            split, else `train`), a data frame of pandas or polars, a table of Arrow.
        argument: its name, for messages.

    Raises:
        DataError: it is something else, or a row is not a mapping, or there is none.
    """
    source = _split_of(value, argument)
    items: Iterable[Any]
    if hasattr(source, "to_pylist"):  # a table of Arrow
        items = source.to_pylist()
    elif hasattr(source, "to_dicts"):  # polars
        items = source.to_dicts()
    elif hasattr(source, "to_dict") and hasattr(source, "columns") and hasattr(source, "iloc"):  # pandas
        items = source.to_dict("records")
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping | os.PathLike):
        items = source
    else:
        raise DataError(f"{argument} is {_described(value)}; give {KINDS}")
    rows = [_row(item, number, argument) for number, item in enumerate(items, start=1)]
    if not rows:
        raise DataError(f"{argument} holds no rows; give at least one")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return LiveObject(f"{len(rows)} rows", rows, digest.hexdigest())


def _split_of(value: Any, argument: str) -> Any:
    """The split of a `DatasetDict` that is meant; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    splits = [name for name, part in value.items() if hasattr(part, "features") and hasattr(part, "info")]
    if not splits or len(splits) < len(value):
        return value
    name = "train" if "train" in splits or len(splits) > 1 else splits[0]
    if name not in splits:
        raise DataError(f"{argument} has the splits {', '.join(splits)}; give one of them, as dataset['{splits[0]}']")
    return value[name]


def _row(item: Any, number: int, argument: str) -> Row:
    if isinstance(item, Group):
        return to_row(item)
    if not isinstance(item, Mapping):
        raise DataError(f"{argument} row {number} is {_described(item)}; a row is a dict such as {{'prompt': …}}")
    row: Row = without_nulls(_plain(item))
    return row


def _plain(value: Any) -> Any:
    """A value in the types of JSON: numbers of numpy and torch are Python's, a gap in a data frame is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "tolist"):  # arrays, tensors and their numbers
        return _plain(value.tolist())
    return None if str(value) in ("NaT", "<NA>") else value


def _described(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{described(value)} ({text if len(text) <= 40 else f'{text[:40]}…'})"
