"""`Heap`: blocks of any size in the cluster's memory, as one process sees them.

Owns the way of an allocation.  A small block comes from this worker's cache, which is one call into C; when
the cache is empty or full, a batch travels between it and the pool of this node (`dsm.manager.nodepool`).
A large one is asked of the pool, a block of the direct manager is a region of its own.  What is freed goes
to this worker's cache, or home.

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
    HeapCorruptionError,
    InternalError,
    PageTimeoutError,
    TooLargeError,
    UnknownNameError,
    UsageError,
)
from dsm.limits import ADDRESS_ALIGNMENT, MAX_REGION_BYTES
from dsm.memory.classes import MAX_SMALL_BYTES, class_of
from dsm.types import HEAP_MANAGERS, HeapOptions, HeapRecord, RegionOptions
from dsm.units import bytes_of
from dsm.wire import control, heaps
from dsm.worker import guarded, layouts
from dsm.worker.block import NO_CLASS, Block, BlockRef, RegionBlock, WholeBlock
from dsm.worker.heapcache import BY_STEP, HeapCache
from dsm.worker.heapstatistics import HeapStatistics, statistics_of
from dsm.worker.regions import Region
from dsm.worker.session import Descriptors

if TYPE_CHECKING:
    from dsm.worker.node import Node

#: Blocks with their own region that a process maps before it asks which of them others have freed.
ASK_AT_LEAST = 256


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
        #: Regions of blocks that were mapped here since it was asked which of them are left, and were left
        #: then; and when it is asked again.
        self._regions, self._ask_at = 0, ASK_AT_LEAST
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
        self._free(what)

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
        self._check_open()
        old, new = self._mine(block), bytes_of(nbytes, "nbytes")
        old._check()
        if not self._resize(old, new):
            moved = self.alloc(new, 16, False, _manager_of(old))
            try:
                kept = min(old._nbytes, new)
                caches.copy(moved._place(), old._place(), kept)
                caches.zero(moved._place() + kept, new - kept)
            except BaseException:
                self.free(moved)
                raise
            self.free(old)
            return moved
        return old

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
        if self.options.debug:
            guarded.check(self, checked.silent)
        if checked.silent:
            nodes = ", ".join(map(str, checked.silent))
            raise PageTimeoutError(
                f"heap {self.name!r} was not verified on node {nodes}, which did not answer in time or was "
                "lost meanwhile; the others are right; `dsm status` shows who is stopped; check again"
            )

    def trim(self) -> None:
        """Give memory that nobody uses back to the system now: what is empty as a whole, on all nodes."""
        self._check_open()
        self._cache.give_all()
        self._call(heaps.HeapTrim(self._record.number), control.Done)

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
            return self._alloc_region(nbytes)
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

    def _alloc_region(self, nbytes: int) -> Block:
        block = RegionBlock(self, 0, nbytes, NO_CLASS)
        if self.options.kind == "eager":
            self._make_region(block)
        return block

    def _make_region(self, block: RegionBlock) -> None:
        """Make the region of a block, at its first use."""
        with self._cache.slow:
            block._check()
            if block._own is not None:
                return
            self._check_open()
            options = RegionOptions(
                nbytes=block._usable(),
                page_size=self.options.page_size,
                consistency=self.options.consistency,
                home=self._home,
                use="block",
                heap=self.name,
            )
            region, _ = self._node._regions.create(options, ready=False)
            self._node._connection.session.post(control.RegionReady(region.number))
            block._own, block._address = region, region.address
            self._cache.count(1, 0, 0, 0)
            block._unasked = 0
            self._tell_size(block)
            self._live[region.address] = block
            self._forget_freed()

    def _forget_freed(self) -> None:
        """Close regions of blocks that other processes have freed, which nobody is told.

        It asks after each of them when there are twice as many as were left the last time.
        """
        self._regions += 1
        if self._regions < self._ask_at:
            return
        kept = 0
        for address, block in list(self._live.items()):
            if not isinstance(block, RegionBlock) or block._own is None:
                continue
            try:
                self._node._regions.open(block._own.number)
            except (ClosedError, UnknownNameError):
                self._live.pop(address, None)
                self._node._regions.drop(block._own.number)
            else:
                kept += 1
        self._regions, self._ask_at = kept, max(ASK_AT_LEAST, 2 * kept)

    # -- inside: free ------------------------------------------------------------------------------------

    def _free(self, what: object) -> None:
        """Free what is no live small block of this node."""
        if isinstance(what, np.ndarray):
            self._free_array(what)
            return
        self._check_open()
        block = self._mine(what)
        if isinstance(block, RegionBlock):
            self._free_region(block)
            return
        address = block._address
        if isinstance(block, WholeBlock):
            self._cache.release_before(block._home)
        if not address or self._live.get(address) is not block or self._live.pop(address, None) is not block:
            raise UsageError(
                f"double free: the block of {block._nbytes} bytes of heap {self.name!r} was freed by this "
                "process already; free it once"
            )
        if self.options.debug:
            try:
                found = guarded.look(self, address)
            except HeapCorruptionError:  # another process has freed it
                block._address = 0
                raise
            except BaseException:
                self._live[address] = block
                raise
            block._address = 0
            guarded.free(self, found)
            return
        block._address = 0
        assert isinstance(block, WholeBlock)
        if block._home == self._home or block._class == NO_CLASS:
            self._free_at(block._home, address, block._nbytes)
        else:
            self._cache.put_away(block._home, address, block._nbytes)

    def _free_at(self, node: int, address: int, nbytes: int) -> None:
        """Free a block at once, at the pool that it is of."""
        self._call(heaps.HeapFree(self._record.number, node, address, nbytes), heaps.HeapFreed)

    def _free_region(self, block: RegionBlock) -> None:
        with self._cache.slow:
            if block._freed:
                raise UsageError(
                    f"double free: the block of {block._nbytes} bytes of heap {self.name!r} was freed by "
                    "this process already; free it once"
                )
            if block._own is not None:
                self._live.pop(block._address, None)
                try:
                    self._node._regions.destroy(block._own.number)
                except UnknownNameError:
                    block._freed = True
                    raise UsageError(
                        f"double free: the block of {block._nbytes} bytes of heap {self.name!r} was freed by "
                        "another process already; free it once"
                    ) from None
                self._cache.count(0, 1, 0, 0)
            block._freed, block._address = True, 0

    def _free_array(self, array: np.ndarray[Any, Any]) -> None:
        self._check_open()
        address = array.__array_interface__["data"][0]
        block = self._live.get(address)
        if block is not None:
            if block._nbytes - array.nbytes >= max(1, array.itemsize):
                raise UsageError(
                    f"the array of shape {array.shape} at {address:#x} is a part of {block!r}; pass what "
                    "array() returned, or the block"
                )
            self.free(block)
            return
        found = _native.region_find(address)
        region = self._node._regions.get(found[0]) if found else None
        if (
            region is None
            or region.options.heap != self.name
            or region.options.use not in ("extent", "block")
        ):
            raise UsageError(
                f"the array of shape {array.shape} at {address:#x} is none of heap {self.name!r}, or was "
                "freed already; pass what array() returned"
            )
        if region.options.use == "block":
            if address != region.address:
                raise UsageError(
                    f"the array at {address:#x} is a part of a block; pass what array() returned"
                )
            self.free(RegionBlock(self, address, array.nbytes, NO_CLASS, region))
        elif self.options.debug:
            guarded.free(self, guarded.look(self, address))
        else:
            assert isinstance(region.options.home, int)
            self._cache.release_before(region.options.home)
            self._free_at(region.options.home, address, array.nbytes)

    # -- inside: the rest --------------------------------------------------------------------------------

    def _resize(self, block: Block, nbytes: int) -> bool:
        """Give a block another size where it is, if it can have that there."""
        before = block._nbytes
        if nbytes > before:
            self._check_size(nbytes)
        if isinstance(block, RegionBlock) and block._own is None:
            block._nbytes = nbytes
            return True
        if self.options.debug or (
            nbytes > block._usable() and (block._class != NO_CLASS or isinstance(block, RegionBlock))
        ):
            return False
        if isinstance(block, WholeBlock) and nbytes != before:
            grown = self._call(
                heaps.HeapGrow(self._record.number, block._home, block._address, nbytes, before),
                heaps.HeapGrown,
            )
            if not grown.grown:
                return False
            block._size = grown.usable
        if nbytes > before:
            caches.zero(block._place() + before, nbytes - before)
        block._nbytes = nbytes
        if isinstance(block, RegionBlock):
            self._tell_size(block)
        elif not isinstance(block, WholeBlock):
            self._cache.count(0, 0, max(0, nbytes - before), max(0, before - nbytes))
        return True

    def _tell_size(self, block: RegionBlock) -> None:
        """Tell how much of a block's pages nobody asked for, if that is not so already."""
        unasked = block._usable() - block._nbytes
        own = block._own
        if own is not None and unasked != block._unasked:
            assert isinstance(own.options.home, int)
            number, home = self._record.number, own.options.home
            self._node._connection.session.post(heaps.HeapUnasked(number, home, own.number, unasked))
            block._unasked = unasked

    def _adopt(self, ref: BlockRef) -> Block:
        """Return the block of a reference as this process sees it."""
        self._check_open()
        block = self._live.get(ref.address)
        if block is not None and block._is(ref):
            return block
        regions = self._node._regions
        region = regions.get(ref.region) or regions.open(ref.region)
        if ref.direct:
            block = RegionBlock(self, ref.address, ref.nbytes, NO_CLASS, region)
            with self._cache.slow:
                self._forget_freed()
        elif ref.node == self._home and ref.size_class != NO_CLASS:
            block = Block(self, ref.address, ref.nbytes, ref.size_class)
        else:
            assert isinstance(ref.node, int)
            block = WholeBlock(self, ref.address, ref.nbytes, ref.size_class, ref.usable, ref.node)
        return self._adopted(ref, block)

    def _adopted(self, ref: BlockRef, block: Block) -> Block:
        """Note a handle, unless another thread has noted one of the same block meanwhile.

        One of an earlier block gives way: another process has freed that, and its memory is a new block.
        """
        found = self._live.setdefault(ref.address, block)
        if found._is(ref):
            return found
        self._live[ref.address] = block
        return block

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


def _manager_of(block: Block) -> str:
    return "direct" if isinstance(block, RegionBlock) else "pooled"


def _open_heap(cluster: str, number: int) -> Heap:
    from dsm.worker.attach import attach_to

    return attach_to(cluster, "the heap is one")._heaps.find(number)
