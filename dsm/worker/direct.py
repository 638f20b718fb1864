"""Blocks that are regions of their own (manager "direct").

Owns how they are made, at once or at their first use, and how they end: here, or by another process, which
nobody is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.errors import ClosedError, DSMError, UnknownNameError, UsageError
from dsm.types import RegionOptions
from dsm.wire import control, heaps
from dsm.worker.block import NO_CLASS, Block, RegionBlock

if TYPE_CHECKING:
    from dsm.worker.heap import Heap

#: Blocks with their own region that a process maps before it asks which of them others have freed.
ASK_AT_LEAST = 256


class DirectBlocks:
    """The blocks of a heap that are regions of their own.

    Parameters
    ----------
    heap
        Whose they are.
    """

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        #: Regions of blocks that were mapped here since it was asked which of them are left, and were left
        #: then; and when it is asked again.
        self._regions, self._ask_at = 0, ASK_AT_LEAST

    def alloc(self, nbytes: int) -> Block:
        """Return a block; one of a lazy heap has no memory yet."""
        block = RegionBlock(self._heap, 0, nbytes, NO_CLASS)
        if self._heap.options.kind == "eager":
            self.make(block)
        return block

    def make(self, block: RegionBlock) -> None:
        """Make the region of a block, at its first use."""
        with self._heap._cache.slow:
            block._check()
            if block._own is not None:
                return
            self._heap._check_open()
            self.forget_freed()  # before there is anything that an interruption would lose
            options = RegionOptions(
                nbytes=block._usable(),
                page_size=self._heap.options.page_size,
                consistency=self._heap.options.consistency,
                home=self._heap._home,
                use="block",
                heap=self._heap.name,
            )
            region, _ = self._heap._node._regions.create(options, ready=False)
            self._heap._node._connection.session.post(control.RegionReady(region.number))
            block._own, block._address = region, region.address
            self._heap._cache.count(1, 0, 0, 0)
            block._unasked = 0
            self.tell_size(block)
            self._heap._live[region.address] = block

    def forget_freed(self) -> None:
        """Before one is mapped, close regions of blocks that other processes have freed: nobody is told.

        It asks after each of them when there are twice as many as were left the last time.
        """
        self._regions += 1
        if self._regions < self._ask_at:
            return
        kept = 0
        for address, block in list(self._heap._live.items()):
            if not isinstance(block, RegionBlock) or block._own is None:
                continue
            try:
                self._heap._node._regions.open(block._own.number)
            except (ClosedError, UnknownNameError):
                self._heap._live.pop(address, None)
                self._heap._node._regions.drop(block._own.number)
            except DSMError:  # nobody can say now: it is asked again with the others
                kept += 1
            else:
                kept += 1
        self._regions, self._ask_at = kept, max(ASK_AT_LEAST, 2 * kept)

    def free(self, block: RegionBlock) -> None:
        """Give a block back with its region."""
        with self._heap._cache.slow:
            if block._freed:
                raise self._freed_twice(block, "this")
            if block._own is not None:
                self._heap._live.pop(block._address, None)
                try:
                    self._heap._node._regions.destroy(block._own.number)
                except UnknownNameError:
                    block._freed = True
                    self._heap._node._regions.drop(block._own.number)
                    raise self._freed_twice(block, "another") from None
                self._heap._cache.count(0, 1, 0, 0)
            block._freed, block._address = True, 0

    def _freed_twice(self, block: RegionBlock, process: str) -> UsageError:
        return UsageError(
            f"double free: the block of {block._nbytes} bytes of heap {self._heap.name!r} was freed by "
            f"{process} process already; free it once"
        )

    def tell_size(self, block: RegionBlock) -> None:
        """Tell how much of a block's pages nobody asked for, if that is not so already."""
        unasked = block._usable() - block._nbytes
        own = block._own
        if own is not None and unasked != block._unasked:
            assert isinstance(own.options.home, int)
            number, home = self._heap._record.number, own.options.home
            self._heap._node._connection.session.post(heaps.HeapUnasked(number, home, own.number, unasked))
            block._unasked = unasked
