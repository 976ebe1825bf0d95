"""`kleash check` as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kleash.api.arguments import config_values
from kleash.checks import artifact
from kleash.config import Config, DataRef, MeasureRef
from kleash.content import refuse_missing
from kleash.data.live_rows import live_rows
from kleash.live import LiveObject, named
from kleash.models.live_copy import live_model
from kleash.run import RunFolder


class _Checked(Config):
    """What to check, and what to measure it on."""

    data: DataRef | None = None
    labeller: MeasureRef | None = None


def check(
    what: Any, *, data: Any = None, labeller: Any = None, rows: int = artifact.ROWS, device: str = "auto"
) -> artifact.CheckReport:
    """Run the checks of an artifact: a run, a model, a file of rows, a reward by its name.

    Args:
        what: a run, its folder, a model's folder or hub name, (model, tokenizer), a file of rows, rows; the name of a
            verifier, `module:function`, a composition's file; a function.
        data: rows to measure on, a path or in memory.
        labeller: a reward in place of a labeller: would two of them agree about the model's samples?
        rows: most rows of `data` to read.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.

    Returns:
        The results (`.gates`, `.failed`, `.notes`).

    Raises:
        InputError: there is nothing that can be checked.
    """
    item = _item_to_check(what)
    arguments = {name: value for name, value in (("data", data), ("labeller", labeller)) if value is not None}
    values, objects = config_values(_Checked, arguments)
    with named([*objects, *([item] if isinstance(item, LiveObject) else [])]):
        for name, value in values.items():
            refuse_missing(value, _Checked.kinds()[name])
        path = Path(item.name) if isinstance(item, LiveObject) else item
        return artifact.check(path, rows=rows, device=device, **values)


def _item_to_check(what: Any) -> Path | LiveObject:
    """The path of what is to be checked, or the object itself."""
    if isinstance(what, RunFolder | str | Path):
        return what.path if isinstance(what, RunFolder) else Path(what)
    model = live_model(what)
    if model is None and callable(what):
        return config_values(_Checked, {"labeller": what})[1][0]
    return live_rows(what, argument="what to check") if model is None else model
