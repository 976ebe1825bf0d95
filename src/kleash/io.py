"""Atomic file writes: a new file in the same folder is written and synced, then renamed over the old one.

A kill at any instant leaves either the state before or the state after.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from kleash.errors import MachineError

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Endings of the files of rows that kleash reads and writes."""


Json = dict[str, Any]
"""A JSON object: a row of a file, a record, settings as YAML has them."""


def read_jsonl(path: Path) -> list[Json]:
    """Rows of a JSONL file; a last line that is incomplete after a kill is skipped."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_text(path: Path, text: str) -> None:
    """Replace a file by text, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create or replace a folder: `fill` writes into a new folder, which then replaces the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)  # by the umask; safetensors writes for the owner only
                with file.open("rb") as content:
                    os.fsync(content.fileno())
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Convert the system's write errors (disk full, permission denied) into a `MachineError`.

    Raises:
        MachineError: the write failed; the message is one line.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"{path}: {reason}; free space or choose another place, then run again") from None
