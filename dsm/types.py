"""Values that several floors pass around: what a region is, and how its array lies in it.

Owns the immutable descriptions; no behaviour beyond validation of one value by itself.
"""

from __future__ import annotations

import msgspec

#: Consistency models that a region may choose.
CONSISTENCIES = ("sequential", "release", "bounded")
#: Rules for which nodes keep a region's directory entries; or a node's number (`RegionOptions.home`).
PLACEMENTS = ("first-touch", "block", "cyclic")
#: What a region is for: an array or raw memory of a program, memory that a heap divides, one block of it,
#: one lease.
USES = ("array", "extent", "block", "lease")
#: When the memory of a heap is got from the system: at once, or when it is first used.
HEAP_KINDS = ("eager", "lazy")
#: How a heap divides memory: pools of extents, or a region for each block.
HEAP_MANAGERS = ("pooled", "direct")
#: Consistency models that the memory of a heap may have.
HEAP_CONSISTENCIES = ("sequential", "release")
#: Parties of a barrier.
MAX_PARTIES = 2**31 - 1
#: Units of a semaphore.
MAX_UNITS = 2**63 - 1
#: Dimensions that numpy allows.
MAX_DIMENSIONS = 64


#: Name of the barrier of all workers of a job.
JOB_BARRIER = "dsm.job"
#: Name of the atomic that `Node.acquire` reads and `Node.release` writes; no user opens it.
FENCE = "dsm.fence"
#: Before a condition's name: name of the lock of its own.
CONDITION_LOCK = "dsm.condition."


class ArrayLayout(msgspec.Struct, frozen=True):
    """How a numpy array lies in a region, from its first byte on."""

    shape: tuple[int, ...]
    #: JSON of ``dtype.str``; of structured dtypes, of numpy's dictionary form (`dsm.worker.layouts`).
    dtype: str
    #: ``"C"`` or ``"F"``.
    order: str = "C"


class RegionOptions(msgspec.Struct, frozen=True):
    """What the creator of a region chooses."""

    nbytes: int
    name: str | None = None
    page_size: int = 4096
    #: One of `CONSISTENCIES`.
    consistency: str = "sequential"
    #: One of `PLACEMENTS`, or a node's number.
    home: str | int = "first-touch"
    #: Bytes repeated from the region's start; empty means zeros.
    fill: bytes = b""
    layout: ArrayLayout | None = None
    #: Of `bounded`: nanoseconds by which a value that is read may be old; else 0.
    max_staleness_ns: int = 0
    #: One of `USES`, and the heap that it counts for.
    use: str = "array"
    heap: str | None = None


class Region(msgspec.Struct, frozen=True):
    """A region as the metadata store knows it; the same in every process of the cluster."""

    #: Never used again in the life of a cluster; starts at 1.
    region: int
    options: RegionOptions
    #: The same in every worker.
    address: int
    #: Nodes that keep directory entries: those that were live when the region was created.
    members: tuple[int, ...]

    @property
    def pages(self) -> int:
        """Number of pages; at least one, so that a zero-size array has an address."""
        return max(1, -(-self.options.nbytes // self.options.page_size))

    @property
    def size(self) -> int:
        """Bytes of address space: whole pages."""
        return self.pages * self.options.page_size


class HeapOptions(msgspec.Struct, frozen=True):
    """What the creator of a heap chooses; `dsm.properties` has the defaults."""

    name: str
    #: One of `HEAP_KINDS`.
    kind: str
    #: One of `HEAP_MANAGERS`: of blocks for which none is named.
    manager: str
    #: Bytes of the extents by which pools grow.
    min_system_alloc: int
    #: Bytes that all its regions together may have, on all nodes; 0: as many as there are.
    max_bytes: int
    page_size: int
    #: One of `HEAP_CONSISTENCIES`.
    consistency: str
    debug: bool


class HeapRecord(msgspec.Struct, frozen=True):
    """A heap as the metadata store knows it."""

    #: Never used again in the life of a cluster; starts at 1.
    number: int
    options: HeapOptions


class SyncObject(msgspec.Struct, frozen=True):
    """A synchronization object as the metadata store knows it."""

    #: Never used again in the life of a cluster; starts at 1.
    object: int
    #: ``"lock"``, ``"rwlock"``, ``"semaphore"``, ``"condition"``, ``"event"``, ``"barrier"`` or ``"atomic"``.
    kind: str
    name: str
    #: Node that decides about it.
    home: int
    #: Parties of a barrier, initial value of an atomic, units of a semaphore, lock of a condition; else 0.
    value: int = 0
    #: A semaphore whose units belong to who has them.
    bounded: bool = False
