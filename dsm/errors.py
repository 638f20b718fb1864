"""Exceptions: one tree, ordered by who is at fault.

Owns every exception class a user can meet and the numeric status under which each one crosses the
shared control segment or a wire.  Knows nothing else of the package.

=====================  ==========================================================
who is at fault        classes
=====================  ==========================================================
the caller             `UsageError`, `ClosedError`, `NotOwnerError`, `UnknownNameError`,
                       `WaitTimeoutError`, `LeaseExpiredError`, `UnknownLeaseError`,
                       `NotPermittedError`, `HeapCorruptionError`
the peer               `PeerError`: `NodeLostError`, `PageLostError`, `PageTimeoutError`,
                       `AuthenticationError`, `WireError`, `OwnerDiedError`, `BrokenBarrierError`
the limit              `LimitError`, `AddressRangeError`, `FullError`, `TooLargeError`
ourselves              `InternalError`
=====================  ==========================================================

Every message says what happened, to what, and what to do next.
"""

from __future__ import annotations

from enum import IntEnum


class DSMError(Exception):
    """Base of every exception that dsm raises on purpose."""


class UsageError(DSMError, ValueError):
    """The call is wrong: the message names the argument, its value and what is accepted."""


class UnknownNameError(UsageError, KeyError):
    """No region, array or object of that name exists in this cluster."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotOwnerError(UsageError):
    """A thread gave back, or used, what it does not hold: a lock, or a unit of a bounded semaphore."""


class ClosedError(DSMError):
    """The region was destroyed, or this process has closed its node."""


class LeaseExpiredError(ClosedError):
    """The lease has run out or was released; its memory is gone."""


class UnknownLeaseError(UsageError, KeyError):
    """No lease has that id, here or any more."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotPermittedError(UsageError, PermissionError):
    """The capability does not allow this: it is none of the lease's, or only for reading."""


class HeapCorruptionError(UsageError):
    """A heap in debug mode found a block overrun, freed twice or used after it was freed."""


class WaitTimeoutError(DSMError, TimeoutError):
    """The caller's own timeout ran out; the request was withdrawn and nothing is held."""


class PeerError(DSMError):
    """Another process of the cluster failed; this one did nothing wrong.

    Attributes
    ----------
    region, page, peer
        What an access to a page needed: name of the region, number of the page in it, and the node that
        is to blame; None where there is none, or it is not known.
    """

    region: str | None = None
    page: int | None = None
    peer: int | None = None


class NodeLostError(PeerError, ConnectionError):
    """The coherence manager of this node is gone, or this node was declared dead."""


class PageLostError(PeerError):
    """The only copy of a page went away with the node that held it."""


class PageTimeoutError(PeerError, TimeoutError):
    """A page did not arrive before the deadline; it is not lost."""


class OwnerDiedError(PeerError):
    """The owner of a lock died before it released it; who is told this holds the lock now."""


class BrokenBarrierError(PeerError):
    """A barrier cannot be complete: a party gave up or died, a rank has ended, or its home is gone."""


class AuthenticationError(PeerError):
    """A peer could not prove that it knows the secret of the cluster."""


class WireError(PeerError):
    """A peer sent bytes that are not of this protocol or version."""


class LimitError(DSMError):
    """A limit was reached; the message names the value, the bound and what to change."""


class AddressRangeError(LimitError):
    """The address range that a region needs is taken in this process."""


class FullError(LimitError):
    """There is room for it in general, but not now: what is leased or allocated takes it."""


class TooLargeError(LimitError):
    """It is larger than all there is: it would not fit if everything else were free."""


class InternalError(DSMError, AssertionError):
    """An invariant of dsm itself does not hold.  Please report it with its message."""


class Status(IntEnum):
    """Outcome of a fault or call, as it crosses the control segment and the wires."""

    OK = 0
    CLOSED = 1
    NODE_LOST = 2
    PAGE_LOST = 3
    PAGE_TIMEOUT = 4
    LIMIT = 5
    NOT_OWNER = 6
    CANCELLED = 7
    BROKEN = 8
    OWNER_DIED = 9
    USAGE = 10
    INTERNAL = 11
    UNKNOWN_NAME = 12
    TOO_LATE = 13
    AUTHENTICATION = 14
    WIRE = 15
    LEASE_EXPIRED = 16
    UNKNOWN_LEASE = 17
    NOT_PERMITTED = 18
    FULL = 19
    TOO_LARGE = 20
    HEAP_CORRUPTION = 21


_BY_STATUS: dict[int, type[DSMError]] = {
    Status.CLOSED: ClosedError,
    Status.NODE_LOST: NodeLostError,
    Status.PAGE_LOST: PageLostError,
    Status.PAGE_TIMEOUT: PageTimeoutError,
    Status.LIMIT: LimitError,
    Status.NOT_OWNER: NotOwnerError,
    Status.BROKEN: BrokenBarrierError,
    Status.OWNER_DIED: OwnerDiedError,
    Status.USAGE: UsageError,
    Status.INTERNAL: InternalError,
    Status.UNKNOWN_NAME: UnknownNameError,
    Status.AUTHENTICATION: AuthenticationError,
    Status.WIRE: WireError,
    Status.LEASE_EXPIRED: LeaseExpiredError,
    Status.UNKNOWN_LEASE: UnknownLeaseError,
    Status.NOT_PERMITTED: NotPermittedError,
    Status.FULL: FullError,
    Status.TOO_LARGE: TooLargeError,
    Status.HEAP_CORRUPTION: HeapCorruptionError,
}


def error_for(status: int, message: str) -> DSMError:
    """Return the exception that stands for `status`, carrying `message`."""
    return _BY_STATUS.get(status, InternalError)(message)


def status_of(error: BaseException) -> Status:
    """Return the status under which `error` travels; `INTERNAL` when it is not one of ours."""
    for status, cls in _BY_STATUS.items():
        if type(error) is cls:
            return Status(status)
    return Status.INTERNAL
