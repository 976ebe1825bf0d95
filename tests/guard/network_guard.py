"""No test reaches beyond this machine, nor does any Python process that a test starts (F17).

Importing this module installs an audit hook, which sees every connection whatever library opens it. An attempt is
written to the file named by KLEASH_NETWORK_LOG before it is refused, because a library may swallow the refusal.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any


class NetworkRefusedError(RuntimeError):
    """An unexpected connection to another machine."""


def _is_here(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if not host or host in {"localhost", _HERE}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        target = arguments[1]
        host = target[0] if isinstance(target, tuple) else None  # a path or None: a socket of this machine
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = arguments[0]
    else:
        return
    if _is_here(host):
        return
    if log := os.environ.get("KLEASH_NETWORK_LOG"):
        with open(log, "a") as file:
            file.write(f"{event} {host}\n")
    raise NetworkRefusedError(f"{event} to {host!r}: tests do not reach beyond this machine")


_HERE = socket.gethostname()
sys.addaudithook(_watch)
