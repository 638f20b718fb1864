"""The lease service's messages: what clients ask a lease server, and what it answers.

Owns the bytes, their packing, and the check of all that can be judged from a header alone.  Knows no
sockets and no leases.  All integers are little-endian::

    request, 64 bytes                             reply, 32 bytes
    offset  0  op       u8     8  payload  u64    offset  0  op        u8    8  payload  u64
            1  flags    u8    16  offset   u64            1  status    u8   16  a        u64
            2  (zero)   u16   24  count    u64            2  (zero)    u16  24  b        u64
            4  number   u32   32  id       16s            4  number    u32
                              48  key      16s

`payload` counts the bytes that follow.  Replies of one connection come in the order of its requests, with
their op and number.  A status other than 0 is a `dsm.errors.Status`; the payload is then a message in UTF-8.

=======  ===============================================  =================================================
op       request                                          reply
=======  ===============================================  =================================================
LEASE    count: bytes; offset: duration in ms             payload: id, write key, read key; a: bytes; b: ms
GET      offset, count (`TO_THE_END`: what is behind)     payload: the bytes; a: their number; b: ms left
SET      offset, payload = count: the bytes               a: their number; b: ms left
RENEW    offset: duration in ms from now                  a: bytes of the lease; b: ms left
RELEASE                                                   a: bytes of the lease
INFO                                                      a: bytes; b: ms left; payload: one row
LIST     offset: rows to skip; count: rows at most        payload: rows, soonest end first; a: all there are
FIGURES                                                   payload: a u64 for each of `FIGURES`
PING                                                      a: the protocol's version
=======  ===============================================  =================================================
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from dsm.errors import DSMError, Status, UsageError, WireError, error_for
from dsm.limits import MAX_LEASE_ERROR_BYTES, MAX_LEASE_ROWS, MAX_LEASE_TRANSFER_BYTES
from dsm.units import MAX_DURATION_MS

#: Changes whenever a byte of the lease service changes its meaning.
VERSION: Final = 1

#: op, flags, zero, number, payload, offset, count, id and key together.
REQUEST: Final = struct.Struct("<BBHIQQQ32s")
#: op, status, zero, number, payload, a, b.
REPLY: Final = struct.Struct("<BBHIQQQ")
REQUEST_BYTES: Final = REQUEST.size
REPLY_BYTES: Final = REPLY.size
assert (REQUEST_BYTES, REPLY_BYTES) == (64, 32)

ID_BYTES: Final = 16
#: An id and a key: what a request shows.
TOKEN_BYTES: Final = 32
NO_TOKEN: Final = bytes(TOKEN_BYTES)
#: What LEASE answers: id, write key, read key.
KEYS: Final = struct.Struct("<16s16s16s")
#: A count that stands for all bytes behind the offset.
TO_THE_END: Final = 2**64 - 1


class Op(IntEnum):
    """What is asked."""

    LEASE = 1
    GET = 2
    SET = 3
    RENEW = 4
    RELEASE = 5
    INFO = 6
    LIST = 7
    FIGURES = 8
    PING = 9


#: Flags of a row.
WRITABLE: Final = 1
MAPPED: Final = 2
#: id, bytes, ms left, ms of age, flags, zero.
ROW: Final = struct.Struct("<16sQQQII")
assert ROW.size == 48

#: The numbers that FIGURES answers, in this order; later versions append.
FIGURES: Final = (
    "size", "used", "free", "largest_free", "cleaning", "leases", "leased_bytes", "peak_used", "connections",
    "opened", "released", "expired", "moved", "refused", "gets", "sets", "bytes_out", "bytes_in",
)  # fmt: skip
_FIGURES = struct.Struct(f"<{len(FIGURES)}Q")


class Row(NamedTuple):
    """A lease as a list shows it."""

    id: bytes
    nbytes: int
    remaining_ms: int
    age_ms: int
    #: Only of INFO: whether the key that asked may write.
    writable: bool = False
    #: It is memory of the cluster, which its workers can map.
    mapped: bool = False

    def pack(self) -> bytes:
        """Return its 48 bytes."""
        flags = (WRITABLE if self.writable else 0) | (MAPPED if self.mapped else 0)
        return ROW.pack(self.id, self.nbytes, self.remaining_ms, self.age_ms, flags, 0)


# -- requests ----------------------------------------------------------------------------------------------


def request(
    op: int, number: int, *, payload: int = 0, offset: int = 0, count: int = 0, token: bytes = NO_TOKEN
) -> bytes:
    """Return a request's header; `token` is id and key."""
    return REQUEST.pack(op, 0, 0, number & 0xFFFFFFFF, payload, offset, count, token)


def check_request(op: int, flags: int, zero: int, payload: int, offset: int, count: int) -> None:
    """Judge a request by its header alone.

    Raises
    ------
    WireError
        It is no request of this version: what follows cannot be understood.
    UsageError
        It is understood, and wrong in itself.
    """
    if not Op.LEASE <= op <= Op.PING or flags or zero:
        raise WireError(
            f"op {op} with flags {flags} is no request of version {VERSION} of the lease service; "
            "the connection is closed"
        )
    if payload > (MAX_LEASE_TRANSFER_BYTES if op == Op.SET else 0):
        raise WireError(
            f"{Op(op).name} with a payload of {payload} bytes: it can have "
            f"{MAX_LEASE_TRANSFER_BYTES if op == Op.SET else 0}; the connection is closed"
        )
    if op == Op.SET and count != payload:
        raise UsageError(f"SET of {count} bytes with a payload of {payload}; both must be the same")
    if op in (Op.LEASE, Op.RENEW) and not 1 <= offset <= MAX_DURATION_MS:
        raise UsageError(f"a lease for {offset} ms was asked for; it can be from 1 to {MAX_DURATION_MS} ms")
    if op == Op.LEASE and not count:
        raise UsageError("a lease of 0 bytes was asked for; ask for at least 1")
    if op == Op.LIST and not 1 <= count <= MAX_LEASE_ROWS:
        raise UsageError(f"a list of {count} rows was asked for; ask for 1 to {MAX_LEASE_ROWS}")


# -- replies -----------------------------------------------------------------------------------------------


def reply(op: int, number: int, payload: bytes = b"", a: int = 0, b: int = 0) -> bytes:
    """Return a reply that says that it went well."""
    return REPLY.pack(op, 0, 0, number, len(payload), a, b) + payload


def error_reply(op: int, number: int, status: int, message: str) -> bytes:
    """Return a reply that says why not."""
    text = message.encode("utf-8", "replace")[:MAX_LEASE_ERROR_BYTES].decode("utf-8", "ignore").encode()
    return REPLY.pack(op, status, 0, number, len(text), 0, 0) + text


def check_reply(
    expected: tuple[int, int], op: int, status: int, zero: int, number: int, payload: int, most: int
) -> None:
    """Judge a reply's header: it answers what was asked, and brings no more than that can bring.

    Parameters
    ----------
    expected
        Op and number of the request.
    most
        Bytes that the payload may have when it went well.

    Raises
    ------
    WireError
        It is not that; the connection cannot be used any more.
    """
    if status:
        most = MAX_LEASE_ERROR_BYTES
    if (op, number) != expected or zero or payload > most:
        raise WireError(
            f"the server answered op {op}, number {number} with {payload} bytes where op {expected[0]}, "
            "number "
            f"{expected[1]} with at most {most} was due: it is no lease server of this version"
        )


def error_of(status: int, message: bytes) -> DSMError:
    """Return the exception that an error reply stands for."""
    text = message.decode("utf-8", "replace")
    if status not in Status.__members__.values():
        return WireError(
            f"the server answered with status {status}, which this version does not know: {text}"
        )
    return error_for(status, text)


def rows(payload: bytes) -> list[Row]:
    """Return the rows of LIST and INFO.

    Raises
    ------
    WireError
        These are none.
    """
    if len(payload) % ROW.size:
        raise WireError(f"{len(payload)} bytes are no rows of {ROW.size} bytes")
    return [
        Row(identity, nbytes, remaining, age, bool(flags & WRITABLE), bool(flags & MAPPED))
        for identity, nbytes, remaining, age, flags, _ in ROW.iter_unpack(payload)
    ]


def pack_figures(figures: dict[str, int]) -> bytes:
    """Return the payload of FIGURES."""
    return _FIGURES.pack(*(figures[name] for name in FIGURES))


def unpack_figures(payload: bytes) -> dict[str, int]:
    """Return what FIGURES answered, by name; what a later server appends is left out.

    Raises
    ------
    WireError
        It is too short.
    """
    if len(payload) < _FIGURES.size or len(payload) % 8:
        raise WireError(f"{len(payload)} bytes are not the {len(FIGURES)} figures of a lease server")
    return dict(zip(FIGURES, _FIGURES.unpack_from(payload), strict=True))
