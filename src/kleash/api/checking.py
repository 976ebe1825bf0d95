"""`kleash check` as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kleash.api.arguments import config_values
from kleash.checks import artifact
from kleash.config import Config, DataRef, MeasureRef
from kleash.content import refuse_missing
from kleash.errors import ConfigError
from kleash.live import named
from kleash.run import RunFolder


class _Checked(Config):
    """What to check, and what to measure it on."""

    data: DataRef | None = None
    labeller: MeasureRef | None = None


def check(
    what: Any, *, data: Any = None, labeller: Any = None, rows: int = artifact.ROWS, device: str = "auto"
) -> artifact.CheckReport:
    """Run the checks of an artifact: a run, a model, a file of rows.

    Args:
        what: a run, its folder, a model's folder, a file of rows.
        data: rows to measure on, a path or in memory.
        labeller: a reward in place of a labeller: would two of them agree about the model's samples?
        rows: most rows of `data` to read.
        device: `cpu`, `cuda`, …; `auto` uses a GPU if there is one.

    Returns:
        The results (`.gates`, `.failed`, `.notes`).

    Raises:
        InputError: there is nothing that can be checked.
    """
    if not isinstance(what, RunFolder | str | Path):
        raise ConfigError(f"kleash.check: got a {type(what).__name__}; give a run, a folder or a file of rows")
    path = what.path if isinstance(what, RunFolder) else Path(what)
    arguments = {name: value for name, value in (("data", data), ("labeller", labeller)) if value is not None}
    values, objects = config_values(_Checked, arguments)
    with named(objects):
        for name, value in values.items():
            refuse_missing(value, _Checked.kinds()[name])
        return artifact.check(path, rows=rows, device=device, **values)
