"""Replies of a chat model in a small SQLite file: no request is paid for twice, and what was spent is known.

For a judge that is a reward; `kleash judge` keeps its replies in a label store, with the requests for inspection.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from kleash.chat.messages import ChatReply, ChatRequest
from kleash.errors import InputError, MachineError
from kleash.io import machine_errors


class ReplyFile:
    """A `ResponseCache` in a file, which several runs and threads may share. Errors are not kept.

    Args:
        path: the file; made if missing.

    Raises:
        InputError: it is another kind of file.
        MachineError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with machine_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with self._open() as file:
            file.execute("create table if not exists replies (key text primary key, reply text, cost real)")

    def get(self, key: str) -> tuple[ChatReply, float] | None:
        """See `ResponseCache`."""
        with self._open() as file:
            row = file.execute("select reply, cost from replies where key = ?", (key,)).fetchone()
        return None if row is None else (ChatReply(**json.loads(row[0])), float(row[1]))

    def put(self, key: str, model: str, request: ChatRequest, reply: ChatReply, cost: float) -> None:
        """See `ResponseCache`."""
        if not reply.error:
            with self._open() as file:
                file.execute("insert or ignore into replies values (?, ?, ?)", (key, json.dumps(asdict(reply)), cost))

    def spent(self) -> float:
        """Cost of all replies in the file."""
        with self._open() as file:
            return float(file.execute("select coalesce(sum(cost), 0) from replies").fetchone()[0])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement, which is committed; threads cannot share one."""
        connection = sqlite3.connect(self.path, timeout=60.0)
        try:
            with connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise MachineError(f"{self.path}: {error}; free space or permit access, or name another 'store'") from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: {error}; delete it, or name another 'store'") from None
        finally:
            connection.close()
