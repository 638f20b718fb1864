"""Addresses as people write them: ``host:7412``, ``:7412``, ``[::1]:7412``, ``host``.

Owns the text.  Whether there is such a host is for who connects.
"""

from __future__ import annotations

from typing import Final

from dsm.errors import UsageError

#: Where a lease server listens unless it is told otherwise.
DEFAULT_PORT: Final = 7412


def parse_address(
    text: str, what: str = "address", default_port: int | None = DEFAULT_PORT
) -> tuple[str, int]:
    """Return host and port; the host may be empty.

    Parameters
    ----------
    text
        ``HOST:PORT``; an IPv6 address goes in brackets when a port follows.
    what
        What it is called in the message.
    default_port
        The port of an address without one; None: it must have one.

    Raises
    ------
    UsageError
        It is no address.
    """
    host = text.strip() if isinstance(text, str) else "?:?"
    port = "?" if default_port is None else str(default_port)
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if bracket and rest.startswith(":"):
            port = rest[1:]
        elif rest or not bracket:
            port = "?"
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535 or any(c.isspace() for c in host):
        raise UsageError(
            f"{what} is {text!r}; write HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"
        )
    return host, int(port)


def show_address(host: str, port: int) -> str:
    """Return an address as `parse_address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
