"""A worker's cache of a heap, in C: see cache.c, and `dsm.memory.cache` for its layout.

Owns the memory map of the cache and the C record over it.  What lies on the path of every allocation and free
is called without this class: `lib.dsm_cache_take` and `lib.dsm_cache_put` with `Cache.handle`.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import dsm._native._shim as _shim

lib: Any = _shim.lib
_ffi: Any = _shim.ffi
_MASK = (1 << 64) - 1


class Cache:
    """A cache in a memory file.

    Parameters
    ----------
    fd, nbytes
        The file, and how much of it to map; it may be closed afterwards.
    by_step, capacities, batches, max_batch
        Of the layout: the class of each number of steps, by class how many objects are kept and travel.
    """

    def __init__(
        self,
        fd: int,
        nbytes: int,
        by_step: bytes,
        capacities: Sequence[int],
        batches: Sequence[int],
        max_batch: int,
    ) -> None:
        self._map = mmap.mmap(fd, nbytes)
        #: The file as 64-bit words.
        self.words = memoryview(self._map).cast("Q")
        steps = _ffi.new("uint8_t[]", by_step)
        made = lib.dsm_cache_new(
            _ffi.from_buffer("uint64_t[]", self.words),
            steps,
            len(by_step),
            list(capacities),
            list(batches),
            len(batches),
            max_batch,
        )
        if not made:
            raise MemoryError("no memory for the record of a heap's cache")
        #: For the C functions; freed with this object.
        self.handle = _ffi.gc(made, lib.dsm_cache_free)

    def fill(self, cls: int, addresses: Sequence[int], number: int) -> bool:
        """Put a batch on a stack, once; False: there is no room for all of it, and nothing was done."""
        return bool(lib.dsm_cache_fill(self.handle, cls, list(addresses), len(addresses), number))

    def surplus(self, cls: int) -> int:
        """Move a batch to the outbox; return how many objects: 0 also when one before it was not sent."""
        return int(lib.dsm_cache_surplus(self.handle, cls))

    def sent(self, number: int) -> None:
        """The batch in the outbox has arrived."""
        lib.dsm_cache_sent(self.handle, number)

    def count(self, allocated: int, freed: int, asked: int, given: int) -> None:
        """Count blocks that do not go through the cache."""
        lib.dsm_cache_count(self.handle, allocated, freed, asked & _MASK, given & _MASK)


def put_away(ring: memoryview, slots: int, place: int, nbytes: int) -> bool:
    """Put an entry into a ring (`dsm.memory.rings`), in one step for handlers; False: it is full."""
    return bool(lib.dsm_ring_put(_ffi.from_buffer("uint64_t[]", ring), slots, place, nbytes))


def zero(address: int, nbytes: int) -> None:
    """Store zeros."""
    lib.dsm_zero(address, nbytes)


def copy(to: int, source: int, nbytes: int) -> None:
    """Copy bytes between addresses, which may overlap."""
    lib.dsm_copy(to, source, nbytes)
