"""`Heap`: blocks of any size in the cluster's memory, as one process sees them.

Owns the way of an allocation.  A small block comes from this worker's cache, which is one call into C; when
the cache is empty or full, a batch travels between it and the pool of this node (`dsm.manager.nodepool`).
A large one is asked of the pool, a block of the direct manager is a region of its own (`dsm.worker.direct`).
What is freed goes to this worker's cache, or home (`dsm.worker.freeing`).

Threads may share a heap: the cache has a lock of its own, claiming a block for `free` is one step of a
dict, and a lock keeps apart those who talk to the manager.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from dsm import _native
from dsm._native import caches
from dsm.errors import (
    ClosedError,
    InternalError,
    PageTimeoutError,
    TooLargeError,
    UnknownNameError,
    UsageError,
)
from dsm.limits import ADDRESS_ALIGNMENT, MAX_REGION_BYTES
from dsm.memory.classes import MAX_SMALL_BYTES, class_of
from dsm.types import HEAP_MANAGERS, HeapOptions, HeapRecord
from dsm.units import bytes_of
from dsm.wire import control, heaps
from dsm.worker import awaited, freeing, guarded, layouts, resizing
from dsm.worker.block import NO_CLASS, Block, WholeBlock
from dsm.worker.direct import DirectBlocks
from dsm.worker.heapcache import BY_STEP, HeapCache
from dsm.worker.heapstatistics import HeapStatistics, statistics_of
from dsm.worker.regions import Region
from dsm.worker.session import Descriptors

if TYPE_CHECKING:
    from dsm.worker.node import Node


def _nothing(cache: object, nbytes: int, zero: bool) -> int:
    """Stands for taking from the cache where that is not the way."""
    return 0


class Heap:
    """Memory of the cluster in blocks of any size; made by `Node.heap`.

    Examples
    --------
    >>> heap = node.heap("work", manager="pooled")  # doctest: +SKIP
    >>> block = heap.alloc(1000)  # doctest: +SKIP
    >>> block.array(125, "f8")[:] = 1.0  # doctest: +SKIP
    >>> queue.put(block)  # another worker, of any node, uses and frees it  # doctest: +SKIP
    """

    def __init__(self, node: Node, opened: heaps.HeapOpened, received: Descriptors) -> None:
        self._node = node
        self._record: HeapRecord = opened.heap
        #: Blocks that this process can use, by address.
        self._live: dict[int, Block] = {}
        self._direct = DirectBlocks(self)
        self._closed = False
        #: Of this node: it can change only in a child of fork, which keeps its node.
        self._home = node.node_id
        self._attach(received)

    def _attach(self, received: Descriptors) -> None:
        """Take over the cache that came with the heap."""
        self._cache = HeapCache(self, received)
        self._handle = self._cache.handle
        fast = self.options.manager == "pooled" and not self.options.debug
        self._take: Any = caches.lib.dsm_cache_take if fast else _nothing
        self._put: Any = caches.lib.dsm_cache_put

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.options.name

    @property
    def options(self) -> HeapOptions:
        """What its creator chose."""
        return self._record.options

    @property
    def closed(self) -> bool:
        """Whether this process knows that it was destroyed, or has closed its node."""
        return self._closed

    def __repr__(self) -> str:
        return f"<dsm.Heap {self.name!r}: {self.options.kind}, {self.options.manager}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_heap, (self._node.cluster, self._record.number)

    # -- blocks ------------------------------------------------------------------------------------------

    def alloc(
        self, nbytes: int | str, align: int = 16, zero: bool = True, manager: str | None = None
    ) -> Block:
        """Allocate a block.

        Parameters
        ----------
        nbytes
            Its size in bytes, from 0 up, or text such as ``"64K"``.
        align
            A power of two of which its address is a multiple, up to 2 MiB.
        zero
            Whether its bytes are to be zero; else they are what was there before.
        manager
            ``"pooled"`` or ``"direct"``, for this block; None: the heap's.

        Returns
        -------
        Block
            It lives until somebody frees it, on any node.

        Raises
        ------
        UsageError
            An argument is wrong.
        FullError, TooLargeError
            The heap's `max_bytes` do not allow it, now or even if it were empty.
        LimitError
            No memory or addresses are left.
        ClosedError
            The heap was destroyed, or the node closed.
        """
        if align == 16 and manager is None and type(nbytes) is int:
            try:
                address = self._take(self._handle, nbytes, zero)
            except (TypeError, OverflowError):  # what is wrong is told below
                address = 0
            if address:
                block = self._live[address] = Block(self, address, nbytes, BY_STEP[(nbytes + 15) >> 4])
                return block
        return self._alloc(nbytes, align, zero, manager)

    def free(self, what: Block | np.ndarray[Any, Any]) -> None:
        """Give a block back.  Its memory must not be used any more.

        Parameters
        ----------
        what
            A block, allocated in whatever process, or an array that `array` returned (in whatever process;
            not a part of it).

        Raises
        ------
        UsageError
            It is none of this heap's, or was freed already.
        HeapCorruptionError
            In debug mode: it was freed by another process, or bytes outside it were written.
        """
        if type(what) is Block:
            address = what._address
            if address:
                found = self._live.pop(address, None)
                if found is what:
                    what._address = 0
                    if not self._put(self._handle, address, what._nbytes, what._class):
                        self._cache.put(address, what._nbytes, what._class)
                    return
                if found is not None:  # another process freed `what`, and its memory is a new block
                    self._live.setdefault(address, found)
        freeing.free(self, what)

    def usable_size(self, block: Block) -> int:
        """Return how many bytes a block has; those behind `nbytes` are its own, too."""
        return self._mine(block).usable_size

    def realloc(self, block: Block, nbytes: int | str) -> Block:
        """Make a block longer or shorter; its contents stay, bytes that are new are zero.

        It stays where it is when there is room; else it moves, at a multiple of 16.

        Returns
        -------
        Block
            The same one, or another: then `block` is freed.

        Raises
        ------
        UsageError, FullError, TooLargeError, ClosedError
            As `alloc`; `block` is as it was.
        """
        return resizing.realloc(self, block, nbytes)

    def array(
        self, shape: layouts.ShapeLike, dtype: npt.DTypeLike = "f8", zero: bool = True
    ) -> np.ndarray[Any, Any]:
        """Return an array in a block of its own, which `free` takes.

        Parameters
        ----------
        shape, dtype
            As in `Node.array`.
        zero
            As in `alloc`.
        """
        sizes, found = layouts.check_shape(shape), layouts.check_dtype(dtype)
        block = self.alloc(math.prod(sizes) * found.itemsize, 16, zero)
        try:
            return block.array(sizes, found)
        except BaseException:
            self.free(block)
            raise

    # -- the heap as a whole -----------------------------------------------------------------------------

    def statistics(self) -> HeapStatistics:
        """Return the figures of this heap on all nodes; true when nobody allocates or frees meanwhile."""
        self._check_open()
        return statistics_of(self._call(heaps.HeapFigures(self._record.number), heaps.HeapCounted))

    def check(self) -> None:
        """Verify every pool and cache of this heap; in debug mode every block, too.

        Raises
        ------
        InternalError
            An invariant does not hold: the message names it.
        HeapCorruptionError
            In debug mode: somebody wrote outside a block, or into one that was freed.
        PageTimeoutError
            All is well as far as nodes have answered, but some did not: the message names them.
        """
        self._check_open()
        checked = self._call(heaps.HeapCheck(self._record.number), heaps.HeapChecked)
        if checked.wrong:
            raise InternalError(f"heap {self.name!r}: {checked.wrong}")
        silent = guarded.check(self, checked.silent) if self.options.debug else checked.silent
        if silent:
            nodes = ", ".join(map(str, silent))
            raise PageTimeoutError(
                f"heap {self.name!r} was not verified on node {nodes}, which did not answer in time or was "
                "lost meanwhile; the others are right; `dsm status` shows who is stopped; check again"
            )

    def trim(self) -> None:
        """Give memory that nobody uses back to the system now: what is empty as a whole, on all nodes."""
        self._check_open()
        self._cache.give_all()
        self._call(heaps.HeapTrim(self._record.number), control.Done)

    @awaited.elsewhere
    def destroy(self) -> None:
        """End the heap and all its memory, for every worker: blocks and arrays in it raise `ClosedError`.

        Raises
        ------
        ClosedError
            It was destroyed already.
        """
        self._check_open()
        try:
            self._node._connection.session.call(heaps.DestroyHeap(self._record.number), control.Done)
        except UnknownNameError:
            self._close()
            self._check_open()
        self._close()

    # -- inside: allocation ------------------------------------------------------------------------------

    def _alloc(self, asked: int | str, align: int, zero: bool, manager: str | None) -> Block:
        """Allocate what the cache did not give at once."""
        self._check_open()
        nbytes = bytes_of(asked, "nbytes")
        align = layouts.number(align, "align", "pass a power of two")
        if align < 1 or align & (align - 1) or align > ADDRESS_ALIGNMENT:
            raise UsageError(f"align is {align}; it must be a power of two up to {ADDRESS_ALIGNMENT}")
        if not isinstance(zero, (bool, np.bool_)):
            raise UsageError(f"zero is {layouts.shown(zero)}; pass True or False")
        if manager is not None and manager not in HEAP_MANAGERS:
            raise UsageError(
                f"manager is {layouts.shown(manager)}; it must be {' or '.join(map(repr, HEAP_MANAGERS))}"
            )
        self._check_size(nbytes)
        if self.options.debug:
            return guarded.allocate(self, nbytes, max(align, 16), zero)
        if (manager or self.options.manager) == "direct":
            return self._direct.alloc(nbytes)
        if nbytes <= MAX_SMALL_BYTES and align <= MAX_SMALL_BYTES:
            cls = class_of(nbytes, align)
            address = self._cache.take(cls, nbytes, zero)
            block = self._live[address] = Block(self, address, nbytes, cls)
            return block
        return self._alloc_whole(nbytes, align, zero)

    def _check_size(self, nbytes: int) -> None:
        most = self.options.max_bytes or MAX_REGION_BYTES
        if nbytes > most:
            raise TooLargeError(
                f"{nbytes} bytes were asked of heap {self.name!r}, which may have {most} in all: they "
                "would not fit if it were empty; ask for less, or make a heap with a larger max_bytes"
            )

    def _alloc_whole(self, nbytes: int, align: int, zero: bool) -> Block:
        given = self._ask_pool(nbytes, align)
        if zero and not given.fresh:
            caches.zero(given.address, nbytes)
        return self._keep_whole(given, nbytes)

    def _ask_pool(self, nbytes: int, align: int, place: str = "") -> heaps.HeapAllocated:
        """Get a block straight from the pool of this node; its memory is mapped."""
        number = self._record.number
        given: heaps.HeapAllocated = self._call(
            heaps.HeapAllocate(number, nbytes, align, place),
            heaps.HeapAllocated,
            arrived=self._cache.arrived,
            undo=lambda answer: heaps.HeapFree(number, self._home, answer.address, nbytes),
        )
        self._cache.map_new()
        return given

    def _keep_whole(self, given: heaps.HeapAllocated, nbytes: int) -> Block:
        """Return the handle of a block of the pool."""
        block = WholeBlock(self, given.address, nbytes, NO_CLASS, given.usable, self._home)
        self._live[given.address] = block
        return block

    # -- inside: the rest --------------------------------------------------------------------------------

    def _region_of(self, address: int) -> tuple[Region, int]:
        """Return the region in which a block lies, and where."""
        found = _native.region_find(address)
        region = self._node._regions.get(found[0]) if found else None
        if region is None or found is None:
            self._check_open()
            raise ClosedError(
                f"the memory at {address:#x} of heap {self.name!r} was given back: its block is gone"
            )
        return region, found[1]

    def _mine(self, block: object) -> Block:
        if not isinstance(block, Block):
            raise UsageError(
                f"{type(block).__name__} is no block of heap {self.name!r}; pass what alloc() or array() "
                "returned"
            )
        if block._heap is not self:
            raise UsageError(f"{block!r} is none of heap {self.name!r}; pass it to its own heap")
        return block

    def _call(self, body: Any, expect: type[Any], **more: Any) -> Any:
        try:
            return self._node._connection.session.call(body, expect, **more)[0]
        except ClosedError:
            if not self._node.closed:
                self._close()
            raise

    def _check_open(self) -> None:
        if self._closed or self._node.closed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        why = "its node was closed" if self._node.closed else "it was destroyed"
        raise ClosedError(f"heap {self.name!r} is closed: {why}; open it again with node.heap({self.name!r})")

    def _close(self) -> None:
        """It is destroyed, or the node was closed: nothing comes from its cache any more."""
        self._closed = True
        self._take = _nothing
        self._live = {}
        self._node._heaps.forget(self)

    def _renew(self, opened: heaps.HeapOpened, received: Descriptors) -> None:
        """In a child of fork: a cache of its own.  What the parent's has belongs to the parent."""
        self._record = opened.heap
        self._attach(received)


def _open_heap(cluster: str, number: int) -> Heap:
    from dsm.worker.attach import attach_to

    return attach_to(cluster, "the heap is one")._heaps.find(number)
