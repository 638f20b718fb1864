"""Messages about heaps: of a worker and the manager of its node, between managers, and to the coordinator.

Owns their types; `dsm.wire.control` and `dsm.wire.membership` have them in their unions.  A heap is named by
its number, a pool by the heap and the `node` whose extents it divides.  In the steady state none of them is
sent: what a worker allocates and frees lies in its cache (`dsm.memory.cache`), a memory file that comes with
`HeapOpened`; behind the cache lies a ring of blocks on their way to the pool they are of
(`dsm.memory.rings`).
"""

from __future__ import annotations

import msgspec

from dsm.types import HeapOptions, HeapRecord

#: Longest name of a place in a program, ``file:line``, that is kept for a block.
MAX_PLACE = 400


class OpenHeap(msgspec.Struct, frozen=True, tag=True):
    """Create a heap, or find the one of that name; `given` names the options that must be as asked.

    Answer: `HeapOpened`, with [cache], unless this worker has one and says so (`cached`).
    """

    options: HeapOptions
    given: tuple[str, ...] = ()
    #: Numbers of the heaps of which it has a cache.
    cached: tuple[int, ...] = ()


class HeapOpened(msgspec.Struct, frozen=True, tag=True):
    """The heap, and what of its memory this worker has to map."""

    heap: HeapRecord
    created: bool


class FindHeap(msgspec.Struct, frozen=True, tag=True):
    """Find a heap by number or name.  Answer: as `OpenHeap`."""

    key: str | int
    cached: tuple[int, ...] = ()


class DestroyHeap(msgspec.Struct, frozen=True, tag=True):
    """End a heap and all its memory.  Answer: `Done`, once no worker can reach it any more."""

    heap: int


class HeapTake(msgspec.Struct, frozen=True, tag=True):
    """Give this worker's cache up to `count` objects of a size class, at least one.  Answer: `HeapTaken`."""

    heap: int
    size_class: int
    count: int


class HeapTaken(msgspec.Struct, frozen=True, tag=True):
    """A batch of objects, for `WorkerCache.fill`."""

    number: int
    addresses: tuple[int, ...]
    #: Extents that this worker has not been told of, by region number, and those that are gone.
    extents: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()


class HeapGive(msgspec.Struct, frozen=True, tag=True):
    """Take a batch that left this worker's cache; with number 0, only what is in its ring.  Answer:
    `HeapGiven`.
    """

    heap: int
    number: int = 0
    addresses: tuple[int, ...] = ()


class HeapGiven(msgspec.Struct, frozen=True, tag=True):
    """All of it is at home, but for those that no pool had out: they were free already."""

    refused: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()


class HeapAllocate(msgspec.Struct, frozen=True, tag=True):
    """Allocate one block straight from this node's pool.  Answer: `HeapAllocated`."""

    heap: int
    nbytes: int
    align: int = 16
    #: In debug mode: by which line of which program.
    place: str = ""


class HeapAllocated(msgspec.Struct, frozen=True, tag=True):
    """A block."""

    address: int
    usable: int
    #: Nobody has ever had this memory: it is zero.
    fresh: bool
    extents: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()


class HeapFree(msgspec.Struct, frozen=True, tag=True):
    """Free one block of any node's pool.  Answer: `HeapFreed`."""

    heap: int
    node: int
    address: int
    #: As they were asked for.
    nbytes: int
    #: In debug mode: by which line; empty: its allocation was interrupted, nobody has ever had it.
    place: str = ""


class DebugBlock(msgspec.Struct, frozen=True):
    """A block that a manager keeps in debug mode, live or freed; around it are its guards."""

    address: int
    nbytes: int
    align: int
    #: Where it was allocated, and freed; empty: it is live.
    place: str
    freed: str = ""


class HeapFreed(msgspec.Struct, frozen=True, tag=True):
    """It is free.  In debug mode its memory is kept for a while; `retiring` is to be looked at, and
    retired.
    """

    retiring: tuple[DebugBlock, ...] = ()
    lost: bool = False


class HeapRetire(msgspec.Struct, frozen=True, tag=True):
    """These freed blocks have been looked at: their memory may be used again.  Answer: `Done`."""

    heap: int
    node: int
    addresses: tuple[int, ...]


class HeapGuarded(msgspec.Struct, frozen=True, tag=True):
    """In debug mode: the guards of this block, which was just allocated, stand.  Answer: `Done`."""

    heap: int
    node: int
    address: int


class HeapGrow(msgspec.Struct, frozen=True, tag=True):
    """Make a block longer where it is, or say that less of it is asked for.  Answer: `HeapGrown`."""

    heap: int
    node: int
    address: int
    nbytes: int
    #: How much was asked for until now.
    before: int


class HeapGrown(msgspec.Struct, frozen=True, tag=True):
    """Whether there was room, and how long it is now."""

    grown: bool
    usable: int


class HeapUnasked(msgspec.Struct, frozen=True, tag=True):
    """Of the pages of this block, which is a region, nobody asked for so many bytes.  Answer: `Done`.

    It goes to the node that made the block; until then all of its pages count as asked for.
    """

    heap: int
    node: int
    region: int
    nbytes: int


class HeapFind(msgspec.Struct, frozen=True, tag=True):
    """What block begins at this address?  Answer: `HeapFound`."""

    heap: int
    node: int
    address: int
    #: In debug mode: which line wants to free it.
    place: str = ""


class HeapFound(msgspec.Struct, frozen=True, tag=True):
    """A live block; in debug mode its alignment, and where it was allocated."""

    usable: int
    align: int = 16
    place: str = ""


class HeapTrim(msgspec.Struct, frozen=True, tag=True):
    """Give every empty extent back.  Answer: `Done`."""

    heap: int


class HeapFigures(msgspec.Struct, frozen=True, tag=True):
    """How much there is, on all nodes?  Answer: `HeapCounted`."""

    heap: int


class PoolFigures(msgspec.Struct, frozen=True):
    """The pool of one node.  All but counts are bytes; ``managed == used + cached + spare + free``.

    Attributes
    ----------
    node
        Its number.
    extents, managed
        Extents, and their bytes.
    used, in_use
        Bytes of live blocks, with what the sizes of classes add; and how many blocks that are.
    cached
        Of free blocks in the caches of workers (in debug mode: that were freed and are watched).
    spare
        Of free blocks that only allocations of the same class can use.
    free, largest_free
        What any allocation can use, and the largest block that is to be had without another extent.
    peak
        The most that was out of the pool at a time, caches of workers included.
    locked
        Of extents that the system keeps in memory.
    """

    node: int
    extents: int = 0
    managed: int = 0
    used: int = 0
    in_use: int = 0
    cached: int = 0
    spare: int = 0
    free: int = 0
    largest_free: int = 0
    peak: int = 0
    locked: int = 0


class PoolCount(PoolFigures, frozen=True):
    """The pool of one node, and what was counted of its blocks."""

    #: Bytes of live blocks of this pool, as was asked for; less what nobody asked for of the pages of blocks
    #: that are regions of their own.
    requested: int = 0
    allocations: int = 0
    frees: int = 0
    #: Frees of blocks that were free already, or of which the node is lost.
    refused: int = 0
    lost: int = 0


class HeapCounted(msgspec.Struct, frozen=True, tag=True):
    """By node; and nodes that did not answer."""

    pools: tuple[PoolCount, ...]
    #: Blocks that are regions of their own, and their bytes.
    blocks: int = 0
    block_bytes: int = 0
    silent: tuple[int, ...] = ()


class HeapCheck(msgspec.Struct, frozen=True, tag=True):
    """Verify every pool of this heap.  Answer: `HeapChecked`."""

    heap: int


class HeapChecked(msgspec.Struct, frozen=True, tag=True):
    """The first thing that is wrong, and nodes that did not answer."""

    wrong: str = ""
    silent: tuple[int, ...] = ()


class HeapBlocks(msgspec.Struct, frozen=True, tag=True):
    """In debug mode: which blocks do you keep, from behind this address on?  Answer: `HeapListed`."""

    heap: int
    node: int
    after: int = 0
    #: Whether who asks waits for as long as the node lives.
    patient: bool = False


class HeapListed(msgspec.Struct, frozen=True, tag=True):
    """Blocks by address, and the regions of all extents."""

    blocks: tuple[DebugBlock, ...]
    more: bool
    extents: tuple[int, ...] = ()


#: What a worker asks of its manager.
WorkerQuestion = (
    OpenHeap | FindHeap | DestroyHeap | HeapTake | HeapGive | HeapAllocate | HeapFree | HeapRetire |
    HeapGuarded | HeapGrow | HeapUnasked | HeapFind | HeapTrim | HeapFigures | HeapCheck | HeapBlocks
)  # fmt: skip
WorkerAnswer = (
    HeapOpened | HeapTaken | HeapGiven | HeapAllocated | HeapFreed | HeapGrown | HeapFound | HeapCounted |
    HeapChecked | HeapListed
)  # fmt: skip


class HeapFlush(msgspec.Struct, frozen=True, tag=True):
    """Between managers: send home what your workers have freed.  Answer: `HeapDone`, when it is there."""

    heap: int


class HeapHome(msgspec.Struct, frozen=True, tag=True):
    """Between managers: blocks of your pool that were freed here.  Answer: `HeapGiven`."""

    heap: int
    #: Address, and bytes that were asked for.
    blocks: tuple[tuple[int, int], ...]


class HeapDone(msgspec.Struct, frozen=True, tag=True):
    """It is done."""


class HeapRefused(msgspec.Struct, frozen=True, tag=True):
    """It was refused; `status` is a `dsm.errors.Status`."""

    status: int
    message: str


#: What managers ask each other, and what they answer.
NodeQuestion = (
    HeapFree | HeapRetire | HeapGrow | HeapUnasked | HeapFind | HeapTrim | HeapFigures | HeapCheck
    | HeapBlocks | HeapFlush | HeapHome | HeapGuarded
)  # fmt: skip
NodeAnswer = (
    HeapFreed
    | HeapGrown
    | HeapFound
    | HeapCounted
    | HeapChecked
    | HeapListed
    | HeapGiven
    | HeapDone
    | HeapRefused
)


class AskHeap(msgspec.Struct, frozen=True):
    """A question of one manager to another."""

    body: NodeQuestion


class HeapTold(msgspec.Struct, frozen=True):
    """Its answer."""

    body: NodeAnswer


class FoundHeap(msgspec.Struct, frozen=True, tag=True):
    """The coordinator's answer to `OpenHeap` and `FindHeap`."""

    heap: HeapRecord
    created: bool
