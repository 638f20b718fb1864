"""The fixed header in front of every message between nodes.

Owns the 48 bytes, their packing, and the check of everything that can be judged from a header alone.
Knows no sockets and no meaning: what a kind does belongs to its family.

All integers are little-endian::

    offset  0  magic   u16    4  kind   u8     8  epoch   u32   20  count    u32   32  page   u64
            2  version u8     5  flags  u8    12  length  u32   24  request  u32   40  value  u64
            3  family  u8     6  node   u16   16  region  u32   28  (zero)   u32

`length` counts the payload bytes that follow; `node` is the requester; `region` is the object in the
sync family.  These functions run several times in every page fault: a header is a plain tuple, in the
order of `Fields`, and the three tests of `check` are one expression.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TypeAlias

from dsm.coherence.messages import Kind, Message
from dsm.errors import WireError
from dsm.limits import MAX_DATA_BYTES, MAX_DIFF_BYTES, MAX_NODES, MAX_NOTICE_BYTES
from dsm.wire.calls import Op, SyncKind
from dsm.wire.membership import PAYLOAD_LIMITS

#: ``b"DS"`` read as a little-endian integer.
MAGIC = 0x5344
#: Changes whenever a byte on a wire between nodes changes its meaning.
VERSION = 3

_HEADER = struct.Struct("<HBBBBHIIIII4xQQ")
HEADER_BYTES = _HEADER.size
assert HEADER_BYTES == 48

#: magic, version, family, kind, flags, node, epoch, length, region, count, request, page, value.
Fields: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]


class Family(IntEnum):
    """Who understands a message."""

    COHERENCE = 1
    SYNC = 2
    METADATA = 3


#: Calls of a worker that its own node answers; no node asks another for them.
LOCAL_OPS = (Op.PREFETCH, Op.PIN, Op.UNPIN, Op.REHOME)
#: Largest payload by ``family << 8 | kind``; a pair that is missing is not a message.
LENGTH_LIMITS: dict[int, int] = {
    **{Family.COHERENCE << 8 | kind: 0 for kind in Kind},
    Family.COHERENCE << 8 | Kind.DATA: MAX_DATA_BYTES,
    Family.COHERENCE << 8 | Kind.DIFF: MAX_DIFF_BYTES,
    **{Family.SYNC << 8 | kind: MAX_NOTICE_BYTES for kind in (*SyncKind, *Op) if kind not in LOCAL_OPS},
    **{Family.METADATA << 8 | kind: limit for kind, limit in PAYLOAD_LIMITS.items()},
}

_pack = _HEADER.pack
_limit = LENGTH_LIMITS.get
_METADATA = int(Family.METADATA)
_COHERENCE = int(Family.COHERENCE)


def pack(
    family: int,
    kind: int,
    flags: int,
    node: int,
    epoch: int,
    length: int,
    region: int,
    count: int,
    request: int,
    page: int,
    value: int,
) -> bytes:
    """Return the header of a message; `struct.error` when a number does not fit its field."""
    return _pack(
        MAGIC, VERSION, family, kind, flags, node, epoch, length, region, count, request, page, value
    )


#: ``unpack(buffer, offset) -> Fields``, not yet checked.  At least `HEADER_BYTES` must follow `offset`.
unpack: Callable[..., Fields] = _HEADER.unpack_from


def check(fields: Fields) -> None:
    """Refuse a header that no node of this version sends.

    Raises
    ------
    WireError
        Wrong magic, another version (both are named), an unknown family or kind, a payload longer than
        this kind may have, or a node number that cannot exist.
    """
    if (
        fields[0] != MAGIC
        or fields[1] != VERSION
        or fields[7] > _limit(fields[2] << 8 | fields[3], -1)
        or (fields[5] >= MAX_NODES and fields[2] != _METADATA)
    ):
        raise WireError(_reason(fields))


def pack_coherence(message: Message, epoch: int, length: int = 0) -> bytes:
    """Return the header of a coherence message with `length` bytes of payload."""
    return _pack(
        MAGIC,
        VERSION,
        _COHERENCE,
        message.kind,
        message.flags,
        message.node,
        epoch,
        length,
        message.region,
        message.count,
        message.request,
        message.page,
        message.value,
    )


def unpack_coherence(fields: Fields) -> Message:
    """Return the coherence message of a header that passed `check`."""
    return Message(fields[3], fields[8], fields[11], fields[9], fields[10], fields[5], fields[4], fields[12])


def _reason(fields: Fields) -> str:
    """Say what `check` objects to."""
    magic, version, family, kind, _, node, _, length = fields[:8]
    if magic != MAGIC:
        return (
            f"these bytes are not a dsm message: they begin with {magic:#06x}, a header with {MAGIC:#06x}; "
            "check that the address is that of a dsm node"
        )
    if version != VERSION:
        return (
            f"the peer speaks version {version} of the dsm protocol, this node version {VERSION}; "
            "install the same dsm on every host"
        )
    limit = _limit(family << 8 | kind)
    if limit is None:
        return f"no message of family {family} has kind {kind}; the peer is not a dsm of this version"
    if length > limit:
        return (
            f"a message of family {family}, kind {kind} announces {length} payload bytes; at most {limit} "
            "are allowed; the peer is not a dsm of this version"
        )
    return f"a message names node {node}; node numbers are below {MAX_NODES}"
