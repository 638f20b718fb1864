"""Guards around the blocks of a heap that is being debugged, and what their damage tells.

Owns the layout of a guarded block and the patterns.  Touches no memory itself: it makes bytes to be stored,
and judges bytes that were loaded.

=======  ====================================================================================================
front    `front_bytes`: filler, then in the last 32 bytes a mark, size, align, and a sum of the three
payload  as many bytes as were asked for, on a multiple of `align`: `NEW` at first, `FREED` when it was freed
back     16 bytes right behind the last one that was asked for
=======  ====================================================================================================

The mark says whether the block is live or was freed, so that memory itself tells that a block is freed twice.
What is written beyond the end hits the back first, from the first byte on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from dsm.errors import UsageError

#: Bytes that were loaded from memory.
Loaded: TypeAlias = bytes | bytearray | memoryview

#: What a block holds before anything was stored in it (if it was not asked for as zeros), and after it was
#: freed.
NEW: Final = 0xCD
FREED: Final = 0xDD
_FILLER: Final = 0xFA
BACK_BYTES: Final = 16
_BACK: Final = bytes.fromhex("fbfbfbfbfbfbfbfb") + b"dsm.back"
_HEAD: Final = struct.Struct("<8sQQQ")
_LIVE_MARK: Final = b"dsm.live"
_FREED_MARK: Final = b"dsm.free"
#: Bytes that are compared with a pattern at a time.
_CHUNK: Final = 1 << 20


class Harm(StrEnum):
    """What somebody did to a block."""

    UNDERRUN = "underrun"
    OVERRUN = "overrun"
    USE_AFTER_FREE = "use after free"


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a block is not as it was left.

    Attributes
    ----------
    harm : Harm
        What was done.
    offset : int
        Of the first byte that differs, from the first byte of the payload: negative before it.
    count : int
        Bytes that differ.
    found : bytes
        The first of them, and what follows: at most 16 bytes, none of them outside the part that was looked
        at.
    """

    harm: Harm
    offset: int
    count: int
    found: bytes

    def __str__(self) -> str:
        many = "1 byte differs" if self.count == 1 else f"{self.count} bytes differ, the first"
        return (
            f"{self.harm}: {many} at offset {self.offset} of the block, where {self.found.hex(' ')} was found"
        )


def front_bytes(align: int) -> int:
    """Bytes before the payload of a block that lies on a multiple of `align`."""
    return max(_HEAD.size, align)


def guarded_bytes(nbytes: int, align: int) -> int:
    """Bytes of a guarded block, to be allocated on a multiple of `align`."""
    return front_bytes(align) + nbytes + BACK_BYTES


def front(nbytes: int, align: int, *, freed: bool = False) -> bytes:
    """Return what is to be stored before the payload."""
    mark = _FREED_MARK if freed else _LIVE_MARK
    head = _HEAD.pack(mark, nbytes, align, _sum(mark, nbytes, align))
    return bytes([_FILLER]) * (front_bytes(align) - len(head)) + head


def back() -> bytes:
    """Return what is to be stored behind the payload."""
    return _BACK


def read_front(loaded: Loaded) -> tuple[int, int, bool] | None:
    """Return size, align and whether the block was freed, as its front says; None if it is damaged or none.

    Parameters
    ----------
    loaded : bytes-like
        At least the 32 bytes before the payload.
    """
    head = bytes(memoryview(loaded)[-_HEAD.size :])
    if len(head) < _HEAD.size:
        return None
    mark, nbytes, align, checksum = _HEAD.unpack(head)
    if mark not in (_LIVE_MARK, _FREED_MARK) or checksum != _sum(mark, nbytes, align):
        return None
    return nbytes, align, mark == _FREED_MARK


def damage(block: Loaded, nbytes: int, align: int, *, freed: bool = False) -> list[Damage]:
    """Say what of a guarded block is damaged: nothing, or one entry for each part, from the front to the
    back.

    Parameters
    ----------
    block : bytes-like
        All `guarded_bytes` of it.
    nbytes, align : int
        What was asked for.
    freed : bool, default False
        The block was freed: its payload must still be `FREED`.

    Raises
    ------
    UsageError
        The bytes are not as many.
    """
    view = memoryview(block).cast("B")
    if len(view) != guarded_bytes(nbytes, align):
        raise UsageError(
            f"{len(view)} bytes are no guarded block of {nbytes} bytes (align={align}): that has "
            f"{guarded_bytes(nbytes, align)}"
        )
    start = front_bytes(align)
    parts = [_compare(Harm.UNDERRUN, view[:start], front(nbytes, align, freed=freed), -start)]
    if freed:
        parts.append(freed_damage(view[start : start + nbytes]))
    parts.append(_compare(Harm.OVERRUN, view[start + nbytes : start + nbytes + BACK_BYTES], _BACK, nbytes))
    return [part for part in parts if part is not None]


def freed_damage(payload: Loaded, offset: int = 0) -> Damage | None:
    """Say what was stored in a freed payload, or in a part of it that begins at `offset`."""
    view = memoryview(payload).cast("B")
    first, count, found = -1, 0, b""
    for start in range(0, len(view), _CHUNK):
        chunk = bytes(view[start : start + _CHUNK])
        same = chunk.count(FREED)
        if same != len(chunk):
            if first < 0:
                first = start + len(chunk) - len(chunk.lstrip(bytes([FREED])))
                found = bytes(view[first : first + 16])
            count += len(chunk) - same
    return None if first < 0 else Damage(Harm.USE_AFTER_FREE, offset + first, count, found)


def _compare(harm: Harm, loaded: memoryview, stored: bytes, offset: int) -> Damage | None:
    if loaded == stored:
        return None
    wrong = [index for index in range(len(stored)) if loaded[index : index + 1] != stored[index : index + 1]]
    return Damage(harm, offset + wrong[0], len(wrong), bytes(loaded[wrong[0] : wrong[0] + 16]))


def _sum(mark: bytes, nbytes: int, align: int) -> int:
    return (int.from_bytes(mark, "little") ^ nbytes * 0x9E3779B97F4A7C15 ^ align * 0xC2B2AE3D27D4EB4F) & (
        (1 << 64) - 1
    )
