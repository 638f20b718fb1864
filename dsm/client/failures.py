"""What becomes of a socket's errors: what callers see, the same for threads and for asyncio.

Owns the words, and which requests may be asked twice.  Pure.
"""

from __future__ import annotations

from typing import Final

from dsm.errors import ClosedError, DSMError, NodeLostError, UsageError, WaitTimeoutError
from dsm.wire.leases import Op

#: What may be asked twice: it changes nothing, or the second time changes nothing more.
REPEATABLE: Final = frozenset((Op.GET, Op.SET, Op.RENEW, Op.INFO, Op.LIST, Op.FIGURES, Op.PING))


def not_reached(where: str, error: OSError | ValueError, timeout: float | None) -> DSMError:
    """Nobody could be connected to."""
    if isinstance(error, TimeoutError):
        return WaitTimeoutError(f"no lease server answers at {where} within {timeout} s")
    if isinstance(error, OSError):
        return NodeLostError(
            f"no lease server answers at {where}: {error.strerror or error}; start one with `dsm serve`, "
            "or check the address"
        )
    # Also of names that are none in the domain name system.
    return UsageError(f"{where} is no address: {error}; write HOST:PORT")


def silent(where: str, op: Op, timeout: float | None) -> WaitTimeoutError:
    """No reply came in time."""
    return WaitTimeoutError(
        f"the lease server at {where} did not answer {op.name} within {timeout} s; it may have done it all "
        "the same"
    )


def broken(where: str, op: Op, error: OSError) -> NodeLostError:
    """The connection broke in a request that cannot be asked again."""
    return NodeLostError(
        f"the connection to the lease server at {where} broke in {op.name}: {error.strerror or error}; it "
        "may have done it all the same"
    )


def closed_meanwhile() -> ClosedError:
    """The client was closed in the middle of a request."""
    return ClosedError("this lease client was closed while it waited for the server")


def closed() -> ClosedError:
    """It was closed before."""
    return ClosedError("this lease client was closed; connect again")
