"""Serving a web application until Ctrl-C, whoever connects.

A client that never ends its request is disconnected after a while, and connections are limited below the number of
files that the process may open: where there are too many, the one that has waited longest for its client makes room. So
neither a phone that lost its network nor somebody who opens a thousand sockets shuts others out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from kleash.web.common.security import Bucket

MOST_CONNECTIONS = 500
BACKLOG = 100
"""Connections accepted in one turn of the event loop, before the first of them can be refused."""
FILES_OF_STORE = 200
"""Files of the label store's connections to its database: 60, with a log and an index each on SQLite."""
OTHER_FILES = 64

LINES, LINES_A_SECOND = 20, 0.2
"""Log records at once, and a second after that."""
LINE_CHARACTERS = 4_000

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def connections_of(files: int) -> int:
    """How many connections a process that may open so many files can have, besides the store's and new ones."""
    return max(16, min(MOST_CONNECTIONS, files - FILES_OF_STORE - OTHER_FILES - 4 * BACKLOG))


def _files() -> int:
    """How many files this process may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit on sockets
        return MOST_CONNECTIONS * 2
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS * 2 if limit == resource.RLIM_INFINITY else limit


@dataclass(frozen=True)
class Limits:
    """What one server allows its clients."""

    connections: int = field(default_factory=lambda: connections_of(_files()))
    """Connections at once."""
    request_seconds: float = 20.0
    """From the first byte of a request to its last; a request has 64 KiB at most."""
    idle_seconds: int = 5
    """From a response to the next request."""
    proxy: str | None = None
    """Address or network of a proxy whose `X-Forwarded-For` says who asks; None: nobody's is believed."""


class Connection(H11Protocol):
    """A connection with a deadline for each request and a place among a limited number of connections."""

    limits: ClassVar[Limits]
    connections: set[Any]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place; if there are none, the connection that has waited longest loses its own."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._since = self.loop.time()
        self._watch()
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        self._since = self.loop.time()
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self._since = self.loop.time()
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._disarm()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client and not for us."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _watch(self) -> None:
        """Set the deadline of a request that has begun, or that a new connection should send; uvicorn has one for the
        time between requests only.
        """
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and self.timeout_keep_alive_task is None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(self.limits.request_seconds, self.transport.close)
        else:
            self._disarm()

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        alive = [other for other in self.connections if not other.transport.is_closing()]
        if len(alive) <= self.limits.connections:
            return
        waiting = [other for other in alive if other.is_waiting and other is not self]
        if waiting:
            min(waiting, key=lambda other: other._since).transport.abort()
        else:
            self.transport.write(BUSY)
            self.transport.close()


class BoundedLog(logging.StreamHandler):
    """A log that a client can neither fill nor write into: few records, short, no control characters, and every line
    but the first of a record indented.
    """

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        self._bucket = Bucket(LINES_A_SECOND, LINES)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if not self._bucket.take(""):
            self._dropped += 1
            return
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The record as text that is safe to print, with how many were left out before it."""
        note = f"({self._dropped} records left out) " if self._dropped else ""
        self._dropped = 0
        return note + printable(super().format(record))


def printable(text: str) -> str:
    """A text for a log: cut, without control characters, its further lines indented."""
    short = text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}…"
    clean = "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in short
    )
    return clean.replace("\n", "\n    ")


def server_of(app: Starlette, limits: Limits) -> uvicorn.Server:
    """A server of an application, not yet running."""
    return uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, server_header=False, lifespan="off",
            loop="asyncio", ws="none", timeout_graceful_shutdown=2, timeout_keep_alive=limits.idle_seconds,
            backlog=BACKLOG,
            http=type("LimitedConnection", (Connection,), {"limits": limits}),
            proxy_headers=limits.proxy is not None, forwarded_allow_ips=limits.proxy,
        )
    )  # fmt: skip


def serve(app: Starlette, listener: socket.socket, limits: Limits) -> None:
    """Serve an application on a socket until Ctrl-C."""
    log = BoundedLog(sys.stderr)
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [log], False
    server = server_of(app, limits)
    with suppress(KeyboardInterrupt):  # the usual way to stop
        if not _in_a_loop():
            server.run(sockets=[listener])
            return
        _run_in_a_thread(server, listener)


def _run_in_a_thread(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run a server in a thread of its own until Ctrl-C reaches this one."""
    ended = threading.Event()  # an interrupted `Thread.join` takes the thread for ended (bpo-45274)

    def run() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        ended.wait()
    finally:
        server.should_exit = True
        while not ended.is_set():
            with suppress(KeyboardInterrupt):  # also where the user interrupts twice
                ended.wait()


def _in_a_loop() -> bool:
    """Whether an event loop runs in this thread, as in a notebook's: then another one needs a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
