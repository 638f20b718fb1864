"""Addresses at which managers reach each other: ``host:port``."""

from __future__ import annotations

from dsm.errors import UsageError, WireError
from dsm.wire import address
from dsm.wire.address import show_address


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of a node, both of which its address has."""
    try:
        host, port = address.parse_address(text, default_port=None)
    except UsageError:
        host, port = "", 0
    if not host:
        raise WireError(f"{text!r} is not HOST:PORT")
    return host, port


def announced(listening: str, outward: str) -> str:
    """Return where others reach a node that listens at `listening` and calls others from `outward`."""
    host, port = parse_address(listening)
    if host not in ("0.0.0.0", "::"):
        return listening
    return show_address(outward, port)
