"""A pool: the memory of many extents as blocks of any size, and as objects of size classes in batches.

Owns which addresses are given away, and the figures of that.  Knows nothing of who has them, and never
touches the memory. Both a node's manager (a heap) and the lease server keep one; not for several threads at a
time.

* *Blocks* come straight from the buddy allocator of one extent (`dsm.memory.buddy`).
* *Objects* of small classes (`dsm.memory.classes`) come from *spans*: runs of an extent cut into objects of
  one class (`dsm.memory.span`).  `take` and `give` move a batch at a time.  A span that is empty goes back to
  its buddy at once: the workers' caches are what keeps objects from going to and fro.  Where no span fits any
  more, `take` gives blocks of the class's size.
* `free`, `grow` and `usable_size` take blocks and objects, `give` as well: who gives something back need not
  know what it was.

An extent is chosen by the power of two of its largest free block, the smallest that fits: full extents are
filled up, empty ones stay empty and can be given back.

Of an extent that does not start on a multiple of a block's alignment, so much more is taken that an aligned
part is in it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import Final

from dsm.errors import FullError, InternalError, TooLargeError, UsageError
from dsm.limits import ADDRESS_ALIGNMENT
from dsm.memory.buddy import MIN_BLOCK_BYTES, Buddy, smallest_multiple
from dsm.memory.classes import CLASSES, GRANULE_BYTES, SIZES, SPAN_OBJECTS, STEP_BYTES
from dsm.memory.figures import PoolFigures
from dsm.memory.span import Span

_GRANULE_SHIFT: Final = GRANULE_BYTES.bit_length() - 1


class _Extent:
    """An extent: its place, its buddy, and its spans."""

    __slots__ = ("address", "buddy", "end", "spans", "top")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.end = address + nbytes
        self.buddy = Buddy(nbytes)
        #: Span by each granule of the extent that it covers.
        self.spans: dict[int, Span] = {}
        #: Order of the largest free block, as the pool has noted it.
        self.top = self.buddy.largest_order

    def granules(self, span: Span) -> range:
        """Granules that a span covers; it shares none with another span."""
        return range(
            (span.start - self.address) >> _GRANULE_SHIFT,
            (span.end - self.address + GRANULE_BYTES - 1) >> _GRANULE_SHIFT,
        )


class Pool:
    """Memory of extents that are added and removed.

    Parameters
    ----------
    max_bytes : int or None
        The most that the extents may have together; None: any.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise UsageError(f"max_bytes={max_bytes}: pass a number of bytes, or None")
        self.max_bytes = max_bytes
        #: Addresses of extents, ascending, and the extents.
        self._starts: list[int] = []
        self._extents: dict[int, _Extent] = {}
        #: Extents by order of their largest free block, and a bit for each order that has some.
        self._by_top: list[dict[int, _Extent]] = [{} for _ in range(65)]
        self._tops = 0
        #: Extents of which nothing is given away.
        self._empty: dict[int, None] = {}
        #: Every extent starts on a multiple of this power of two.
        self._alignment = 1 << 63
        #: Bytes asked for, by address of each block that is out.
        self._asked: dict[int, int] = {}
        #: How far behind its start the address of a block is that was aligned in a larger one.
        self._shifts: dict[int, int] = {}
        #: Spans that have objects to give, by class.
        self._partial: list[dict[Span, None]] = [{} for _ in range(CLASSES)]
        self._managed = self._peak_managed = 0
        self._used = self._peak = 0
        self._asked_bytes = 0
        self._objects = self._object_bytes = 0
        self._spans = self._span_bytes = 0

    # Extents

    def add_extent(self, address: int, nbytes: int) -> None:
        """Let blocks be cut from memory at an address.

        Raises
        ------
        UsageError
            It overlaps another extent, or address or size is no multiple of 32.
        FullError
            The pool would have more than `max_bytes`.
        """
        if address <= 0 or address % MIN_BLOCK_BYTES:
            raise UsageError(
                f"an extent at {address:#x}: its address must be a positive multiple of {MIN_BLOCK_BYTES}"
            )
        extent = _Extent(address, nbytes)
        index = bisect_right(self._starts, address)
        before = self._extents[self._starts[index - 1]] if index else None
        if (before and before.end > address) or (
            index < len(self._starts) and self._starts[index] < extent.end
        ):
            raise UsageError(
                f"the extent at {address:#x} with {nbytes} bytes overlaps another one of the pool"
            )
        if self.max_bytes is not None and self._managed + nbytes > self.max_bytes:
            raise FullError(
                f"an extent of {nbytes} bytes does not fit: the pool has {self._managed} of at most "
                f"{self.max_bytes} bytes"
            )
        insort(self._starts, address)
        self._extents[address] = extent
        self._by_top[extent.top][address] = extent
        self._tops |= 1 << extent.top
        self._empty[address] = None
        self._alignment = min(self._alignment, address & -address)
        self._managed += nbytes
        self._peak_managed = max(self._peak_managed, self._managed)

    def remove_extent(self, address: int) -> None:
        """Take an empty extent out.

        Raises
        ------
        UsageError
            There is none at that address, or something of it is given away.
        """
        extent = self._extents.get(address)
        if extent is None:
            raise UsageError(f"the pool has no extent at {address:#x}")
        if len(extent.buddy):
            raise UsageError(
                f"the extent at {address:#x} is in use: {extent.buddy.nbytes - extent.buddy.free_bytes} of "
                f"{extent.buddy.nbytes} bytes are given away"
            )
        del self._empty[address]
        self._forget_top(extent)
        del self._extents[address]
        self._starts.remove(address)
        self._managed -= extent.buddy.nbytes
        self._alignment = min((start & -start for start in self._starts), default=1 << 63)

    def empty_extents(self) -> list[int]:
        """Addresses of extents of which nothing is given away."""
        return list(self._empty)

    def extent_for(self, nbytes: int, align: int = STEP_BYTES) -> int:
        """Return how many bytes an extent must have at least so that `allocate` gives a block from it.

        The extent is supposed to start on a multiple of `ADDRESS_ALIGNMENT`, as regions do.

        Raises
        ------
        TooLargeError
            A pool of `max_bytes` would not hold it even if it were empty.
        FullError
            With it the pool would have more than `max_bytes`.
        """
        _verify(nbytes, align)
        needed = smallest_multiple(nbytes) + (align if align > ADDRESS_ALIGNMENT else 0)
        if self.max_bytes is not None:
            if needed > self.max_bytes:
                raise TooLargeError(
                    f"a block of {nbytes} bytes (align={align}) needs {needed} bytes, and the whole pool may "
                    f"have at most {self.max_bytes}; ask for less, or raise its bound"
                )
            if self._managed + needed > self.max_bytes:
                raise FullError(
                    f"no room for {nbytes} bytes (align={align}): {self._used} of {self._managed} bytes are "
                    f"in use, and the pool may grow by {self.max_bytes - self._managed} bytes; "
                    "free something, or raise its bound"
                )
        return needed

    # Blocks

    def allocate(self, nbytes: int, align: int = STEP_BYTES) -> int | None:
        """Return the address of a block, or None if there is no room in any extent.

        Parameters
        ----------
        nbytes : int
            0 counts as 1.
        align : int, default 16
            A power of two of which the address is a multiple.

        Raises
        ------
        UsageError
            A negative size, or an alignment that is no power of two.
        """
        _verify(nbytes, align)
        found = self._cut(nbytes, align) if align <= self._alignment else self._cut_shifted(nbytes, align)
        if found is None:
            return None
        extent, offset = found
        self._use(extent.buddy.size_of(offset))
        address = extent.address + offset
        shift = -address % align
        if shift:
            address += shift
            self._shifts[address] = shift
        self._asked[address] = nbytes
        self._asked_bytes += nbytes
        return address

    def free(self, address: int) -> int:
        """Take a block (or an object) back; return its bytes.

        Raises
        ------
        UsageError
            No block that is out starts there; the message says what does.
        """
        asked = self._asked.pop(address, None)
        if asked is None:
            size = self._size_of_object(address)
            if size and not self.give((address,)):
                return size
            raise UsageError(f"{address:#x} is no block: {self.explain(address)}")
        self._asked_bytes -= asked
        start = address - self._shifts.pop(address, 0)
        extent = self._extent_at(start)
        assert extent is not None
        size = extent.buddy.free(start - extent.address)
        self._used -= size
        self._changed(extent)
        return size

    def grow(self, address: int, nbytes: int) -> bool:
        """Make a block at least `nbytes` long where it lies; False if the memory behind it is not free.

        Raises
        ------
        UsageError
            No block that is out starts there, or the size is negative.
        """
        _verify(nbytes, 1)
        asked = self._asked.get(address)
        if asked is None:
            return nbytes <= self.usable_size(address)
        shift = self._shifts.get(address, 0)
        extent = self._extent_at(address)
        assert extent is not None
        offset = address - shift - extent.address
        before = extent.buddy.size_of(offset)
        if not extent.buddy.grow(offset, nbytes + shift):
            return False
        self._asked[address] = nbytes
        self._asked_bytes += nbytes - asked
        self._use(extent.buddy.size_of(offset) - before)
        self._changed(extent)
        return True

    def usable_size(self, address: int) -> int:
        """Bytes that may be used from the start of a block or object on.

        Raises
        ------
        UsageError
            None that is out starts there.
        """
        if address in self._asked:
            extent = self._extent_at(address)
            assert extent is not None
            shift = self._shifts.get(address, 0)
            return extent.buddy.size_of(address - shift - extent.address) - shift
        size = self._size_of_object(address)
        if not size:
            raise UsageError(f"{address:#x} is no block: {self.explain(address)}")
        return size

    # Objects of size classes

    def take(self, cls: int, count: int) -> list[int]:
        """Return up to `count` objects of a class: fewer, or none, if there is no room in any extent.

        Where there is room for no more, an extent of `dsm.memory.classes.span_bytes` bytes makes some.
        """
        if not 0 <= cls < CLASSES or count < 0:
            raise UsageError(f"{count} objects of class {cls}: there are {CLASSES} classes, from 0")
        partial = self._partial[cls]
        taken: list[int] = []
        while len(taken) < count:
            # (The first key of a dict is not found at once when others before it were deleted.)
            span = partial.popitem()[0] if partial else self._cut_span(cls)
            if span is None:
                break
            taken += span.take(count - len(taken))
            if span.live < span.count:
                partial[span] = None
        size = SIZES[cls]
        self._objects += len(taken)
        self._object_bytes += len(taken) * size
        self._use(len(taken) * size)
        while len(taken) < count:
            address = self.allocate(size)
            if address is None:
                break
            taken.append(address)
        return taken

    def give(self, addresses: Iterable[int]) -> list[int]:
        """Take objects (or blocks) back; return those that were refused because they are not out.

        `explain` says of each what it is.
        """
        refused: list[int] = []
        start = end = 0
        for address in addresses:
            if not start <= address < end:
                found = self._span_at(address)
                if found is None:
                    if address in self._asked:
                        self.free(address)
                    else:
                        refused.append(address)
                    continue
                extent, span = found
                start, end, size, out = span.start, span.end, span.size, span.out
            index, inside = divmod(address - start, size)
            if inside or not out[index]:
                refused.append(address)
                continue
            out[index] = 0
            self._objects -= 1
            self._object_bytes -= size
            self._used -= size
            if span.live == span.count:
                self._partial[span.cls][span] = None
            span.live -= 1
            if span.live:
                span.spare.append(address)
            else:
                self._drop_span(extent, span)
                start = end = 0
        return refused

    def explain(self, address: int) -> str:
        """Say what is at an address: for messages about what was refused."""
        extent = self._extent_at(address)
        if extent is None:
            return "it lies in no extent of this pool"
        if address in self._asked:
            return f"a block of {self.usable_size(address)} bytes starts there"
        found = self._span_at(address)
        if found is None:
            return extent.buddy.explain(address - extent.address)
        span = found[1]
        index, inside = divmod(address - span.start, span.size)
        if inside:
            return f"it lies {inside} bytes inside an object of {span.size} bytes"
        if span.out[index]:
            return f"an object of {span.size} bytes starts there"
        return f"the object of {span.size} bytes there is free (freed twice?)"

    # Figures and invariants

    def figures(self) -> PoolFigures:
        """What is managed, used and free now."""
        return PoolFigures(
            extents=len(self._extents),
            managed=self._managed,
            blocks=len(self._asked),
            objects=self._objects,
            used=self._used,
            asked=self._asked_bytes + self._object_bytes,
            spare=self._span_bytes - self._object_bytes,
            free=self._managed - self._used - self._span_bytes + self._object_bytes,
            largest_free=max((extent.buddy.largest_free for extent in self._extents.values()), default=0),
            spans=self._spans,
            span_bytes=self._span_bytes,
            peak=self._peak,
            peak_managed=self._peak_managed,
        )

    def check(self) -> None:
        """Verify every invariant.

        Raises
        ------
        InternalError
            Names the first that does not hold.
        """
        if self._starts != sorted(self._extents):
            raise InternalError("pool: the list of extents is not in order, or does not name each")
        end = 0
        blocks: dict[int, int] = {}
        spans: dict[Span, None] = {}
        free = 0
        for address in self._starts:
            extent = self._extents[address]
            if address < end or extent.end != address + extent.buddy.nbytes:
                raise InternalError(f"pool: the extent at {address:#x} overlaps another one")
            end = extent.end
            extent.buddy.check()
            free += extent.buddy.free_bytes
            if (address in self._empty) != (not len(extent.buddy)):
                raise InternalError(f"pool: the extent at {address:#x} is wrong about being empty")
            if extent.top != extent.buddy.largest_order or address not in self._by_top[extent.top]:
                raise InternalError(
                    f"pool: the extent at {address:#x} is not filed under its largest free block"
                )
            pieces = {address + offset: size for offset, size in extent.buddy.blocks().items()}
            granules = 0
            for span in dict.fromkeys(extent.spans.values()):
                if pieces.pop(span.start, 0) != span.end - span.start:
                    raise InternalError(f"pool: the span at {span.start:#x} is no block of its buddy")
                if any(extent.spans.get(granule) is not span for granule in extent.granules(span)):
                    raise InternalError(f"pool: the span at {span.start:#x} is not found by its addresses")
                span.check()
                if not span.live:
                    raise InternalError(f"pool: the span at {span.start:#x} is empty and was not given back")
                if (span in self._partial[span.cls]) != (span.live < span.count):
                    raise InternalError(
                        f"pool: the span at {span.start:#x} is not filed under what it has to give"
                    )
                spans[span] = None
                granules += len(extent.granules(span))
            if granules != len(extent.spans):
                raise InternalError(f"pool: a span of the extent at {address:#x} is found where it is not")
            blocks.update(pieces)
        for address in self._asked:
            size = blocks.pop(address - self._shifts.get(address, 0), None)
            if size is None:
                raise InternalError(f"pool: the block at {address:#x} is none of its buddy's")
        if blocks:
            raise InternalError(f"pool: the block at {min(blocks):#x} belongs to nobody")
        if not self._shifts.keys() <= self._asked.keys():
            raise InternalError("pool: a shift is kept of a block that is not out")
        partial = sum(len(filed) for filed in self._partial)
        if partial != sum(span.live < span.count for span in spans):
            raise InternalError("pool: a span is filed that does not exist any more")
        if sum(len(filed) for filed in self._by_top) != len(self._extents):
            raise InternalError("pool: an extent is filed that does not exist any more")
        for order, filed in enumerate(self._by_top[:-1]):
            if bool(filed) != bool(self._tops >> order & 1):
                raise InternalError(f"pool: bit {order} of the extents' orders does not say what is filed")
        self._check_totals(spans, free)

    def _check_totals(self, spans: Iterable[Span], free: int) -> None:
        spans = list(spans)
        span_bytes = sum(span.end - span.start for span in spans)
        object_bytes = sum(span.live * span.size for span in spans)
        managed = sum(extent.buddy.nbytes for extent in self._extents.values())
        for name, kept, true in (
            ("managed bytes", self._managed, managed),
            ("used bytes", self._used, managed - free - span_bytes + object_bytes),
            ("asked bytes", self._asked_bytes, sum(self._asked.values())),
            ("objects", self._objects, sum(span.live for span in spans)),
            ("object bytes", self._object_bytes, object_bytes),
            ("spans", self._spans, len(spans)),
            ("span bytes", self._span_bytes, span_bytes),
        ):
            if kept != true:
                raise InternalError(f"pool: {name} are counted as {kept} and are {true}")
        if self._peak < self._used or self._peak_managed < self._managed:
            raise InternalError("pool: a peak is lower than what is used or managed now")

    # Inside

    def _cut(self, nbytes: int, align: int) -> tuple[_Extent, int] | None:
        """Cut a block from the extent with the smallest largest free block that will do."""
        order = (max(nbytes, align, MIN_BLOCK_BYTES) - 1).bit_length()
        fitting = self._tops >> order
        if fitting:
            top = order + (fitting & -fitting).bit_length() - 1
            filed = self._by_top[top]
            address, extent = filed.popitem()
            filed[address] = extent
            candidates: Iterable[_Extent] = (extent,)
        elif align > nbytes:
            candidates = self._extents.values()
        else:
            # Only the end of an extent may keep a block from having a whole power of two: it begins with half
            # of it.
            candidates = self._by_top[order - 1].values() if order < 65 else ()
        for extent in candidates:
            offset = extent.buddy.allocate(nbytes, align)
            if offset is not None:
                self._changed(extent)
                return extent, offset
        return None

    def _cut_shifted(self, nbytes: int, align: int) -> tuple[_Extent, int] | None:
        """Cut a block with `nbytes` from a multiple of `align` on, where extents may start on none."""
        for extent in self._extents.values():
            offset = extent.buddy.allocate((nbytes or 1) + -extent.address % align, align)
            if offset is not None:
                self._changed(extent)
                return extent, offset
        return None

    def _cut_span(self, cls: int) -> Span | None:
        """Make a span (not filed), a smaller one if there is no room for a whole one."""
        size, count = SIZES[cls], SPAN_OBJECTS[cls]
        while count and count * size >= GRANULE_BYTES:
            found = self._cut(count * size, GRANULE_BYTES)
            if found is not None:
                extent, offset = found
                span = Span(cls, extent.address + offset, count)
                extent.spans.update(dict.fromkeys(extent.granules(span), span))
                self._spans += 1
                self._span_bytes += span.end - span.start
                return span
            count //= 2
        return None

    def _drop_span(self, extent: _Extent, span: Span) -> None:
        """Give an empty span back to its buddy."""
        for granule in extent.granules(span):
            del extent.spans[granule]
        del self._partial[span.cls][span]
        self._spans -= 1
        self._span_bytes -= span.end - span.start
        extent.buddy.free(span.start - extent.address)
        self._changed(extent)

    def _use(self, nbytes: int) -> None:
        self._used += nbytes
        self._peak = max(self._peak, self._used)

    def _extent_at(self, address: int) -> _Extent | None:
        index = bisect_right(self._starts, address)
        if not index:
            return None
        extent = self._extents[self._starts[index - 1]]
        return extent if address < extent.end else None

    def _span_at(self, address: int) -> tuple[_Extent, Span] | None:
        extent = self._extent_at(address)
        if extent is None:
            return None
        span = extent.spans.get((address - extent.address) >> _GRANULE_SHIFT)
        return (extent, span) if span is not None and address < span.end else None

    def _size_of_object(self, address: int) -> int:
        """Bytes of the object that is out and starts there; 0 when none does."""
        found = self._span_at(address)
        if found is None:
            return 0
        span = found[1]
        index, inside = divmod(address - span.start, span.size)
        return span.size if not inside and span.out[index] else 0

    def _changed(self, extent: _Extent) -> None:
        """File an extent anew after its buddy gave or got something."""
        top = extent.buddy.largest_order
        if top != extent.top:
            self._forget_top(extent)
            extent.top = top
            self._by_top[top][extent.address] = extent
            if top >= 0:
                self._tops |= 1 << top
        if len(extent.buddy):
            self._empty.pop(extent.address, None)
        else:
            self._empty[extent.address] = None

    def _forget_top(self, extent: _Extent) -> None:
        filed = self._by_top[extent.top]
        del filed[extent.address]
        if not filed and extent.top >= 0:
            self._tops ^= 1 << extent.top


def _verify(nbytes: int, align: int) -> None:
    if nbytes < 0:
        raise UsageError(f"{nbytes} bytes: pass a number that is not negative")
    if align < 1 or align & (align - 1):
        raise UsageError(f"align={align}: pass a power of two")
