"""How a block of a heap gets another size: where it is, or in another place.

Owns which of the two it is, and that the figures say what is asked for now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm._native import caches
from dsm.units import bytes_of
from dsm.wire import heaps
from dsm.worker.block import NO_CLASS, Block, RegionBlock, WholeBlock

if TYPE_CHECKING:
    from dsm.worker.heap import Heap


def realloc(heap: Heap, block: Block, nbytes: int | str) -> Block:
    """Do what `Heap.realloc` says."""
    heap._check_open()
    old, new = heap._mine(block), bytes_of(nbytes, "nbytes")
    old._check()
    if not _resize(heap, old, new):
        moved = heap.alloc(new, 16, False, _manager_of(old))
        try:
            kept = min(old._nbytes, new)
            caches.copy(moved._place(), old._place(), kept)
            caches.zero(moved._place() + kept, new - kept)
        except BaseException:
            heap.free(moved)
            raise
        heap.free(old)
        return moved
    return old


def _resize(heap: Heap, block: Block, nbytes: int) -> bool:
    """Give a block another size where it is, if it can have that there."""
    before = block._nbytes
    if nbytes > before:
        heap._check_size(nbytes)
    if isinstance(block, RegionBlock) and block._own is None:
        block._nbytes = nbytes
        return True
    if heap.options.debug or (
        nbytes > block._usable() and (block._class != NO_CLASS or isinstance(block, RegionBlock))
    ):
        return False
    if isinstance(block, WholeBlock) and nbytes != before:
        grown = heap._call(
            heaps.HeapGrow(heap._record.number, block._home, block._address, nbytes, before),
            heaps.HeapGrown,
        )
        if not grown.grown:
            return False
        block._size = grown.usable
    if nbytes > before:
        caches.zero(block._place() + before, nbytes - before)
    block._nbytes = nbytes
    if isinstance(block, RegionBlock):
        heap._direct.tell_size(block)
    elif not isinstance(block, WholeBlock):
        heap._cache.count(0, 0, max(0, nbytes - before), max(0, before - nbytes))
    return True


def _manager_of(block: Block) -> str:
    return "direct" if isinstance(block, RegionBlock) else "pooled"
