"""Atomic file writes: a new file in the same folder is written and synced, then renamed over the old one.

A kill at any instant leaves either the state before or the state after, and perhaps a copy `.NAME.PROCESS.tmp`, which
`clear_leftovers` removes when the next process takes over.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from kleash.errors import DataError, MachineError
from kleash.lock import process_runs
from kleash.parse import UnreadableError, parse_json

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Endings of the files of rows that kleash reads and writes."""

OLD = ".old"
"""Ending of the hidden name of a folder while the new one takes its place."""
READABLE_ENDINGS = (*ROW_ENDINGS, ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".arrow", ".feather")
"""Endings of the files of rows that kleash reads."""


Json = dict[str, Any]
"""A JSON object: a row of a file, a record, settings as YAML has them."""


def beside(out: Path, part: str, *, ending: str | None = None) -> Path:
    """The name of a second output file of a stage: `best.jsonl` and "pool" give `best.pool.jsonl`, or `best.pool` and
    another ending.
    """
    suffix = next(
        (row_ending for row_ending in sorted(ROW_ENDINGS, key=len, reverse=True) if out.name.endswith(row_ending)), ""
    )
    return out.with_name(f"{out.name.removesuffix(suffix)}.{part}{suffix if ending is None else ending}")


def read_json(path: Path, remedy: str = "delete it or restore it") -> Json:
    """The JSON object of a file.

    Args:
        path: the file.
        remedy: what the user can do where it holds something else.

    Raises:
        DataError: it is not a JSON object.
        MachineError: it cannot be read; a file that may be missing is asked for before.
    """
    try:
        with machine_errors(path):
            value = parse_json(path.read_bytes())
    except UnreadableError as error:
        raise DataError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__} and not a JSON object; {remedy}")
    return value


def read_jsonl(path: Path) -> list[Json]:
    """Rows of a JSONL file that kleash wrote; a last line that is incomplete, after a kill or while it is written, is
    skipped.

    Only a line feed ends a line, none of the other line breaks of Unicode: a model may say those.

    Raises:
        DataError: a line is not a JSON object; names it.
    """
    if not path.exists():
        return []
    with machine_errors(path):
        *lines, last = path.read_bytes().split(b"\n")
    rows: list[Json] = []
    for number, line in enumerate((*lines, last), start=1):
        try:
            row = parse_json(line)
        except UnreadableError as error:
            if number > len(lines):
                break
            raise DataError(f"{path} line {number} is not JSON ({error}); delete the file or restore it") from None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number} is not a JSON object; delete the file or restore it")
        rows.append(row)
    return rows


def refuse_damaged(file: Path, record: Json, shape: type, remedy: str = "delete it or restore it") -> None:
    """Refuse a JSON object without the keys and types that its readers rely on.

    Args:
        file: it was read from.
        record: the object.
        shape: a `TypedDict` or a model of `pydantic`.
        remedy: see `read_json`.

    Raises:
        DataError: names the first key that is wrong.
    """
    try:
        TypeAdapter(shape).validate_python(record)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{file}: '{key}' is damaged ({problem['msg'].lower()}); {remedy}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name next to `path` to write a file to, which replaces `path` if the block succeeds and is deleted otherwise.

    Raises:
        MachineError: the write failed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # by the umask; safetensors writes for the owner only
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by text, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create or replace a folder: `fill` writes into a new folder, which then takes the place of the old one.

    The old one is deleted last. A kill while both are renamed leaves it under its hidden name, from where
    `clear_leftovers` brings it back.
    """
    temporary, old = path.with_name(f".{path.name}.{os.getpid()}.tmp"), path.with_name(f".{path.name}{OLD}")
    with machine_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)  # by the umask; safetensors writes for the owner only
                _sync(file)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left below a folder that no other process writes, and bring back a folder that was
    about to be replaced.

    Folders below that are runs of their own are left to whoever opens them.
    """
    for place, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(place, name)
            if _is_temporary(name):
                remove(path)
            elif name.startswith(".") and name.endswith(OLD):
                current = path.with_name(name[1:].removesuffix(OLD))
                if current.exists():
                    remove(path)
                else:
                    path.replace(current)
        names[:] = [name for name in names if not Path(place, name, "run.json").exists()]


def clear_copies(out: Path) -> None:
    """Remove the copies of a file, and of those written along with it, whose process is gone."""
    for path in out.parent.glob(f".*{glob.escape(out.stem.partition('.')[0])}*.tmp"):
        if _is_temporary(path.name) and not process_runs(int(path.suffixes[-2][1:])):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there.

    Raises:
        MachineError: it cannot be deleted.
    """
    with machine_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Convert the system's errors (disk full, permission denied, the folder was taken away) into a `MachineError`.

    Raises:
        MachineError: the write failed; the message is one line.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise MachineError(machine_failure(error, path)) from None


def machine_failure(error: BaseException, path: Path | str | None = None) -> str:
    """The message of an error of the system, with the remedy.

    Args:
        error: an `OSError`, or what `safetensors` makes of one.
        path: what was to be read or written; None: the file that the error names.
    """
    path = path or getattr(error, "filename", None) or "the disk"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    remedy = "free space or choose another place"
    if isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError | IsADirectoryError):
        remedy = "restore what was moved or deleted, or choose another place"
    elif isinstance(error, PermissionError):
        remedy = "permit access, or choose another place"
    return f"{path}: {reason}; {remedy}, then run again"


def _sync(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())


def _is_temporary(name: str) -> bool:
    return re.fullmatch(r"\..+\.\d+\.tmp", name) is not None
