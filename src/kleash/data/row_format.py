"""How the rows of a file are read: the names of its columns, and whether text becomes turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a file are read."""

    columns: Mapping[str, str] | None = None
    """Column here → column of the file; None: the schemas know its columns."""
    as_chat: bool = False
    """Whether a prompt of plain text becomes one turn of the user."""


AS_IT_IS = RowFormat()
"""The schemas know the columns, and text stays text."""
