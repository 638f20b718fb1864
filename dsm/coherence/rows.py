"""What one node can say of its pages, a row a page, in the bytes in which it travels.

Owns the row, and what every consistency model fills in alike.  A model has a method
``rows(page, count) -> Rows`` that begins with `rows_of` and adds what only it knows.  Fixed, packed and
little-endian, so that a row means the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from dsm.coherence.states import READABLE, WRITABLE, State
from dsm.limits import MAX_NODES

if TYPE_CHECKING:
    from dsm.coherence.table import PageTable

#: An owner, home, copyset or lease that there is not, or that this node does not know.
UNKNOWN: Final = -1
#: Owner of a page that went away with its last owner.
GONE: Final = -2

ROW: Final = np.dtype(
    [
        #: Nanoseconds for which this node may still read its copy without asking; `UNKNOWN` without a lease.
        ("lease", "<i8"),
        #: How often the contents, or the right to write them, came here or were merged here or from here.
        ("version", "<u4"),
        #: Faults of this node's workers that its manager was asked about.
        ("faults_read", "<u4"),
        ("faults_write", "<u4"),
        #: The node that decides about the page, as far as this one knows.
        ("home", "<i1"),
        #: Of the home: the node with the writable copy, or that had it last; and how many nodes have copies.
        ("owner", "<i1"),
        ("copyset", "<i1"),
        ("state", "<u1"),
        #: What workers of this node may have: a `Level`.
        ("level", "<u1"),
        #: Whether this node may have written what no other node has.
        ("dirty", "<u1"),
    ]
)
assert ROW.itemsize == 26
#: An array of `ROW`.
Rows: TypeAlias = npt.NDArray[Any]

_LEVELS = np.array([2 if s in WRITABLE else 1 if s in READABLE else 0 for s in map(int, State)], np.uint8)
_DIRTY = np.array([s in WRITABLE or s == State.DOWNGRADING for s in State], np.uint8)
_BITS = np.array([number.bit_count() for number in range(256)], np.int8)
#: Bounds of what a node may say, both of them possible.
_BOUNDS: Final = {
    "lease": (UNKNOWN, 1 << 62),
    "home": (UNKNOWN, MAX_NODES - 1),
    "owner": (GONE, MAX_NODES - 1),
    "copyset": (UNKNOWN, MAX_NODES),
    "state": (0, max(State)),
    "level": (0, 2),
    "dirty": (0, 1),
}


def rows_of(table: PageTable, page: int, count: int) -> Rows:
    """Return rows with what the page table has: all but home, owner, copyset and lease."""
    rows = np.zeros(count, ROW)
    states = table.states[page : page + count]
    rows["state"] = states
    rows["level"] = _LEVELS[states]
    rows["dirty"] = _DIRTY[states]
    rows["version"] = table.versions.read(page, count)
    rows["faults_read"] = table.faults_read.read(page, count)
    rows["faults_write"] = table.faults_write.read(page, count)
    for name in ("lease", "home", "owner", "copyset"):
        rows[name] = UNKNOWN
    return rows


def members(sets: npt.NDArray[np.uint64]) -> npt.NDArray[np.int8]:
    """Return how many bits are set in each copyset."""
    bits: npt.NDArray[np.int8] = _BITS[sets.reshape(-1, 1).view(np.uint8)].sum(axis=1, dtype=np.int8)
    return bits


def parse(data: bytes, count: int) -> Rows | None:
    """Return the rows of `count` pages that a node sent; None when they cannot be."""
    if len(data) != count * ROW.itemsize:
        return None
    rows = np.frombuffer(data, ROW)
    if not count:
        return rows
    for name, (low, high) in _BOUNDS.items():
        values = rows[name]
        if values.min() < low or values.max() > high:
            return None
    return rows
