"""A label store for as long as it is needed; what the extra `feedback` brings is imported only here, when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kleash.errors import ConfigError

if TYPE_CHECKING:
    from kleash.labels.store import Store


@contextmanager
def open_store(where: str | Path) -> Iterator[Store]:
    """A label store, closed at the end.

    Args:
        where: as `Store.open`.

    Raises:
        ConfigError: the extra is not installed.
        InputError: as `Store.open`.
    """
    try:
        from kleash.labels.store import Store
    except ModuleNotFoundError as error:
        package = (error.name or "sqlalchemy").partition(".")[0]
        raise ConfigError(f"the label store needs {package}; pip install 'kleash[feedback]'") from None
    store = Store.open(where)
    try:
        yield store
    finally:
        store.close()
