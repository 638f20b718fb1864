"""Blocks of a heap: `Block`, and the reference by which other processes get the same block.

Owns the handle: what a program may do with a block, and that it cannot once the block is freed.  How blocks
are got and given back is `dsm.worker.heap`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from dsm.errors import UsageError
from dsm.memory.classes import SIZES
from dsm.worker import layouts

if TYPE_CHECKING:
    from dsm.worker.heap import Heap
    from dsm.worker.regions import Region

#: Stands for the class of a block that is none of the calling node's pool, or of no class.
NO_CLASS = 255


class Block(msgspec.Struct, eq=False):
    """Memory of a heap; made by `Heap.alloc`, in other processes by references to it.

    A block lives until it is freed, by whoever has it: neither the end of a handle nor of a process frees
    it.  A process has one handle of a block, which cannot be used after `free`.
    """

    _heap: Heap
    #: 0 once it is freed.
    _address: int
    _nbytes: int
    _class: int

    @property
    def heap(self) -> Heap:
        """The heap that it is of."""
        return self._heap

    @property
    def address(self) -> int:
        """Address of its first byte, the same in every worker.

        Raises
        ------
        UsageError
            It was freed.
        FullError
            Of a lazy heap with its own region, which is made now: the heap has no room for it.
        """
        return self._place()

    @property
    def nbytes(self) -> int:
        """Bytes, as they were asked for."""
        return self._nbytes

    @property
    def usable_size(self) -> int:
        """Bytes that there are: what is behind `nbytes` is the block's, too."""
        self._check()
        return self._usable()

    @property
    def freed(self) -> bool:
        """Whether it was freed by this process."""
        return not self._address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What ``numpy.asarray(block)`` makes an array of bytes from; no copy."""
        return self.array().__array_interface__

    @property
    def buffer(self) -> memoryview:
        """The block as a writable memoryview of `nbytes` bytes."""
        everything: Any = self.array()
        return memoryview(everything)

    def array(
        self, shape: layouts.ShapeLike | None = None, dtype: npt.DTypeLike = "u1"
    ) -> np.ndarray[Any, Any]:
        """Return an array over the block.

        Parameters
        ----------
        shape
            An integer or a tuple of integers; None: as many items as find room in one dimension.
        dtype
            Any dtype of fixed size without Python objects.

        Returns
        -------
        numpy.ndarray
            A plain, writable array; no copy.  It must not be used after the block was freed.

        Raises
        ------
        UsageError
            The array would not lie in the block, or the block was freed.
        """
        found = layouts.check_dtype(dtype)
        sizes = (self._nbytes // max(1, found.itemsize),) if shape is None else layouts.check_shape(shape)
        if math.prod(sizes) * found.itemsize > self._nbytes:
            raise UsageError(
                f"an array of shape {layouts.shown(sizes)} and dtype {found} does not lie in {self!r}; "
                "allocate more, or ask for fewer items"
            )
        region, offset = self._region()
        try:
            return np.ndarray(sizes, found, buffer=np.asarray(region), offset=offset)
        except ValueError as error:
            raise UsageError(
                f"numpy has no array of shape {layouts.shown(sizes)} and dtype {found}: {error}"
            ) from None

    def free(self) -> None:
        """Give the block back; see `Heap.free`."""
        self._heap.free(self)

    def ref(self) -> BlockRef:
        """Return a small picklable reference; its `block()` is this block in any attached worker."""
        region, offset = self._region()
        heap = self._heap
        return BlockRef(
            heap._node.cluster, heap._record.number, region.options.home, region.number, region.address +
            offset, self._nbytes, self._usable(), self._class, region.options.use == "block",
        )  # fmt: skip

    def _place(self) -> int:
        self._check()
        return self._address

    def _check(self) -> None:
        if self.freed:
            raise UsageError(
                f"a block of {self._nbytes} bytes of heap {self._heap.name!r} is used after this process "
                "freed it; allocate another one"
            )

    def _usable(self) -> int:
        return SIZES[self._class]

    def _is(self, ref: BlockRef) -> bool:
        """Whether a reference is to this block, as far as one can see; then its size is what that says."""
        if (self._class, isinstance(self, RegionBlock)) != (ref.size_class, ref.direct):
            return False
        self._nbytes = ref.nbytes
        if isinstance(self, WholeBlock):
            self._size = ref.usable
        return True

    def _region(self) -> tuple[Region, int]:
        """Return the region in which it lies, and where."""
        return self._heap._region_of(self._place())

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_block, (self.ref(),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        state = "freed" if self.freed else f"at {self._address:#x}" if self._address else "not used yet"
        return f"<dsm.Block of heap {self._heap.name!r}: {self._nbytes} bytes, {state}>"


class WholeBlock(Block, eq=False):
    """A block that no cache takes: a large one, one of another node, or one of a heap in debug mode."""

    _size: int
    #: Of whose pool it is.
    _home: int

    def _usable(self) -> int:
        return self._size


class RegionBlock(Block, eq=False):
    """A block that is a region of its own (manager "direct")."""

    #: None: it is made at its first use.
    _own: Region | None = None
    _freed: bool = False
    #: Bytes of its pages that nobody asked for, as this process has told; -1: others may have.
    _unasked: int = -1

    @property
    def freed(self) -> bool:
        """Whether it was freed by this process."""
        return self._freed

    def _place(self) -> int:
        self._check()
        if self._own is None:
            self._heap._direct.make(self)
        return self._address

    def _usable(self) -> int:
        if self._own is not None:
            return self._own.size
        page = self._heap.options.page_size
        return max(page, -(-self._nbytes // page) * page)

    def _region(self) -> tuple[Region, int]:
        self._place()
        assert self._own is not None
        self._own._check_open()
        return self._own, 0


@dataclass(frozen=True)
class BlockRef:
    """Where a block lies in the cluster's memory; made by `Block.ref` or `dsm.ref`.

    Attributes
    ----------
    cluster
        Identity of the cluster; numbers have no meaning in another one.
    heap
        Number of its heap.
    node
        The node of whose pool it is.
    region, address
        Number of the region in which it lies, and where it begins.
    nbytes, usable
        Bytes that were asked for, and that there are.
    size_class
        Of a small block; 255 of others.
    direct
        Whether the region is its own.
    """

    cluster: str
    heap: int
    node: str | int
    region: int
    address: int
    nbytes: int
    usable: int
    size_class: int
    direct: bool

    def block(self) -> Block:
        """Return the block in this process, which attaches if it has not yet.

        Raises
        ------
        UsageError
            When this process is attached to another cluster.
        ClosedError, UnknownNameError
            When the heap was destroyed, or the memory of the block was given back.
        """
        from dsm.worker.attach import attach_to

        node = attach_to(self.cluster, "the reference is to a block")
        return _adopt(node._heaps.find(self.heap), self)


def _adopt(heap: Heap, ref: BlockRef) -> Block:
    """Return the block of a reference as this process sees it."""
    heap._check_open()
    block = heap._live.get(ref.address)
    if block is not None and block._is(ref):
        return block
    if ref.direct:
        with heap._cache.slow:
            heap._direct.forget_freed()
    regions = heap._node._regions
    region = regions.get(ref.region) or regions.open(ref.region)
    if ref.direct:
        block = RegionBlock(heap, ref.address, ref.nbytes, NO_CLASS, region)
    elif ref.node == heap._home and ref.size_class != NO_CLASS:
        block = Block(heap, ref.address, ref.nbytes, ref.size_class)
    else:
        assert isinstance(ref.node, int)
        block = WholeBlock(heap, ref.address, ref.nbytes, ref.size_class, ref.usable, ref.node)
    return _adopted(heap, ref, block)


def _adopted(heap: Heap, ref: BlockRef, block: Block) -> Block:
    """Note a handle, unless another thread has noted one of the same block meanwhile.

    One of an earlier block gives way: another process has freed that, and its memory is a new block.
    """
    found = heap._live.setdefault(ref.address, block)
    if found._is(ref):
        return found
    heap._live[ref.address] = block
    return block


def _open_block(reference: BlockRef) -> Block:
    return reference.block()
