"""The address that a server listens on."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from kleash.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at once, so that a printed link can be opened immediately.

    Raises:
        InputError: the address cannot be used, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror}); give another --port, 0 for a free one"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_url(host: str) -> str:
    """A host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
