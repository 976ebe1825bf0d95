"""Objects that Python passes where a config has a name: rows, models, rewards.

A config holds text, so that it can be written to run.json and compared. An object goes by a made-up name, "rows in
memory (3fa9c1d2)", for as long as the call takes (`named`); whatever opens a name (a reader of rows, a loader of
models, `build_reward`) looks here first, and the object counts by the hash of its content like a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = " in memory ("
"""What every made-up name has in it, and no path or hub name."""


@dataclass(frozen=True)
class LiveObject:
    """An object in place of a name."""

    kind: str
    """What it is, for people: `rows`, the class of a model."""
    value: Any
    """Rows: a list of mappings. A model: the model and its tokenizer. A reward: what `as_reward` takes."""
    sha256: str
    """Hash of its content."""

    @property
    def name(self) -> str:
        """Its name in configs, messages and run.json."""
        return f"{self.kind}{MARK}{self.sha256[:8]})"


_OBJECTS: dict[str, LiveObject] = {}
"""The objects of the calls that are going on, by name. Objects of one name have the same content."""


@contextmanager
def named(objects: Iterable[LiveObject]) -> Iterator[None]:
    """Let objects be found by their names."""
    new = {item.name: item for item in objects if item.name not in _OBJECTS}
    _OBJECTS.update(new)
    try:
        yield
    finally:
        for name in new:
            del _OBJECTS[name]


def live_object(name: str | Path) -> LiveObject | None:
    """The object that goes by a name; None where the name is that of something else."""
    return _OBJECTS.get(str(name))
