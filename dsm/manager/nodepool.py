"""The pool of one heap on this node.

Owns a `dsm.memory.pool.Pool`, and what its workers and others ask of it; knows neither sessions nor links.
Its extents come and go in `dsm.manager.growth`, what a worker keeps is in `dsm.manager.workercache`, what is
known of each block in debug mode in `dsm.manager.quarantine`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from dsm.errors import ClosedError, DSMError, InternalError, LimitError, UsageError
from dsm.log import logger
from dsm.manager.growth import Grown, Growth
from dsm.manager.quarantine import Quarantine
from dsm.manager.workercache import Cache
from dsm.memory.classes import CLASSES, MAX_SMALL_BYTES, SIZES, class_of, span_bytes
from dsm.memory.guards import front_bytes, guarded_bytes
from dsm.types import HeapRecord
from dsm.wire import heaps

#: Blocks that were freed twice of which the log says so.
_SAID = 5
#: How often it is looked again whether an object lies in two caches.
LOOKS = 3


class NodePool:
    """The memory of one heap on this node.

    Parameters
    ----------
    heap
        Its number and options.
    node
        This node.
    growth
        Its extents.
    """

    def __init__(self, heap: HeapRecord, node: int, growth: Growth) -> None:
        self.heap = heap
        self._node = node
        self._pool = growth.pool
        self._growth = growth
        #: Of blocks that are regions of their own: bytes that are locked in memory, and what nobody asked for
        #: of their pages.
        self.locked_blocks: dict[int, int] = {}
        self.unasked: dict[int, int] = {}
        self.caches: dict[int, Cache] = {}
        #: Allocations, frees, bytes asked for, bytes of those freed: by workers that are gone, and of blocks
        #: that did not go through the cache of a worker here.
        self._counted = [0, 0, 0, 0]
        self.refused = self.lost = 0
        #: Of debug mode.
        self._blocks = Quarantine(heap.options.name)

    @property
    def closed(self) -> bool:
        """Whether the heap was destroyed."""
        return self._growth.closed

    # -- workers -----------------------------------------------------------------------------------------

    def open(self, worker: int) -> int | None:
        """Return the descriptor of a new cache for a worker; None when it has one."""
        if worker in self.caches:
            return None
        cache = self.caches[worker] = Cache()
        return cache.fd

    def news(self, worker: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the extents that a worker does not know, and those that are gone; now it knows."""
        cache = self.caches.get(worker)
        if cache is None:
            return (), ()
        gone = self._gone_for(worker)
        new = self._growth.regions - cache.told
        cache.told |= new
        return tuple(sorted(new)), gone

    def _gone_for(self, worker: int) -> tuple[int, ...]:
        cache = self.caches.get(worker)
        if cache is None:
            return ()
        gone = cache.told - self._growth.regions
        cache.told -= gone
        return tuple(sorted(gone))

    def worker_gone(self, worker: int) -> dict[int, list[tuple[int, int]]]:
        """Take back what a worker kept; return what it had yet to send home, by node."""
        cache = self.caches.pop(worker, None)
        if cache is None:
            return {}
        away = cache.away()
        for index, value in enumerate(cache.counted()):
            self._counted[index] += value
        self.give_home(cache.held())
        cache.close()
        return away

    # -- blocks ------------------------------------------------------------------------------------------

    def take(
        self, worker: int, size_class: int, count: int, then: Callable[[heaps.HeapTaken], None], fail: Grown
    ) -> None:
        """Send a batch of objects to a worker's cache."""
        if not 0 <= size_class < CLASSES or not 0 < count <= 1024:
            raise UsageError(f"{count} objects of class {size_class}: there are {CLASSES} classes")

        cache = self.caches.get(worker)
        # What an extent must hold: a span, or one object when the heap may not grow by so much.
        needed = [SIZES[size_class], span_bytes(size_class)]

        def again(error: DSMError | None) -> None:
            if isinstance(error, LimitError) and len(needed) > 1:
                needed.pop()
                error = None
            if error is not None or cache is None or self.caches.get(worker) is not cache:
                fail(error)
                return
            addresses = tuple(self._pool.take(size_class, count))
            if not addresses:
                self._growth.grow(self._pool.extent_for(needed[-1]), again)
                return
            for address in addresses:
                self._growth.touch(address)
            then(heaps.HeapTaken(cache.send(addresses), addresses, *self.news(worker)))

        again(None)

    def give(self, worker: int, number: int, addresses: tuple[int, ...]) -> heaps.HeapGiven:
        """Take back a batch that left a worker's cache."""
        cache = self.caches.get(worker)
        refused: list[int] = []
        if cache is not None and number > cache.received:
            cache.received = number
            refused = self.give_home(addresses)
        return heaps.HeapGiven(tuple(refused), self._gone_for(worker))

    def _resting(self, addresses: Iterable[int]) -> set[int]:
        """Return what lies in caches of workers and could be one of these blocks: it is free already."""
        classes: set[int] = set()
        for address in addresses:
            with contextlib.suppress(UsageError):
                size = self._pool.usable_size(address)
                if size <= MAX_SMALL_BYTES:  # larger ones are in no cache
                    classes.add(class_of(size))
        if not classes:
            return set()
        return {address for cache in self.caches.values() for address in cache.held(classes)}

    def come_home(self, blocks: Sequence[tuple[int, int]]) -> list[int]:
        """Take back blocks, with the bytes that were asked for, that came by no cache; return the addresses
        of those that were free already.
        """
        resting = self._resting(address for address, _ in blocks)
        twice = [address for address, _ in blocks if address in resting]
        self.refused += len(twice)
        refused = twice + self.give_home(address for address, _ in blocks if address not in resting)
        left = Counter(refused)
        for address, nbytes in blocks:
            if left[address]:
                left[address] -= 1
            else:
                self._freed(nbytes)
        return refused

    def _freed(self, nbytes: int) -> None:
        self._counted[1] += 1
        self._counted[3] += nbytes

    def give_home(self, addresses: Iterable[int]) -> list[int]:
        """Take back blocks; return those that were not out."""
        if self.closed:
            return []
        refused = self._pool.give(addresses)
        for address in refused[: max(0, _SAID - self.refused)]:  # the figure counts them all
            said = self._pool.explain(address)
            logger.warning("heap %r: %#x was freed: %s", self.heap.options.name, address, said)
        self.refused += len(refused)
        self._growth.shrink(1)
        return refused

    def allocate(
        self, worker: int, asked: heaps.HeapAllocate, then: Callable[[heaps.HeapAllocated], None], fail: Grown
    ) -> None:
        """Allocate one block."""
        nbytes, align = asked.nbytes, asked.align
        if not 0 <= nbytes < 1 << 47 or not 0 < align < 1 << 47:
            raise UsageError(f"a block of {nbytes} bytes at a multiple of {align} cannot be")
        debug = self.heap.options.debug
        whole = guarded_bytes(nbytes, align) if debug else nbytes
        self._pool.extent_for(whole, align)  # refuses what is no alignment

        cache = self.caches.get(worker)

        def again(error: DSMError | None) -> None:
            if error is not None or cache is None or self.caches.get(worker) is not cache:
                fail(error)
                return
            address = self._pool.allocate(whole, align)
            if address is None:
                self._growth.grow(self._pool.extent_for(whole, align), again)
                return
            self._counted[0] += 1
            self._counted[2] += nbytes
            usable = self._pool.usable_size(address)
            fresh = self._growth.touch(address)
            if debug:
                address, usable = address + front_bytes(align), nbytes
                self._blocks.allocated(address, nbytes, align, asked.place)
            then(heaps.HeapAllocated(address, usable, fresh, *self.news(worker)))

        again(None)

    def free(self, address: int, nbytes: int, place: str = "") -> heaps.HeapFreed:
        """Take one block back, of which so many bytes were asked for."""
        if not self.heap.options.debug:
            if address in self._resting((address,)):
                raise UsageError(
                    f"double free: the block at {address:#x} of heap {self.heap.options.name!r} was freed "
                    "already: it lies in the cache of a worker; free it once"
                )
            size = self._pool.free(address)
            self._freed(max(0, min(nbytes, size)))
            self._growth.shrink(1)
            return heaps.HeapFreed()
        if not place:  # who asked for it was interrupted
            block = self._blocks.undone(address)
            self._freed(block.nbytes)
            self._release(block)
            return heaps.HeapFreed()
        known = self._blocks.find(address, place).nbytes
        leaving, forgotten = self._blocks.freed(address, place)
        self._freed(known)
        for block in forgotten:
            self._release(block)
        return heaps.HeapFreed(tuple(leaving))

    def _release(self, block: heaps.DebugBlock) -> None:
        """The memory of a freed block can be used again."""
        self._pool.free(block.address - front_bytes(block.align))

    def retire(self, addresses: Iterable[int]) -> None:
        """Freed blocks were looked at."""
        for block in self._blocks.retire(addresses):
            self._release(block)
        self._growth.shrink(1)

    def guarded(self, address: int) -> None:
        """The guards of a block stand."""
        self._blocks.guarded(address)

    def grow_block(self, address: int, nbytes: int, before: int) -> heaps.HeapGrown:
        """Make a block longer where it is, if there is room, or shorter: `before` was asked for until now."""
        if not 0 <= nbytes < 1 << 63 or not 0 <= before < 1 << 63:
            raise UsageError(f"a block of {nbytes} bytes, that had {before}, cannot be")
        grown = self._pool.grow(address, nbytes)
        if grown:
            self._counted[2] += max(0, nbytes - before)
            self._counted[3] += max(0, before - nbytes)
            self._growth.touch(address)
        return heaps.HeapGrown(grown, self._pool.usable_size(address))

    def find(self, address: int, place: str = "") -> heaps.HeapFound:
        """Say what block begins at an address."""
        if self.heap.options.debug:
            block = self._blocks.find(address, place)
            return heaps.HeapFound(block.nbytes, block.align, block.place)
        return heaps.HeapFound(self._pool.usable_size(address))

    def prepare(self, then: Grown) -> None:
        """Make the first extent, if there is none."""
        self._growth.prepare(then)

    def trim(self, then: Callable[[], None]) -> None:
        """Give every empty extent back."""
        self._growth.shrink(0, then)

    def close(self) -> None:
        """The heap is destroyed."""
        for then in self._growth.close():
            then(closed(self.heap.options.name))
        for cache in self.caches.values():
            cache.close()
        self.caches.clear()

    # -- figures -----------------------------------------------------------------------------------------

    def count(self) -> heaps.PoolCount:
        """Return what this pool has, what lies in caches left out of what is used."""
        figures = self._pool.figures()
        cached = cached_bytes = 0
        counted = list(self._counted)
        for cache in self.caches.values():
            for index, value in enumerate(cache.counted()):
                counted[index] += value
            for address in cache.held():
                try:
                    cached_bytes += self._pool.usable_size(address)
                except UsageError:  # it moves while we look
                    continue
                cached += 1
        resting = self._blocks.resting()
        cached += len(resting)
        cached_bytes += sum(
            self._pool.usable_size(block.address - front_bytes(block.align)) for block in resting
        )
        return heaps.PoolCount(
            node=self._node,
            extents=figures.extents,
            managed=figures.managed,
            used=figures.used - cached_bytes,
            cached=cached_bytes,
            spare=figures.spare,
            free=figures.free,
            largest_free=figures.largest_free,
            in_use=figures.live - cached,
            peak=figures.peak,
            locked=sum(self._growth.locked.values()) + sum(self.locked_blocks.values()),
            requested=_possible(counted[2] - counted[3] - sum(self.unasked.values())),
            allocations=_possible(counted[0]),
            frees=_possible(counted[1]),
            refused=self.refused,
            lost=self.lost,
        )

    def check(self) -> str:
        """Verify every invariant; return the first thing that is wrong."""
        try:
            self._pool.check()
        except InternalError as error:
            return f"node {self._node}: {error}"
        owners: dict[int, int] = {}
        for worker, cache in self.caches.items():
            for address in cache.held():
                if address in owners and self._are_both(address, owners[address], worker):
                    return (
                        f"node {self._node}: the object at {address:#x} lies in the caches of workers "
                        f"{owners[address]} and {worker}: it was freed twice"
                    )
                owners[address] = worker
                try:
                    self._pool.usable_size(address)
                except UsageError as error:
                    return f"node {self._node}: the cache of worker {worker} has what it must not: {error}"
        out = self._pool.figures().live
        if self.heap.options.debug and len(self._blocks) != out:
            return f"node {self._node}: {out} blocks are out and {len(self._blocks)} are known"
        return ""

    def _are_both(self, address: int, first: int, second: int) -> bool:
        """Whether an object lies in two caches, and did not go from one to the other while they were read."""
        return all(address in self.caches[worker].held() for _ in range(LOOKS) for worker in (first, second))

    def list_blocks(self, after: int) -> heaps.HeapListed:
        """Return blocks of debug mode, live or in quarantine, by address."""
        blocks, more = self._blocks.listed(after)
        return heaps.HeapListed(blocks, more, tuple(self._growth.regions))


def _possible(count: int) -> int:
    """Return a count that a worker may have written anything over, within what a message can say."""
    return max(-(1 << 62), min(count, 1 << 62))


def closed(name: object) -> ClosedError:
    """Return what is said of a heap that is gone."""
    return ClosedError(f"heap {name!r} was destroyed; node.heap() creates one")
