"""What clients ask, and how its answers are understood: the same for threads and for asyncio.

Owns what callers see of a server: `LeaseInfo`.  Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.errors import WireError
from dsm.limits import MAX_LEASE_ROWS
from dsm.memory.token import ID_BYTES, parse_token
from dsm.wire import leases as wire
from dsm.wire.leases import KEYS

if TYPE_CHECKING:
    import uuid

#: Bytes to be written.
Buffer = bytes | bytearray | memoryview

#: Rows of one question for the list of leases.
ROWS_AT_ONCE = MAX_LEASE_ROWS
#: Bytes that an answer with rows, and one with figures, may have.
ROWS_BYTES = ROWS_AT_ONCE * wire.ROW.size
FIGURES_BYTES = 1024


class LeaseInfo:
    """A lease as `LeaseClient.leases` lists it.

    Attributes
    ----------
    nbytes
        As they were asked for.
    expires_in, age
        Seconds until it ends, and since it began.
    mapped
        Whether it is memory of the server's cluster, mapped by its workers, and not the server's own.
    """

    __slots__ = ("_id", "age", "expires_in", "mapped", "nbytes")

    def __init__(self, row: wire.Row) -> None:
        self._id = row.id
        self.nbytes = row.nbytes
        self.expires_in = row.remaining_ms / 1000
        self.age = row.age_ms / 1000
        self.mapped = row.mapped

    @property
    def id(self) -> uuid.UUID:
        """Its id."""
        import uuid

        return uuid.UUID(bytes=self._id)

    def __repr__(self) -> str:
        return f"<LeaseInfo {self.id}: {self.nbytes} bytes, {self.expires_in:.1f} s left>"


def infos(payload: bytes) -> list[LeaseInfo]:
    """Return the leases of an answer to LIST."""
    return [LeaseInfo(row) for row in wire.rows(payload)]


def opened(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return id, write key and read key of an answer to LEASE."""
    if len(payload) != KEYS.size:
        raise WireError(f"the server answered LEASE with {len(payload)} bytes, not {KEYS.size}")
    identity, write_key, read_key = KEYS.unpack(payload)
    return identity, write_key, read_key


def described(token: str, payload: bytes) -> tuple[bytes, bytes | None, bytes | None, int, int]:
    """Return id, write key, read key, bytes and time left of the lease that INFO was asked about."""
    identity, key = parse_token(token)
    found = wire.rows(payload)
    if len(found) != 1 or found[0].id != identity:
        raise WireError("the server answered INFO with another lease than it was asked about")
    row = found[0]
    return (
        identity,
        key if row.writable else None,
        None if row.writable else key,
        row.nbytes,
        row.remaining_ms,
    )


def shown(token: str) -> bytes:
    """Return id and key as requests show them."""
    identity, key = parse_token(token)
    assert len(identity) == ID_BYTES
    return identity + key
