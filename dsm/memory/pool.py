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

Which extent a block is cut from `dsm.memory.extents` decides; `dsm.memory.poolcheck` verifies all of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dsm.errors import FullError, TooLargeError, UsageError
from dsm.limits import ADDRESS_ALIGNMENT
from dsm.memory import poolcheck
from dsm.memory.buddy import smallest_multiple
from dsm.memory.classes import CLASSES, GRANULE_BYTES, SIZES, SPAN_OBJECTS, STEP_BYTES
from dsm.memory.extents import GRANULE_SHIFT, Extent, Extents
from dsm.memory.figures import PoolFigures
from dsm.memory.span import Span


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
        self._extents = Extents()
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
        extent = self._extents.make(address, nbytes)
        if self.max_bytes is not None and self._managed + nbytes > self.max_bytes:
            raise FullError(
                f"an extent of {nbytes} bytes does not fit: the pool has {self._managed} of at most "
                f"{self.max_bytes} bytes"
            )
        self._extents.add(extent)
        self._managed += nbytes
        self._peak_managed = max(self._peak_managed, self._managed)

    def remove_extent(self, address: int) -> None:
        """Take an empty extent out.

        Raises
        ------
        UsageError
            There is none at that address, or something of it is given away.
        """
        self._managed -= self._extents.remove(address).buddy.nbytes

    def empty_extents(self) -> list[int]:
        """Addresses of extents of which nothing is given away."""
        return self._extents.empty()

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
        found = self._extents.cut_aligned(nbytes, align)
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
        extent = self._extents.at(start)
        assert extent is not None
        size = extent.buddy.free(start - extent.address)
        self._used -= size
        self._extents.changed(extent)
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
        extent = self._extents.at(address)
        assert extent is not None
        offset = address - shift - extent.address
        before = extent.buddy.size_of(offset)
        if not extent.buddy.grow(offset, nbytes + shift):
            return False
        self._asked[address] = nbytes
        self._asked_bytes += nbytes - asked
        self._use(extent.buddy.size_of(offset) - before)
        self._extents.changed(extent)
        return True

    def usable_size(self, address: int) -> int:
        """Bytes that may be used from the start of a block or object on.

        Raises
        ------
        UsageError
            None that is out starts there.
        """
        if address in self._asked:
            extent = self._extents.at(address)
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
        extent = self._extents.at(address)
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
            largest_free=max((extent.buddy.largest_free for extent in self._extents), default=0),
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
        poolcheck.check(self)

    # Inside

    def _cut_span(self, cls: int) -> Span | None:
        """Make a span (not filed), a smaller one if there is no room for a whole one."""
        size, count = SIZES[cls], SPAN_OBJECTS[cls]
        while count and count * size >= GRANULE_BYTES:
            found = self._extents.cut(count * size, GRANULE_BYTES)
            if found is not None:
                extent, offset = found
                span = Span(cls, extent.address + offset, count)
                extent.spans.update(dict.fromkeys(extent.granules(span), span))
                self._spans += 1
                self._span_bytes += span.end - span.start
                return span
            count //= 2
        return None

    def _drop_span(self, extent: Extent, span: Span) -> None:
        """Give an empty span back to its buddy."""
        for granule in extent.granules(span):
            del extent.spans[granule]
        del self._partial[span.cls][span]
        self._spans -= 1
        self._span_bytes -= span.end - span.start
        extent.buddy.free(span.start - extent.address)
        self._extents.changed(extent)

    def _use(self, nbytes: int) -> None:
        self._used += nbytes
        self._peak = max(self._peak, self._used)

    def _span_at(self, address: int) -> tuple[Extent, Span] | None:
        extent = self._extents.at(address)
        if extent is None:
            return None
        span = extent.spans.get((address - extent.address) >> GRANULE_SHIFT)
        return (extent, span) if span is not None and address < span.end else None

    def _size_of_object(self, address: int) -> int:
        """Bytes of the object that is out and starts there; 0 when none does."""
        found = self._span_at(address)
        if found is None:
            return 0
        span = found[1]
        index, inside = divmod(address - span.start, span.size)
        return span.size if not inside and span.out[index] else 0


def _verify(nbytes: int, align: int) -> None:
    if nbytes < 0:
        raise UsageError(f"{nbytes} bytes: pass a number that is not negative")
    if align < 1 or align & (align - 1):
        raise UsageError(f"align={align}: pass a power of two")
