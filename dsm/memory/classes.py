"""Size classes of small blocks.

Owns the table of classes and what follows from a class alone: the size of its objects, how many travel
together, how many a worker may keep, and how large the spans are from which they are cut.

Sizes go in steps of 16 bytes up to 128, then in eight steps from each power of two to the next, so that at
most 12.5 % of an object are not asked for.  Every size has at most four significant bits, so a span of a
power of two objects is a size that `dsm.memory.buddy` cuts exactly: nothing is left over at the end of a
span.
"""

from __future__ import annotations

from typing import Final

from dsm.errors import UsageError

#: Largest object of a class; what is larger comes straight from the buddies.
MAX_SMALL_BYTES: Final = 256 * 1024
#: Classes are this far apart at first, and every object lies on a multiple of it.
STEP_BYTES: Final = 16
#: Sizes up to here are steps; above, each power of two has `_PARTS` classes.
_LINEAR_BYTES: Final = 128
_PARTS: Final = 8
#: Bytes that travel between a worker and its manager in one batch, and the most and fewest objects of one.
BATCH_BYTES: Final = 64 * 1024
MAX_BATCH: Final = 32
_MIN_BATCH: Final = 2
#: A span is no smaller than this, and starts on a multiple of it in its extent.
GRANULE_BYTES: Final = 16 * 1024


def _sizes() -> list[int]:
    sizes = list(range(STEP_BYTES, _LINEAR_BYTES + 1, STEP_BYTES))
    while sizes[-1] < MAX_SMALL_BYTES:
        power = sizes[-1]
        sizes += range(power + power // _PARTS, 2 * power + 1, power // _PARTS)
    return sizes


#: Bytes of an object, by class.
SIZES: Final = tuple(_sizes())
CLASSES: Final = len(SIZES)
#: Objects of one batch, by class.
BATCHES: Final = tuple(max(_MIN_BATCH, min(MAX_BATCH, BATCH_BYTES // size)) for size in SIZES)
#: Objects that a worker keeps before it gives a batch back, by class.
CAPACITIES: Final = tuple(2 * batch for batch in BATCHES)


def _span_objects(size: int, batch: int) -> int:
    count = 1
    while count < batch or count * size < GRANULE_BYTES:
        count *= 2
    return count


#: Objects of a span, by class: a power of two.
SPAN_OBJECTS: Final = tuple(_span_objects(size, batch) for size, batch in zip(SIZES, BATCHES, strict=True))


def _classes_by_step() -> bytes:
    table = bytearray(1)
    for cls, size in enumerate(SIZES):
        table += bytes([cls]) * (size // STEP_BYTES + 1 - len(table))
    return bytes(table)


#: Class by the number of steps: one look.
_BY_STEP: Final = _classes_by_step()


def class_of(nbytes: int, align: int = STEP_BYTES) -> int:
    """Return the smallest class whose objects hold `nbytes` and lie on multiples of `align`.

    Parameters
    ----------
    nbytes : int
        0 to `MAX_SMALL_BYTES`; 0 counts as 1.
    align : int, default 16
        A power of two, at most `MAX_SMALL_BYTES`.  It holds in extents that start on a multiple of it.

    Raises
    ------
    UsageError
        There is no such class.
    """
    if not 0 <= nbytes <= MAX_SMALL_BYTES:
        raise UsageError(f"{nbytes} bytes have no size class: classes hold 0 to {MAX_SMALL_BYTES} bytes")
    if align <= STEP_BYTES:
        return _BY_STEP[(nbytes + 15) >> 4]
    if align & (align - 1) or align > MAX_SMALL_BYTES:
        raise UsageError(f"align={align} has no size class: pass a power of two up to {MAX_SMALL_BYTES}")
    cls = _BY_STEP[(nbytes + 15) >> 4]
    while SIZES[cls] % align:
        cls += 1
    return cls


def class_size(cls: int) -> int:
    """Bytes of an object of a class."""
    return SIZES[cls]


def batch_size(cls: int) -> int:
    """Objects that travel together."""
    return BATCHES[cls]


def span_bytes(cls: int) -> int:
    """Bytes of a span: what an extent must have room for so that objects can be cut."""
    return SIZES[cls] * SPAN_OBJECTS[cls]


assert SIZES[-1] == MAX_SMALL_BYTES and CLASSES <= 256, "a class is one byte"
