"""How a block of a heap is given back that does not simply go into the cache of this worker.

Owns who may free what, and the way home: large blocks at once, those of other nodes together with others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsm import _native
from dsm.errors import HeapCorruptionError, UsageError
from dsm.wire import heaps
from dsm.worker import awaited, guarded
from dsm.worker.block import NO_CLASS, RegionBlock, WholeBlock

if TYPE_CHECKING:
    from dsm.worker.heap import Heap


@awaited.elsewhere
def free(heap: Heap, what: object) -> None:
    """Free what is no live small block of this node."""
    if isinstance(what, np.ndarray):
        _free_array(heap, what)
        return
    heap._check_open()
    block = heap._mine(what)
    if isinstance(block, RegionBlock):
        heap._direct.free(block)
        return
    address = block._address
    if isinstance(block, WholeBlock):
        heap._cache.release_before(block._home)
    if not address or heap._live.get(address) is not block or heap._live.pop(address, None) is not block:
        raise UsageError(
            f"double free: the block of {block._nbytes} bytes of heap {heap.name!r} was freed by this "
            "process already; free it once"
        )
    if heap.options.debug:
        try:
            found = guarded.look(heap, address)
        except HeapCorruptionError:  # another process has freed it
            block._address = 0
            raise
        except BaseException:
            heap._live[address] = block
            raise
        block._address = 0
        guarded.free(heap, found)
        return
    block._address = 0
    assert isinstance(block, WholeBlock)
    if block._home == heap._home or block._class == NO_CLASS:
        _free_at(heap, block._home, address, block._nbytes)
    else:
        heap._cache.put_away(block._home, address, block._nbytes)


def _free_at(heap: Heap, node: int, address: int, nbytes: int) -> None:
    """Free a block at once, at the pool that it is of."""
    heap._call(heaps.HeapFree(heap._record.number, node, address, nbytes), heaps.HeapFreed)


def _free_array(heap: Heap, array: np.ndarray[Any, Any]) -> None:
    heap._check_open()
    address = array.__array_interface__["data"][0]
    block = heap._live.get(address)
    if block is not None:
        if block._nbytes - array.nbytes >= max(1, array.itemsize):
            raise UsageError(
                f"the array of shape {array.shape} at {address:#x} is a part of {block!r}; pass what "
                "array() returned, or the block"
            )
        heap.free(block)
        return
    found = _native.region_find(address)
    region = heap._node._regions.get(found[0]) if found else None
    if region is None or region.options.heap != heap.name or region.options.use not in ("extent", "block"):
        raise UsageError(
            f"the array of shape {array.shape} at {address:#x} is none of heap {heap.name!r}, or was "
            "freed already; pass what array() returned"
        )
    if region.options.use == "block":
        if address != region.address:
            raise UsageError(f"the array at {address:#x} is a part of a block; pass what array() returned")
        heap.free(RegionBlock(heap, address, array.nbytes, NO_CLASS, region))
    elif heap.options.debug:
        guarded.free(heap, guarded.look(heap, address))
    else:
        assert isinstance(region.options.home, int)
        heap._cache.release_before(region.options.home)
        _free_at(heap, region.options.home, address, array.nbytes)
