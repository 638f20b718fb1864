"""The free small blocks of a heap that this worker keeps, and its exchange with the pool of its node.

Owns the cache (`dsm._native.caches`) with the ring behind it, batches on their way in both directions, and
which extents are mapped.  A worker may be interrupted, or die, at any step: what was told once is noted
where the answer is received, and a batch is sent again until it has arrived.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from dsm._native import caches
from dsm.errors import ClosedError, InternalError, UnknownNameError
from dsm.memory.cache import CACHE_BYTES, WORDS, outbox
from dsm.memory.classes import BATCHES, CAPACITIES, MAX_BATCH, MAX_SMALL_BYTES, SIZES, STEP_BYTES, class_of
from dsm.memory.rings import RING_SLOTS, RING_WORDS, Ring, entry
from dsm.wire import heaps
from dsm.worker.session import Descriptors

if TYPE_CHECKING:
    from dsm.worker.heap import Heap

#: Blocks of other nodes that are sent home together.
HOME_BATCH = 32
#: Class of a block by steps of 16 bytes, as `class_of` says.
BY_STEP = bytes(class_of(step * STEP_BYTES) for step in range(MAX_SMALL_BYTES // STEP_BYTES + 1))


class HeapCache:
    """The cache of one heap in this process.

    Parameters
    ----------
    heap
        Whose blocks it keeps.
    received
        The memory file.
    """

    def __init__(self, heap: Heap, received: Descriptors) -> None:
        self._heap = heap
        (fd,) = received.take(1)
        try:
            size = CACHE_BYTES + 8 * RING_WORDS
            self._cache = caches.Cache(fd, size, BY_STEP, CAPACITIES, BATCHES, MAX_BATCH)
        finally:
            os.close(fd)
        self._ring_words = self._cache.words[WORDS:]
        self._ring = Ring(self._ring_words)
        #: For the functions in C.
        self.handle = self._cache.handle
        #: Counts blocks that do not go through the cache.
        self.count = self._cache.count
        #: Held while the heap talks to the manager about memory; reentrant for the sake of signal handlers.
        self.slow = threading.RLock()
        #: Batches that came, and extents to be mapped.
        self._batches: list[tuple[int, heaps.HeapTaken]] = []
        self._unmapped: set[int] = set()
        self._batch_number = 0
        #: A batch that left the cache and has not arrived yet.
        self._leaving: heaps.HeapGive | None = None

    def take(self, cls: int, nbytes: int, zero: bool) -> int:
        """Take an object from the cache, and get a batch before if there is none."""
        take = caches.lib.dsm_cache_take_of
        address = take(self.handle, cls, nbytes, zero)
        while not address:
            with self.slow:
                self._keep_batches()
                address = take(self.handle, cls, nbytes, zero)
                if address:
                    break
                self._heap._call(
                    heaps.HeapTake(self._heap._record.number, cls, BATCHES[cls]),
                    heaps.HeapTaken,
                    arrived=lambda taken, _: self._batches.append((cls, taken)),
                )
                self._keep_batches()
            address = take(self.handle, cls, nbytes, zero)
        return int(address)

    def _keep_batches(self) -> None:
        """Put what came from the manager into the cache, once its memory is mapped."""
        while self._batches:
            first = cls, taken = self._batches[0]
            self.news(taken.extents, taken.gone)
            over = self._cache.fill(cls, taken.addresses, taken.number)  # nothing happens the second time
            if self._batches and self._batches[0] is first:
                del self._batches[0]
            for address in over:
                self.put_away(self._heap._home, address)

    def news(self, extents: tuple[int, ...], gone: tuple[int, ...]) -> None:
        """Map extents that are new, and close those that are gone."""
        self._unmapped.update(extents)
        if not self._unmapped and not gone:
            return
        regions = self._heap._node._regions
        with self.slow:
            while self._unmapped:
                number = min(self._unmapped)
                try:
                    if regions.get(number) is None:
                        regions.open(number)
                except (ClosedError, UnknownNameError):  # it went away again meanwhile
                    pass
                self._unmapped.discard(number)
            for number in gone:
                regions.drop(number)

    def put(self, address: int, nbytes: int, cls: int) -> None:
        """Put an object into a cache that is full: a batch goes to the pool before."""
        while not caches.lib.dsm_cache_put(self.handle, address, nbytes, cls):
            with self.slow:
                self.give_batch(cls)

    def give_batch(self, cls: int) -> bool:
        """Send a batch of a class to the pool, after one that was interrupted; False when there is none."""
        leaving = self._leaving
        if leaving is None:
            self._cache.surplus(cls, self._batch_number + 1)
            number, addresses = outbox(self._cache.words)  # of who was interrupted right here, too
            if not addresses:
                return False
            self._batch_number = max(number, self._batch_number)
            leaving = self._leaving = heaps.HeapGive(self._heap._record.number, number, addresses)
        given = self._heap._call(leaving, heaps.HeapGiven)
        if self._leaving is leaving:  # a signal handler may have sent it meanwhile, and others
            self._cache.sent(leaving.number)
            self._leaving = None
        self.news((), given.gone)
        return True

    def put_away(self, node: int, address: int) -> None:
        """Send a block home, with others: it is of another node, or there is no room for it here."""
        self.release_before(node)
        with self.slow:
            freed = entry(node, address)
            if not caches.put_away(self._ring_words, RING_SLOTS, freed):
                self.send_home()
                if not caches.put_away(self._ring_words, RING_SLOTS, freed):
                    raise InternalError(f"the manager leaves {len(self._ring)} freed blocks where they are")
            if len(self._ring) >= HOME_BATCH:
                self.send_home()

    def release_before(self, node: int) -> None:
        """What was written here into a block of another node must not come after its next owner's bytes."""
        if node != self._heap._home and self._heap.options.consistency == "release":
            self._heap._node.release()

    def send_home(self) -> None:
        """Send what is in the ring to where it belongs."""
        if len(self._ring):
            self._heap._call(heaps.HeapGive(self._heap._record.number), heaps.HeapGiven)

    def arrived(self, given: heaps.HeapAllocated, _: Descriptors) -> None:
        """Extents are told once, also to who was interrupted and does not look at the answer."""
        self._unmapped.update(given.extents)

    def give_all(self) -> None:
        """Give everything back that is kept."""
        with self.slow:
            self.send_home()
            for cls in range(len(SIZES)):
                while self.give_batch(cls):
                    pass
