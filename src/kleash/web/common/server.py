"""Serving a web application until Ctrl-C."""

from __future__ import annotations

import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve an application on a socket until Ctrl-C."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
            timeout_graceful_shutdown=2,
        )
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # the usual way to stop
        server.run(sockets=[listener])
