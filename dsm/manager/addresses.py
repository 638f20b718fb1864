"""Addresses at which managers reach each other: ``host:port``."""

from __future__ import annotations

from dsm.errors import WireError
from dsm.wire.address import show_address


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` (``[::1]:port`` for IPv6)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise WireError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def announced(listening: str, outward: str) -> str:
    """Return where others reach a node that listens at `listening` and calls others from `outward`."""
    host, port = parse_address(listening)
    if host not in ("0.0.0.0", "::"):
        return listening
    return show_address(outward, port)
