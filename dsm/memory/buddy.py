"""The buddy allocator of one extent.

Owns which bytes of an extent are given away.  Works with offsets and keeps its books outside the memory it
manages, in as much memory as there are blocks: an extent of a terabyte costs what one of a kilobyte costs.

Free memory is kept as *free blocks*: powers of two on multiples of themselves, each as large as it can be (a
free block whose buddy, its neighbour in the block twice as large, is free is one with it).  An extent that is
no power of two begins as several: 7 KiB are 4 + 2 + 1.  One set of offsets for each power, and one bit for
each set that is not empty.

A *block* that was allocated is cut from the smallest free block that holds it, from the front, and what is
left of that goes back: 5 MiB cost 5 MiB, not 8.  Sizes keep four significant bits (at most 12.5 % more than
asked for), so that a block has at most four powers of two in it and leaves no crumbs.  A block also fits
where only the end of the extent prevents a free block of its power: an untouched extent holds any block up to
its own size.

`allocate` and `free` take O(log n) steps for an extent of n bytes, `grow` O(log² n).
"""

from __future__ import annotations

from typing import Final

from dsm.errors import InternalError, UsageError

#: Bytes of the smallest block; sizes and offsets are multiples of it.
MIN_BLOCK_BYTES: Final = 32
_MIN_ORDER: Final = MIN_BLOCK_BYTES.bit_length() - 1
#: Bits of a size that are kept; the others are rounded up.
_SIGNIFICANT: Final = 4


def smallest_multiple(nbytes: int) -> int:
    """`nbytes` in whole smallest blocks; nothing takes one, too."""
    return (nbytes + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES or MIN_BLOCK_BYTES


def rounded(nbytes: int) -> int:
    """Bytes of a block for `nbytes`: four significant bits, at least `MIN_BLOCK_BYTES`."""
    step = 1 << max(_MIN_ORDER, (nbytes - 1).bit_length() - _SIGNIFICANT)
    return (nbytes + step - 1) & -step or MIN_BLOCK_BYTES


class Buddy:
    """An extent of `nbytes` bytes, all of them free at first.

    Parameters
    ----------
    nbytes : int
        A positive multiple of `MIN_BLOCK_BYTES`; not necessarily a power of two.

    Raises
    ------
    UsageError
        No extent has that size.
    """

    __slots__ = ("_free", "_orders", "_used", "free_bytes", "nbytes")

    def __init__(self, nbytes: int) -> None:
        if nbytes < MIN_BLOCK_BYTES or nbytes % MIN_BLOCK_BYTES:
            raise UsageError(
                f"an extent of {nbytes} bytes: pass a multiple of {MIN_BLOCK_BYTES}, and not less"
            )
        self.nbytes = nbytes
        #: Bytes of all free blocks.
        self.free_bytes = 0
        #: Offsets of free blocks by order: one of order k has 2^k bytes.  (Dicts: their last key is found at
        #: once.)
        self._free: list[dict[int, None]] = [{} for _ in range(nbytes.bit_length() + 1)]
        #: Bit k is set when there is a free block of order k.
        self._orders = 0
        #: Offset of each block that is given away: its bytes.
        self._used: dict[int, int] = {}
        self._release(0, nbytes)

    def __len__(self) -> int:
        """Blocks that are given away."""
        return len(self._used)

    @property
    def largest_order(self) -> int:
        """Order of the largest free block; -1 when there is none."""
        return self._orders.bit_length() - 1

    @property
    def largest_free(self) -> int:
        """Bytes of the largest block that `allocate` gives: each smaller one fits, too."""
        top = self._orders.bit_length() - 1
        if top < 0:
            return 0
        # Only before the end of the extent a block may be longer than the free block it starts with.
        start = self.nbytes >> (top + 1) << (top + 1)
        place = start
        while (order := self._order_at(place)) >= 0:
            place += 1 << order
        return max(1 << top, place - start)

    def allocate(self, nbytes: int, align: int = 1) -> int | None:
        """Return the offset of a block, or None if there is no room.

        Parameters
        ----------
        nbytes : int
            0 counts as 1.
        align : int
            A power of two of which the offset is a multiple.

        Raises
        ------
        UsageError
            The size is negative.
        """
        if nbytes < 0:
            raise UsageError(f"{nbytes} bytes: pass a number that is not negative")
        size = rounded(nbytes)
        order = (max(size, align) - 1).bit_length()
        fitting = self._orders >> order
        if fitting:
            order += (fitting & -fitting).bit_length() - 1
            blocks = self._free[order]
            offset, _ = blocks.popitem()
            if not blocks:
                self._orders ^= 1 << order
            self._put_back(offset + size, offset + (1 << order))
        else:
            offset = self.nbytes >> order << order
            if not self._claim(offset, offset + size):
                size = smallest_multiple(nbytes)
                if not self._claim(offset, offset + size):
                    return None
        self._used[offset] = size
        self.free_bytes -= size
        return offset

    def free(self, offset: int) -> int:
        """Take a block back and return its bytes.

        Raises
        ------
        UsageError
            No block starts there; the message says whether its memory is free or within another block.
        """
        size = self._used.pop(offset, None)
        if size is None:
            raise UsageError(f"offset {offset} was not given away: {self.explain(offset)}")
        self._release(offset, offset + size)
        return size

    def grow(self, offset: int, nbytes: int) -> bool:
        """Make a block at least `nbytes` long where it lies; False if what is behind it is not free.

        Raises
        ------
        UsageError
            No block starts there.
        """
        size = self.size_of(offset)
        if nbytes <= size:
            return True
        for wanted in (rounded(nbytes), smallest_multiple(nbytes)):
            if self._claim(offset + size, offset + wanted):
                self._used[offset] = wanted
                self.free_bytes -= wanted - size
                return True
        return False

    def size_of(self, offset: int) -> int:
        """Bytes of the block that starts there.

        Raises
        ------
        UsageError
            None does.
        """
        size = self._used.get(offset)
        if size is None:
            raise UsageError(f"offset {offset} was not given away: {self.explain(offset)}")
        return size

    def explain(self, offset: int) -> str:
        """Say what an offset is."""
        if not 0 <= offset < self.nbytes:
            return f"the extent has {self.nbytes} bytes"
        if offset in self._used:
            return f"a block of {self._used[offset]} bytes starts there"
        order = _MIN_ORDER
        while order < len(self._free):
            if offset >> order << order in self._free[order]:
                return "its memory is free (freed twice?)"
            order += 1
        return "it lies inside a block, not at its start"

    def blocks(self) -> dict[int, int]:
        """Offset and bytes of each block that is given away (a copy)."""
        return dict(self._used)

    def check(self) -> None:
        """Verify every invariant.

        Raises
        ------
        InternalError
            Names the first that does not hold.
        """
        pieces = [(offset, size, True) for offset, size in self._used.items()]
        free = 0
        for order, blocks in enumerate(self._free):
            if bool(blocks) != bool(self._orders >> order & 1):
                raise InternalError(f"buddy: bit {order} of the free orders does not say what its set holds")
            for offset in blocks:
                if order < _MIN_ORDER or offset & ((1 << order) - 1):
                    raise InternalError(f"buddy: free block of order {order} at {offset} is not aligned")
                if offset ^ (1 << order) in blocks:
                    raise InternalError(f"buddy: free buddies of order {order} at {offset} are not one block")
                pieces.append((offset, 1 << order, False))
            free += len(blocks) << order
        end = 0
        for offset, size, used in sorted(pieces):
            if used and (size < MIN_BLOCK_BYTES or offset % MIN_BLOCK_BYTES or size % MIN_BLOCK_BYTES):
                raise InternalError(
                    f"buddy: block of {size} bytes at {offset} is no multiple of the smallest"
                )
            if offset < end:
                raise InternalError(f"buddy: two blocks overlap at {offset}")
            if offset > end:
                raise InternalError(f"buddy: bytes from {end} to {offset} belong to no block")
            end = offset + size
        if end != self.nbytes:
            raise InternalError(f"buddy: blocks end at {end}, the extent at {self.nbytes}")
        if free != self.free_bytes:
            raise InternalError(f"buddy: {free} bytes are free, {self.free_bytes} are counted")

    def _order_at(self, offset: int) -> int:
        """Order of the free block that starts there, or -1."""
        low = offset & -offset
        orders = self._orders & ((low << 1) - 1) if low else self._orders
        while orders:
            order = orders.bit_length() - 1
            if offset in self._free[order]:
                return order
            orders ^= 1 << order
        return -1

    def _claim(self, start: int, end: int) -> bool:
        """Take the bytes from `start`, where no free block is cut in two, to `end`, if all are free."""
        found = []
        place = start
        while place < end:
            order = self._order_at(place)
            if order < 0:
                return False
            found.append((place, order))
            place += 1 << order
        for offset, order in found:
            del self._free[order][offset]
            if not self._free[order]:
                self._orders ^= 1 << order
        self._put_back(end, place)
        return True

    def _put_back(self, start: int, end: int) -> None:
        """Make the end of what was one free block free again: it has no buddy that is."""
        while start < end:
            size = start & -start
            order = size.bit_length() - 1
            self._free[order][start] = None
            self._orders |= 1 << order
            start += size

    def _release(self, start: int, end: int) -> None:
        """Make bytes free, each power of two one with its buddy wherever that is free."""
        self.free_bytes += end - start
        free = self._free
        while start < end:
            order = (end - start).bit_length() - 1
            if start:
                order = min(order, (start & -start).bit_length() - 1)
            offset = start
            start += 1 << order
            while (buddy := offset ^ 1 << order) in free[order]:
                del free[order][buddy]
                if not free[order]:
                    self._orders ^= 1 << order
                offset &= ~(1 << order)
                order += 1
            free[order][offset] = None
            self._orders |= 1 << order
