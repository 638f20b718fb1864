"""The pool of one heap on this node, and what its workers keep of it.

Owns a `dsm.memory.pool.Pool` over extents, the requests that wait until it has grown, the memory files of the
workers' caches, and in debug mode who allocated each block.  It asks for extents through functions that it
is given, and knows neither sessions nor links.

What is freed in debug mode stays in a quarantine for a while: who writes there all the same is found when
it leaves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from dsm.errors import (
    ClosedError,
    DSMError,
    HeapCorruptionError,
    InternalError,
    LimitError,
    Status,
    UsageError,
    error_for,
)
from dsm.log import logger
from dsm.memory.cache import CACHE_BYTES, FILLED, WORDS, WorkerCache, contents, counters
from dsm.memory.classes import CLASSES, span_bytes
from dsm.memory.guards import front_bytes, guarded_bytes
from dsm.memory.pool import Pool
from dsm.memory.rings import RING_WORDS, Ring
from dsm.types import HeapRecord, Region, RegionOptions
from dsm.wire import control, heaps
from dsm.wire import membership as meta

#: Bytes of the memory file of a worker's cache, with its ring.
FILE_BYTES = CACHE_BYTES + 8 * RING_WORDS
#: Blocks, and bytes of them, that stay in quarantine after they were freed in debug mode.
QUARANTINE_BLOCKS = 256
QUARANTINE_BYTES = 16 * 1024 * 1024
#: Blocks that may have left it without having been looked at: their workers may have died.
MAX_RETIRING = 1024
#: Blocks that were freed twice of which the log says so.
_SAID = 5
#: Where nobody knows.
_SOMEWHERE = "an unknown place"
#: Blocks of one answer.
_LISTED = 64

#: ``then(None)`` when the pool has grown, or with the reason why it has not.
Grown = Callable[[DSMError | None], None]


class Cache:
    """The memory file of one worker's cache, and what was sent to and fro."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("dsm-cache", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, FILE_BYTES)
            self._map = mmap.mmap(self.fd, FILE_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        self.words = memoryview(self._map).cast("Q")
        WorkerCache(self.words[:WORDS])
        self.ring = Ring(self.words[WORDS:])
        #: Batches that it was sent and has not noted yet, by number, and how many there were; and the
        #: number of the last that came from it.
        self.sent: dict[int, tuple[int, ...]] = {}
        self.batches = 0
        self.received = 0
        #: Extents that it knows.
        self.told: set[int] = set()

    def send(self, addresses: tuple[int, ...]) -> int:
        """Note that a batch is sent to it, and return its number."""
        filled = self.words[FILLED]
        self.sent = {number: batch for number, batch in self.sent.items() if number > filled}
        self.batches += 1
        self.sent[self.batches] = addresses
        return self.batches

    def held(self) -> list[int]:
        """Return the objects that it keeps; none when it is damaged."""
        try:
            return contents(self.words[:WORDS], self.sent, self.received)
        except UsageError as error:
            logger.warning("%s", error)
            return []

    def away(self) -> dict[int, list[int]]:
        """Take out what is on its way home, by node."""
        try:
            return self.ring.take()
        except UsageError as error:
            logger.warning("%s", error)
            return {}

    def close(self) -> None:
        """Close the file; the worker's copy stays."""
        os.close(self.fd)
        self.ring = Ring(memoryview(bytes(8 * RING_WORDS)).cast("Q"))
        with contextlib.suppress(BufferError):  # somebody still looks at it: it goes with the last who does
            self.words.release()
            self._map.close()


class NodePool:
    """The memory of one heap on this node.

    Parameters
    ----------
    heap
        Its number and options.
    node
        This node.
    ask
        Asks the coordinator: ``ask(question, then)``.
    added
        Called with every new extent, before it is used; what it returns is how much of it is locked in
        memory.
    room
        Called with the bytes of an extent before it is asked for; raises `LimitError` when it cannot be.
    relieve
        Asks the other nodes to give empty extents back, because this one gets none: ``relieve(then)``.
    """

    def __init__(
        self,
        heap: HeapRecord,
        node: int,
        ask: Callable[[meta.Question, Callable[[meta.Reply], None]], None],
        added: Callable[[Region], int],
        room: Callable[[int], None],
        relieve: Callable[[Callable[[], None]], None],
    ) -> None:
        self.heap = heap
        self._node = node
        self._ask = ask
        self._added = added
        self._room = room
        self._relieve = relieve
        self._pool = Pool()  # the coordinator counts what all nodes have
        self.closed = False
        #: Address of each extent, by region number; and up to where it has ever been given away.
        self._extents: dict[int, int] = {}
        self._used_to: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self.locked: dict[int, int] = {}
        #: The same of blocks that are regions of their own.
        self.locked_blocks: dict[int, int] = {}
        #: Extents that are being given back.
        self._leaving = 0
        self._left: list[Callable[[], None]] = []
        self.caches: dict[int, Cache] = {}
        #: Bytes that wait for an extent, and what comes then; the first one's is being asked for.
        self._waiting: deque[tuple[int, Grown]] = deque()
        #: Counters of workers that are gone: allocations, frees, bytes asked for, bytes of those freed.
        self._gone = [0, 0, 0, 0]
        self.refused = self.lost = 0
        #: Of debug mode, by address: blocks that are live, that were freed, and that are being looked at.
        self._live: dict[int, heaps.DebugBlock] = {}
        self._quarantine: OrderedDict[int, heaps.DebugBlock] = OrderedDict()
        self._retiring: OrderedDict[int, heaps.DebugBlock] = OrderedDict()
        self._quarantined = 0

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
        new = self._extents.keys() - cache.told
        cache.told |= new
        return tuple(sorted(new)), gone

    def _gone_for(self, worker: int) -> tuple[int, ...]:
        cache = self.caches.get(worker)
        if cache is None:
            return ()
        gone = cache.told - self._extents.keys()
        cache.told -= gone
        return tuple(sorted(gone))

    def worker_gone(self, worker: int) -> dict[int, list[int]]:
        """Take back what a worker kept; return what it had yet to send home, by node."""
        cache = self.caches.pop(worker, None)
        if cache is None:
            return {}
        away = cache.away()
        for index, value in enumerate(counters(cache.words[:WORDS])):
            self._gone[index] += value
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

        def again(error: DSMError | None) -> None:
            cache = self.caches.get(worker)
            if error is not None or cache is None:
                fail(error)
                return
            addresses = tuple(self._pool.take(size_class, count))
            if not addresses:
                self._grow(self._pool.extent_for(span_bytes(size_class)), again)
                return
            for address in addresses:
                self._touch(address)
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

    def _resting(self) -> set[int]:
        """Return what lies in caches of workers: it is free already."""
        return {address for cache in self.caches.values() for address in cache.held()}

    def come_home(self, addresses: Iterable[int]) -> list[int]:
        """Take back blocks that came by no cache; return those that were free already."""
        resting = self._resting()
        twice = [address for address in addresses if address in resting]
        self.refused += len(twice)
        return twice + self.give_home(address for address in addresses if address not in resting)

    def give_home(self, addresses: Iterable[int]) -> list[int]:
        """Take back blocks; return those that were not out."""
        if self.closed:
            return []
        refused = self._pool.give(addresses)
        for address in refused[: max(0, _SAID - self.refused)]:  # the figure counts them all
            said = self._pool.explain(address)
            logger.warning("heap %r: %#x was freed: %s", self.heap.options.name, address, said)
        self.refused += len(refused)
        self._shrink(1)
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

        def again(error: DSMError | None) -> None:
            if error is not None or worker not in self.caches:
                fail(error)
                return
            address = self._pool.allocate(whole, align)
            if address is None:
                self._grow(self._pool.extent_for(whole, align), again)
                return
            usable = self._pool.usable_size(address)
            fresh = self._touch(address)
            if debug:
                address, usable = address + front_bytes(align), nbytes
                self._live[address] = heaps.DebugBlock(address, nbytes, align, asked.place or _SOMEWHERE)
            then(heaps.HeapAllocated(address, usable, fresh, *self.news(worker)))

        again(None)

    def _touch(self, address: int) -> bool:
        """Note that a block is given away; whether its memory has never been before."""
        region = self._extent_of(address)
        end = address + self._pool.usable_size(address)
        fresh = address >= self._used_to[region]
        self._used_to[region] = max(self._used_to[region], end)
        return fresh

    def _extent_of(self, address: int) -> int:
        for region, start in self._extents.items():
            if start <= address < self._ends[region]:
                return region
        raise InternalError(f"a pool gave {address:#x}, which lies in none of its extents")

    def free(self, address: int, place: str = "") -> heaps.HeapFreed:
        """Take one block back."""
        if not self.heap.options.debug:
            if address in self._resting():
                raise UsageError(
                    f"double free: the block at {address:#x} of heap {self.heap.options.name!r} was freed "
                    "already: it lies in the cache of a worker; free it once"
                )
            self._pool.free(address)
            self._shrink(1)
            return heaps.HeapFreed()
        block = self._live.pop(address, None)
        if block is None:
            raise self._no_block(address, place)
        self._quarantine[address] = heaps.DebugBlock(
            address, block.nbytes, block.align, block.place, place or _SOMEWHERE
        )
        self._quarantined += block.nbytes
        leaving = []
        while len(self._quarantine) > QUARANTINE_BLOCKS or self._quarantined > QUARANTINE_BYTES:
            _, oldest = self._quarantine.popitem(last=False)
            self._quarantined -= oldest.nbytes
            self._retiring[oldest.address] = oldest
            leaving.append(oldest)
            if len(leaving) == _LISTED:
                break
        while len(self._retiring) > MAX_RETIRING:
            self._release(self._retiring.popitem(last=False)[1])
        return heaps.HeapFreed(tuple(leaving))

    def _release(self, block: heaps.DebugBlock) -> None:
        """The memory of a freed block can be used again."""
        self._pool.free(block.address - front_bytes(block.align))

    def _no_block(self, address: int, place: str) -> DSMError:
        earlier = self._quarantine.get(address) or self._retiring.get(address)
        if earlier is not None:
            return HeapCorruptionError(
                f"double free: the block of {earlier.nbytes} bytes at {address:#x} of heap "
                f"{self.heap.options.name!r}, allocated at {earlier.place}, was freed at {earlier.freed} "
                f"and again at {place}; free it once"
            )
        return UsageError(
            f"{address:#x} is no block of heap {self.heap.options.name!r}: {self._pool.explain(address)}"
        )

    def retire(self, addresses: Iterable[int]) -> None:
        """Freed blocks were looked at."""
        for address in addresses:
            block = self._retiring.pop(address, None)
            if block is not None:
                self._release(block)
        self._shrink(1)

    def grow_block(self, address: int, nbytes: int) -> heaps.HeapGrown:
        """Make a block longer where it is, if there is room."""
        if not 0 <= nbytes < 1 << 63:
            raise UsageError(f"a block of {nbytes} bytes cannot be")
        grown = self._pool.grow(address, nbytes)
        if grown:
            self._touch(address)
        return heaps.HeapGrown(grown, self._pool.usable_size(address))

    def find(self, address: int, place: str = "") -> heaps.HeapFound:
        """Say what block begins at an address."""
        if self.heap.options.debug:
            block = self._live.get(address)
            if block is None:
                raise self._no_block(address, place or _SOMEWHERE)
            return heaps.HeapFound(block.nbytes, block.align, block.place)
        return heaps.HeapFound(self._pool.usable_size(address))

    # -- extents -----------------------------------------------------------------------------------------

    def prepare(self, then: Grown) -> None:
        """Make the first extent, if there is none."""
        if self._extents:
            then(None)
        else:
            self._grow(self.heap.options.page_size, then)

    def _grow(self, needed: int, then: Grown) -> None:
        self._waiting.append((needed, then))
        if len(self._waiting) == 1:
            self._ask_extent(max(needed, self.heap.options.min_system_alloc))

    def _ask_extent(self, nbytes: int, relieved: bool = False) -> None:
        options = self.heap.options
        nbytes = -(-nbytes // options.page_size) * options.page_size
        region = RegionOptions(
            nbytes=nbytes,
            page_size=options.page_size,
            consistency=options.consistency,
            home=self._node,
            use="extent",
            heap=options.name,
        )
        try:
            self._room(nbytes)
        except LimitError as error:
            self._extent_came(nbytes, relieved, control.Failed(Status.LIMIT, str(error)))
            return
        self._ask(control.CreateRegion(region), lambda reply: self._extent_came(nbytes, relieved, reply))

    def _extent_came(self, nbytes: int, relieved: bool, reply: meta.Reply) -> None:
        if self.closed:
            if isinstance(reply, meta.Found):
                self._ask(control.DestroyRegion(reply.region.region), lambda _: None)
            return
        if isinstance(reply, meta.Found):
            region = reply.region
            self.locked[region.region] = self._added(region)
            self._extents[region.region] = self._used_to[region.region] = region.address
            self._ends[region.region] = region.address + region.options.nbytes
            self._pool.add_extent(region.address, region.options.nbytes)
            waiting, self._waiting = self._waiting, deque()
            for _, then in waiting:  # those for whom it does not suffice wait again
                then(None)
            return
        assert isinstance(reply, control.Failed)
        needed, then = self._waiting[0]
        page = self.heap.options.page_size
        needed = -(-needed // page) * page
        if reply.status in (Status.FULL, Status.TOO_LARGE, Status.LIMIT):
            if self._pool.empty_extents():  # what is kept for later is in the way now
                self._shrink(0, lambda: self._ask_extent(needed, relieved))
                return
            if needed < nbytes:
                self._ask_extent(needed, relieved)
                return
            if reply.status == Status.FULL and not relieved:
                self._relieve(lambda: None if self.closed else self._ask_extent(needed, True))
                return
        self._waiting.popleft()
        if self._waiting:
            self._ask_extent(max(self._waiting[0][0], self.heap.options.min_system_alloc))
        then(error_for(reply.status, reply.message))

    def _shrink(self, keep: int, then: Callable[[], None] = lambda: None) -> None:
        """Give empty extents back but for so many; `then()` when they are gone."""
        empty = self._pool.empty_extents()
        self._left.append(then)
        for address in empty[: max(0, len(empty) - keep)]:
            region = next(number for number, start in self._extents.items() if start == address)
            self._pool.remove_extent(address)
            for table in (self._extents, self._used_to, self._ends, self.locked):
                table.pop(region, None)
            self._leaving += 1
            self._ask(control.DestroyRegion(region), self._extent_left)
        self._settle()

    def _extent_left(self, reply: meta.Reply) -> None:
        self._leaving -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._leaving:
            left, self._left = self._left, []
            for then in left:
                then()

    def trim(self, then: Callable[[], None]) -> None:
        """Give every empty extent back."""
        self._shrink(0, then)

    def close(self) -> None:
        """The heap is destroyed."""
        self.closed = True
        waiting, self._waiting = self._waiting, deque()
        for _, then in waiting:
            then(closed(self.heap.options.name))
        for cache in self.caches.values():
            cache.close()
        self.caches.clear()

    # -- figures -----------------------------------------------------------------------------------------

    def count(self) -> heaps.PoolCount:
        """Return what this pool has, what lies in caches left out of what is used."""
        figures = self._pool.figures()
        cached = cached_bytes = 0
        counted = list(self._gone)
        for cache in self.caches.values():
            for index, value in enumerate(counters(cache.words[:WORDS])):
                counted[index] += value
            for address in cache.held():
                try:
                    cached_bytes += self._pool.usable_size(address)
                except UsageError:  # it moves while we look
                    continue
                cached += 1
        resting = [*self._quarantine.values(), *self._retiring.values()]
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
            locked=sum(self.locked.values()) + sum(self.locked_blocks.values()),
            requested=_possible(counted[2] - counted[3]),
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
                if address in owners:
                    return (
                        f"node {self._node}: the object at {address:#x} lies in the caches of workers "
                        f"{owners[address]} and {worker}: it was freed twice"
                    )
                owners[address] = worker
                try:
                    self._pool.usable_size(address)
                except UsageError as error:
                    return f"node {self._node}: the cache of worker {worker} has what it must not: {error}"
        kept = self._live.keys() | self._quarantine.keys() | self._retiring.keys()
        if self.heap.options.debug and len(kept) != self._pool.figures().live:
            return f"node {self._node}: {self._pool.figures().live} blocks are out and {len(kept)} are known"
        return ""

    def list_blocks(self, after: int) -> heaps.HeapListed:
        """Return blocks of debug mode, live or in quarantine, by address."""
        kept = self._quarantine | self._live
        addresses = sorted(address for address in kept if address > after)
        return heaps.HeapListed(
            tuple(kept[address] for address in addresses[:_LISTED]),
            more=len(addresses) > _LISTED,
            extents=tuple(self._extents),
        )


def _possible(count: int) -> int:
    """Return a count that a worker may have written anything over, within what a message can say."""
    return max(-(1 << 62), min(count, 1 << 62))


def closed(name: object) -> ClosedError:
    """Return what is said of a heap that is gone."""
    return ClosedError(f"heap {name!r} was destroyed; node.heap() creates one")
