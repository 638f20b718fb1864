"""What a client is told, by arguments and environment: where the server is, and its secret.

===================================  ==============================================================
``DSM_SERVER``                       ``HOST:PORT`` of the lease server (default: 127.0.0.1:7412)
``DSM_SECRET``, ``…_FILE``           its secret, as that of a cluster (`dsm.wire.secret`)
===================================  ==============================================================
"""

from __future__ import annotations

import math
import os
from typing import Literal

from dsm.errors import UsageError
from dsm.wire.address import DEFAULT_PORT, parse_address
from dsm.wire.secret import checked_secret, load_secret

Secret = str | bytes | Literal[False] | None


def server_address(address: str | None) -> tuple[str, int]:
    """Return host and port of the server."""
    if address is not None:
        host, port = parse_address(address)
    else:
        said = os.environ.get("DSM_SERVER")
        host, port = parse_address(said, "DSM_SERVER") if said else ("", DEFAULT_PORT)
    return host or "127.0.0.1", port


def server_secret(secret: Secret) -> bytes | None:
    """Return the secret to prove: the argument, else the environment's; False: none."""
    if secret is False:
        return None
    if secret is None:
        if os.environ.get("DSM_SECRET") or os.environ.get("DSM_SECRET_FILE"):
            return load_secret(os.environ)
        return None
    return checked_secret(secret, "secret=")


def checked_timeout(timeout: float | None) -> float | None:
    """Return the seconds to wait for an answer; None: without end."""
    if timeout is None or timeout == math.inf:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise UsageError(f"timeout is {timeout!r}; pass seconds above 0, or None to wait without end")
    return float(min(timeout, 10**9))
