"""Open a label store; without the extra `feedback`, an error says what to install.

Only functions here import the packages of the extra, so that every command can be explained without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kleash.errors import ConfigError

if TYPE_CHECKING:
    from kleash.labels.store import Store


@contextmanager
def extra_installed(purpose: str) -> Iterator[None]:
    """Turn a missing package of the extra `feedback` into an error that says what to install.

    Args:
        purpose: what needs the package, the subject of the message.

    Raises:
        ConfigError: a package of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "sqlalchemy").partition(".")[0]
        raise ConfigError(f"{purpose} needs {package}; pip install 'kleash[feedback]'") from None


@contextmanager
def open_store(where: str | Path) -> Iterator[Store]:
    """A label store, closed at the end.

    Args:
        where: as `Store.open`.

    Raises:
        ConfigError: the extra is not installed.
        InputError: as `Store.open`.
    """
    with extra_installed("the label store"):
        from kleash.labels.store import Store
    store = Store.open(where)
    try:
        yield store
    finally:
        store.close()
