"""Heaps in debug mode: guards around every block, and where they are looked at.

Owns the writing and verifying of guards (`dsm.memory.guards` has their layout).  Every block is registered
at the manager of its node with the line of the program that allocated it; memory that was freed is filled,
kept for a while, and looked at before it is used again.  Each allocation and free asks the manager: this
mode is for finding errors.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from dsm import _native
from dsm._native import caches
from dsm.errors import ClosedError, DSMError, HeapCorruptionError, PageTimeoutError, UnknownNameError
from dsm.memory import guards
from dsm.wire import control, heaps
from dsm.worker.block import Block

if TYPE_CHECKING:
    from dsm.worker.heap import Heap


class Found(NamedTuple):
    """A block that is to be freed, and what is wrong with it."""

    home: int
    #: The line of the program that frees it.
    where: str
    block: heaps.DebugBlock
    damaged: HeapCorruptionError | None


class _SilentError(Exception):
    """A node does not say in time which blocks it keeps; other than a page that does not come in time."""


def place() -> str:
    """Return ``file:line`` of the call into dsm."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("dsm."):
        frame = frame.f_back
    name = frame.f_code.co_filename.encode(errors="replace").decode()
    return f"{name}:{frame.f_lineno}"[-heaps.MAX_PLACE :]


def allocate(heap: Heap, nbytes: int, align: int, zero: bool) -> Block:
    """Allocate a block with guards around it."""
    given = heap._ask_pool(nbytes, align, place())
    address = given.address
    whole = _memory(heap, address, nbytes, align)
    start = guards.front_bytes(align)
    whole[:start] = guards.front(nbytes, align)
    whole[start + nbytes :] = guards.back()
    if zero:
        caches.zero(address, nbytes)
    else:
        whole[start : start + nbytes] = bytes([guards.NEW]) * nbytes
    _show(heap)
    heap._node._connection.session.post(heaps.HeapGuarded(heap._record.number, heap._home, address))
    return heap._keep_whole(given, nbytes)


def look(heap: Heap, address: int) -> Found:
    """Verify a block that is to be freed: nothing has happened yet.

    Raises
    ------
    HeapCorruptionError
        It was freed already.
    """
    where = place()
    region, _ = heap._region_of(address)
    home = region.options.home
    assert isinstance(home, int)
    found = heap._call(heaps.HeapFind(heap._record.number, home, address, where), heaps.HeapFound)
    block = heaps.DebugBlock(address, found.usable, found.align, found.place)
    _see(heap)
    return Found(home, where, block, _damage(heap, block))


def free(heap: Heap, found: Found) -> None:
    """Fill a block that was looked at, and free it, damaged or not.

    Raises
    ------
    HeapCorruptionError
        Bytes outside it were written; or that is so of one that was freed long ago, whose memory is to be
        used again.
    """
    number, home, where, block, damaged = heap._record.number, *found
    address = block.address
    whole = _memory(heap, address, block.nbytes, block.align)
    start = guards.front_bytes(block.align)
    whole[:start] = guards.front(block.nbytes, block.align, freed=True)
    whole[start:] = bytes([guards.FREED]) * block.nbytes + guards.back()
    _show(heap)
    freed = heap._call(heaps.HeapFree(number, home, address, block.nbytes, where), heaps.HeapFreed)
    if freed.retiring:
        _see(heap)
    if not all(_native.region_find(each.address) for each in freed.retiring):
        # They lie in extents of which only other workers have had blocks.
        question = heaps.HeapBlocks(number, home, address, patient=True)
        _map(heap, heap._call(question, heaps.HeapListed).extents)
    for each in freed.retiring:
        damaged = damaged or _damage(heap, each)
    if freed.retiring:
        addresses = tuple(each.address for each in freed.retiring)
        heap._call(heaps.HeapRetire(number, home, addresses), control.Done)
    if damaged is not None:
        raise damaged


def check(heap: Heap, silent: tuple[int, ...]) -> tuple[int, ...]:
    """Verify every block of every node that answers, live or freed a short while ago.

    Returns the silent nodes, with those that have ceased to answer meanwhile.
    """
    found = set(silent)
    for node in sorted(set(heap._node.nodes).difference(silent)):
        try:
            _check_node(heap, node)
        except _SilentError:
            found.add(node)
    return tuple(sorted(found))


def _check_node(heap: Heap, node: int) -> None:
    after, more = 0, True
    while more:
        try:
            listed = _list(heap, node, after)
        except ClosedError:
            if heap.closed:
                raise
            return
        _map(heap, listed.extents)
        _see(heap)
        for block in listed.blocks:
            damaged: DSMError | None
            try:
                damaged = _damage(heap, block)
            except ClosedError as error:  # its extent was given back; or something is wrong indeed
                damaged = error
            if damaged is not None and _is_still(heap, node, block):
                raise damaged
            after = block.address
        more = listed.more


def _list(heap: Heap, node: int, after: int) -> heaps.HeapListed:
    try:
        listed: heaps.HeapListed = heap._call(
            heaps.HeapBlocks(heap._record.number, node, after), heaps.HeapListed
        )
    except PageTimeoutError as error:
        raise _SilentError from error
    return listed


def _show(heap: Heap) -> None:
    """Guards were written: other nodes are to see them whatever the program synchronizes."""
    if heap.options.consistency == "release":
        heap._node.release()


def _see(heap: Heap) -> None:
    """Guards are looked at: as they are, not as they were when this node last saw them."""
    if heap.options.consistency == "release":
        heap._node.acquire()


def _map(heap: Heap, extents: tuple[int, ...]) -> None:
    """Map extents, but for those that were given back meanwhile."""
    for number in extents:
        if heap._node._regions.get(number) is None:
            with contextlib.suppress(ClosedError, UnknownNameError):
                heap._node._regions.open(number)


def _is_still(heap: Heap, node: int, block: heaps.DebugBlock) -> bool:
    """Whether a block is what it was when it was listed: nobody has freed it, or used its memory again."""
    listed = _list(heap, node, block.address - 1)
    return block in listed.blocks[:1]


def _damage(heap: Heap, block: heaps.DebugBlock) -> HeapCorruptionError | None:
    """Return what is to be said of a block that is not as it was left."""
    found = guards.damage(
        _memory(heap, block.address, block.nbytes, block.align),
        block.nbytes,
        block.align,
        freed=bool(block.freed),
    )
    if not found:
        return None
    after = f", freed at {block.freed}" if block.freed else ""
    return HeapCorruptionError(
        f"{found[0]} (block of {block.nbytes} bytes at {block.address:#x} of heap {heap.name!r}, allocated "
        f"at {block.place}{after}); look for what writes there"
    )


def _memory(heap: Heap, address: int, nbytes: int, align: int) -> memoryview:
    """Return a block with its guards."""
    start = address - guards.front_bytes(align)
    region, offset = heap._region_of(start)
    return region.buffer[offset : offset + guards.guarded_bytes(nbytes, align)]
