"""Python reads this at start in the commands of the pages: the network guard, and the endpoint that the pages print.

A page's `http://localhost:8000/v1` is answered by a server of the test on a free port, named by KLEASH_DOCS_ENDPOINT.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import network_guard  # noqa: F401

PRINTED = 8000

_connect = socket.socket.connect


def _redirected(self: socket.socket, address: Any) -> None:
    port = os.environ.get("KLEASH_DOCS_ENDPOINT")
    if port and isinstance(address, tuple) and address[1] == PRINTED and self.family == socket.AF_INET:
        address = ("127.0.0.1", int(port))
    _connect(self, address)


socket.socket.connect = _redirected  # type: ignore[method-assign]
