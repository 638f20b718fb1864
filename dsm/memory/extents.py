"""The extents of a pool, and which of them a block is cut from.

Owns where they lie and how much room each has.  An extent is chosen by the power of two of its largest free
block, the smallest that fits: full extents are filled up, empty ones stay empty and can be given back.

Of an extent that does not start on a multiple of a block's alignment, so much more is taken that an aligned
part is in it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Final

from dsm.errors import InternalError, UsageError
from dsm.memory.buddy import MIN_BLOCK_BYTES, Buddy
from dsm.memory.classes import GRANULE_BYTES
from dsm.memory.span import Span

GRANULE_SHIFT: Final = GRANULE_BYTES.bit_length() - 1


class Extent:
    """An extent: its place, its buddy, and its spans."""

    __slots__ = ("address", "buddy", "end", "spans", "top")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.end = address + nbytes
        self.buddy = Buddy(nbytes)
        #: Span by each granule of the extent that it covers.
        self.spans: dict[int, Span] = {}
        #: Order of the largest free block, as the pool has noted it.
        self.top = self.buddy.largest_order

    def granules(self, span: Span) -> range:
        """Granules that a span covers; it shares none with another span."""
        return range(
            (span.start - self.address) >> GRANULE_SHIFT,
            (span.end - self.address + GRANULE_BYTES - 1) >> GRANULE_SHIFT,
        )


class Extents:
    """Extents by address, and by what they have room for; iterates over them in their order."""

    def __init__(self) -> None:
        #: Addresses of extents, ascending, and the extents.
        self._starts: list[int] = []
        self._extents: dict[int, Extent] = {}
        #: Extents by order of their largest free block, and a bit for each order that has some.
        self._by_top: list[dict[int, Extent]] = [{} for _ in range(65)]
        self._tops = 0
        #: Extents of which nothing is given away.
        self._empty: dict[int, None] = {}
        #: Every extent starts on a multiple of this power of two.
        self._alignment = 1 << 63

    def __len__(self) -> int:
        return len(self._extents)

    def __iter__(self) -> Iterator[Extent]:
        return (self._extents[address] for address in self._starts)

    def make(self, address: int, nbytes: int) -> Extent:
        """Return an extent that can be added.

        Raises
        ------
        UsageError
            It overlaps another one, or address or size is no multiple of 32.
        """
        if address <= 0 or address % MIN_BLOCK_BYTES:
            raise UsageError(
                f"an extent at {address:#x}: its address must be a positive multiple of {MIN_BLOCK_BYTES}"
            )
        extent = Extent(address, nbytes)
        index = bisect_right(self._starts, address)
        before = self._extents[self._starts[index - 1]] if index else None
        if (before and before.end > address) or (
            index < len(self._starts) and self._starts[index] < extent.end
        ):
            raise UsageError(
                f"the extent at {address:#x} with {nbytes} bytes overlaps another one of the pool"
            )
        return extent

    def add(self, extent: Extent) -> None:
        """Let blocks be cut from what `make` returned."""
        address = extent.address
        insort(self._starts, address)
        self._extents[address] = extent
        self._by_top[extent.top][address] = extent
        self._tops |= 1 << extent.top
        self._empty[address] = None
        self._alignment = min(self._alignment, address & -address)

    def remove(self, address: int) -> Extent:
        """Take an empty extent out.

        Raises
        ------
        UsageError
            There is none at that address, or something of it is given away.
        """
        extent = self._extents.get(address)
        if extent is None:
            raise UsageError(f"the pool has no extent at {address:#x}")
        if len(extent.buddy):
            raise UsageError(
                f"the extent at {address:#x} is in use: {extent.buddy.nbytes - extent.buddy.free_bytes} of "
                f"{extent.buddy.nbytes} bytes are given away"
            )
        del self._empty[address]
        self._forget_top(extent)
        del self._extents[address]
        self._starts.remove(address)
        self._alignment = min((start & -start for start in self._starts), default=1 << 63)
        return extent

    def empty(self) -> list[int]:
        """Addresses of extents of which nothing is given away."""
        return list(self._empty)

    def at(self, address: int) -> Extent | None:
        """Return the extent in which an address lies."""
        index = bisect_right(self._starts, address)
        if not index:
            return None
        extent = self._extents[self._starts[index - 1]]
        return extent if address < extent.end else None

    def cut_aligned(self, nbytes: int, align: int) -> tuple[Extent, int] | None:
        """Cut a block with `nbytes` from a multiple of `align` on; return its extent, and where it begins.

        Where extents start on no such multiple, the first of them lies somewhat behind that.
        """
        return self.cut(nbytes, align) if align <= self._alignment else self._cut_shifted(nbytes, align)

    def cut(self, nbytes: int, align: int) -> tuple[Extent, int] | None:
        """Cut a block from the extent with the smallest largest free block that will do."""
        order = (max(nbytes, align, MIN_BLOCK_BYTES) - 1).bit_length()
        fitting = self._tops >> order
        if fitting:
            top = order + (fitting & -fitting).bit_length() - 1
            filed = self._by_top[top]
            address, extent = filed.popitem()
            filed[address] = extent
            candidates: Iterable[Extent] = (extent,)
        elif align > nbytes:
            candidates = self._extents.values()
        else:
            # Only the end of an extent may keep a block from having a whole power of two: it begins with half
            # of it.
            candidates = self._by_top[order - 1].values() if order < 65 else ()
        for extent in candidates:
            offset = extent.buddy.allocate(nbytes, align)
            if offset is not None:
                self.changed(extent)
                return extent, offset
        return None

    def _cut_shifted(self, nbytes: int, align: int) -> tuple[Extent, int] | None:
        """Cut a block with `nbytes` from a multiple of `align` on, where extents may start on none."""
        for extent in self._extents.values():
            offset = extent.buddy.allocate((nbytes or 1) + -extent.address % align, align)
            if offset is not None:
                self.changed(extent)
                return extent, offset
        return None

    def changed(self, extent: Extent) -> None:
        """File an extent anew after its buddy gave or got something."""
        top = extent.buddy.largest_order
        if top != extent.top:
            self._forget_top(extent)
            extent.top = top
            self._by_top[top][extent.address] = extent
            if top >= 0:
                self._tops |= 1 << top
        if len(extent.buddy):
            self._empty.pop(extent.address, None)
        else:
            self._empty[extent.address] = None

    def _forget_top(self, extent: Extent) -> None:
        filed = self._by_top[extent.top]
        del filed[extent.address]
        if not filed and extent.top >= 0:
            self._tops ^= 1 << extent.top

    def check(self) -> None:
        """Verify what does not depend on who has what.

        Raises
        ------
        InternalError
            Names the first invariant that does not hold.
        """
        if self._starts != sorted(self._extents):
            raise InternalError("pool: the list of extents is not in order, or does not name each")
        end = 0
        for extent in self:
            address = extent.address
            if address < end or extent.end != address + extent.buddy.nbytes:
                raise InternalError(f"pool: the extent at {address:#x} overlaps another one")
            end = extent.end
            extent.buddy.check()
            if (address in self._empty) != (not len(extent.buddy)):
                raise InternalError(f"pool: the extent at {address:#x} is wrong about being empty")
            if extent.top != extent.buddy.largest_order or address not in self._by_top[extent.top]:
                raise InternalError(
                    f"pool: the extent at {address:#x} is not filed under its largest free block"
                )
        if sum(len(filed) for filed in self._by_top) != len(self._extents):
            raise InternalError("pool: an extent is filed that does not exist any more")
        for order, filed in enumerate(self._by_top[:-1]):
            if bool(filed) != bool(self._tops >> order & 1):
                raise InternalError(f"pool: bit {order} of the extents' orders does not say what is filed")
