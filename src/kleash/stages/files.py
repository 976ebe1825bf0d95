"""Stages that write a file: what lies beside it, and whether it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kleash.data.formats import ENDINGS
from kleash.errors import DataError
from kleash.run import write_json


def beside(out: Path, what: str, *, ending: str | None = None) -> Path:
    """A file beside a stage's: `best.jsonl` and "pool" give `best.pool.jsonl`, or `best.pool` and another ending."""
    own = next((known for known in sorted(ENDINGS, key=len, reverse=True) if out.name.endswith(known)), "")
    return out.with_name(f"{out.name.removesuffix(own)}.{what}{own if ending is None else ending}")


def finished(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file is there and was made with these settings and data.

    Raises:
        DataError: it is there and was made otherwise; it is not written over.
    """
    if not out.exists():
        return False
    summary = beside(out, "summary", ending=".json")
    if not (summary.exists() and json.loads(summary.read_text())["identity"] == identity):
        raise DataError(f"{out} is there already and was made otherwise; choose another --out or remove it")
    return True


def finish(out: Path, identity: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write what was asked and what was measured beside a file, and with it that the file is done."""
    write_json(beside(out, "summary", ending=".json"), {"identity": identity, "results": results})


def results_of(out: Path) -> dict[str, Any] | None:
    """The figures beside a file, or None where its stage leaves none."""
    summary = beside(out, "summary", ending=".json")
    return dict(json.loads(summary.read_text())["results"]) if summary.exists() else None
