"""The free small blocks of a heap that this worker keeps, and its exchange with the pool of its node.

Owns the cache (`dsm._native.caches`) with the ring behind it, batches on their way in both directions, and
which extents are mapped.  A worker may be interrupted, or die, at any step: what was told once is noted
where the answer is received, and a batch is sent again until it has arrived.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from dsm._native import caches
from dsm.errors import ClosedError, InternalError, UnknownNameError
from dsm.memory.cache import CACHE_BYTES, WORDS, outbox
from dsm.memory.classes import BATCHES, CAPACITIES, MAX_BATCH, MAX_SMALL_BYTES, SIZES, STEP_BYTES, class_of
from dsm.memory.rings import RING_SLOTS, RING_WORDS, Ring, entry
from dsm.wire import heaps
from dsm.worker import awaited
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
        #: Held while the heap talks to the manager about memory.  One for all heaps of the process: who has
        #: it and is interrupted by a signal handler, or a finalizer, has what that may want, too.
        self.slow = heap._node._heaps.slow
        #: Batches that came, by number, with their class; and extents to be mapped.
        self._batches: dict[int, tuple[int, heaps.HeapTaken]] = {}
        self._unmapped: set[int] = set()
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
                    arrived=partial(self._taken, cls),
                )
                self._keep_batches()
            address = take(self.handle, cls, nbytes, zero)
        return int(address)

    def _taken(self, cls: int, taken: heaps.HeapTaken, received: Descriptors) -> None:
        self._batches[taken.number] = cls, taken
        self.arrived(taken, received)

    def _keep_batches(self) -> None:
        """Put what came from the manager into the cache, once its memory is mapped."""
        for number, (cls, taken) in list(self._batches.items()):
            self.map_new()
            while not self._cache.fill(cls, taken.addresses, number):  # others have freed meanwhile
                self.give_batch(cls)
            self._batches.pop(number, None)

    def arrived(
        self, answer: heaps.HeapTaken | heaps.HeapAllocated | heaps.HeapGiven, _: Descriptors
    ) -> None:
        """Note what is new, and close what is gone: it is told once, also to who was interrupted.

        The thread that hears the manager does it, to which no signal handler comes.
        """
        if not isinstance(answer, heaps.HeapGiven):
            self._unmapped.update(answer.extents)
        for number in answer.gone:
            self._heap._node._regions.drop(number)

    def map_new(self) -> None:
        """Map the extents that are new."""
        if not self._unmapped:
            return
        regions = self._heap._node._regions
        with self.slow:
            for number in sorted(self._unmapped):
                try:
                    if regions.get(number) is None:
                        regions.open(number)
                except (ClosedError, UnknownNameError):  # it went away again meanwhile
                    pass
                self._unmapped.discard(number)

    @awaited.elsewhere
    def put(self, address: int, nbytes: int, cls: int) -> None:
        """Put an object into a cache that is full: a batch goes to the pool before."""
        while not caches.lib.dsm_cache_put(self.handle, address, nbytes, cls):
            with self.slow:
                self.give_batch(cls)

    def give_batch(self, cls: int) -> bool:
        """Send a batch of a class to the pool, after one that was interrupted; False when there is none."""
        leaving = self._leaving
        if leaving is None:
            self._cache.surplus(cls)
            number, addresses = outbox(self._cache.words)  # of who was interrupted right here, too
            if not addresses:
                return False
            leaving = self._leaving = heaps.HeapGive(self._heap._record.number, number, addresses)
        self._heap._call(leaving, heaps.HeapGiven, arrived=self.arrived)
        if self._leaving is leaving:  # a signal handler may have sent it meanwhile, and others
            self._cache.sent(leaving.number)
            self._leaving = None
        return True

    def put_away(self, node: int, address: int, nbytes: int) -> None:
        """Send a block of another node home, with others."""
        with self.slow:
            place = entry(node, address)
            if not caches.put_away(self._ring_words, RING_SLOTS, place, nbytes):
                self.send_home()
                if not caches.put_away(self._ring_words, RING_SLOTS, place, nbytes):
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
            give = heaps.HeapGive(self._heap._record.number)
            self._heap._call(give, heaps.HeapGiven, arrived=self.arrived)

    def give_all(self) -> None:
        """Give everything back that is kept."""
        with self.slow:
            self.send_home()
            for cls in range(len(SIZES)):
                while self.give_batch(cls):
                    pass
