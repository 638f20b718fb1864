"""The extents of a heap on one node: asked for when its pool is exhausted, given back when they are empty.

Owns which regions they are, and the requests that wait until the pool has grown.  It asks the coordinator and
the other nodes through functions that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, KeysView
from functools import partial

from dsm.errors import DSMError, InternalError, LimitError, Status, error_for
from dsm.memory.pool import Pool
from dsm.types import HeapOptions, Region, RegionOptions
from dsm.wire import control
from dsm.wire import membership as meta

#: ``then(None)`` when the pool has grown, or with the reason why it has not.
Grown = Callable[[DSMError | None], None]


class Growth:
    """The extents of a pool.

    Parameters
    ----------
    options
        Of its heap.
    node
        This node.
    ask
        Asks the coordinator: ``ask(question, then)``.
    added
        Called with every new extent, before it is used: ``added(region, then)``; ``then(bytes of it that are
        locked in memory)``.
    room
        Called with the bytes of an extent before it is asked for; raises `LimitError` when it cannot be.
    relieve
        Asks the other nodes to give empty extents back, because this one gets none: ``relieve(then)``.

    Attributes
    ----------
    pool
        What grows by them.
    """

    def __init__(
        self,
        options: HeapOptions,
        node: int,
        ask: Callable[[meta.Question, Callable[[meta.Reply], None]], None],
        added: Callable[[Region, Callable[[int], None]], None],
        room: Callable[[int], None],
        relieve: Callable[[Callable[[], None]], None],
    ) -> None:
        self.pool = Pool()  # without a bound: the coordinator counts what all nodes have
        self._options = options
        self._node = node
        self._ask = ask
        self._added = added
        self._room = room
        self._relieve = relieve
        self.closed = False
        #: Address of each extent, by region number; and up to where it has ever been given away.
        self._extents: dict[int, int] = {}
        self._used_to: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        #: Bytes of each that are locked in memory.
        self.locked: dict[int, int] = {}
        #: Extents that are being given back.
        self._leaving = 0
        self._left: list[Callable[[], None]] = []
        #: Bytes that wait for an extent, and what comes then; the first one's is being asked for.
        self._waiting: deque[tuple[int, Grown]] = deque()

    @property
    def regions(self) -> KeysView[int]:
        """Numbers of the extents."""
        return self._extents.keys()

    def touch(self, address: int) -> bool:
        """Note that a block is given away; whether its memory has never been before."""
        region = self._extent_of(address)
        end = address + self.pool.usable_size(address)
        fresh = address >= self._used_to[region]
        self._used_to[region] = max(self._used_to[region], end)
        return fresh

    def _extent_of(self, address: int) -> int:
        for region, start in self._extents.items():
            if start <= address < self._ends[region]:
                return region
        raise InternalError(f"a pool gave {address:#x}, which lies in none of its extents")

    def prepare(self, then: Grown) -> None:
        """Make the first extent, if there is none."""
        if self._extents:
            then(None)
        else:
            self.grow(self._options.page_size, then)

    def grow(self, needed: int, then: Grown) -> None:
        self._waiting.append((needed, then))
        if len(self._waiting) == 1:
            self._ask_extent(max(needed, self._options.min_system_alloc))

    def _ask_extent(self, nbytes: int, relieved: bool = False) -> None:
        options = self._options
        nbytes = -(-nbytes // options.page_size) * options.page_size
        region = RegionOptions(
            nbytes=nbytes,
            page_size=options.page_size,
            consistency=options.consistency,
            home=self._node,
            use="extent",
            heap=options.name,
        )
        try:
            self._room(nbytes)
        except LimitError as error:
            self._extent_came(nbytes, relieved, control.Failed(Status.LIMIT, str(error)))
            return
        self._ask(control.CreateRegion(region), lambda reply: self._extent_came(nbytes, relieved, reply))

    def _extent_came(self, nbytes: int, relieved: bool, reply: meta.Reply) -> None:
        if self.closed:
            if isinstance(reply, meta.Found):
                self._ask(control.DestroyRegion(reply.region.region), lambda _: None)
            return
        if isinstance(reply, meta.Found):
            self._added(reply.region, partial(self._extent_added, reply.region))
            return
        assert isinstance(reply, control.Failed)
        needed, then = self._waiting[0]
        page = self._options.page_size
        needed = -(-needed // page) * page
        if reply.status in (Status.FULL, Status.TOO_LARGE, Status.LIMIT):
            if self.pool.empty_extents():  # what is kept for later is in the way now
                self.shrink(0, lambda: self._ask_extent(needed, relieved))
                return
            if needed < nbytes:
                self._ask_extent(needed, relieved)
                return
            if reply.status == Status.FULL and not relieved:
                self._relieve(lambda: None if self.closed else self._ask_extent(needed, True))
                return
        self._waiting.popleft()
        if self._waiting:
            self._ask_extent(max(self._waiting[0][0], self._options.min_system_alloc))
        then(error_for(reply.status, reply.message))

    def _extent_added(self, region: Region, locked: int) -> None:
        if self.closed:
            return
        self.locked[region.region] = locked
        self._extents[region.region] = self._used_to[region.region] = region.address
        self._ends[region.region] = region.address + region.options.nbytes
        self.pool.add_extent(region.address, region.options.nbytes)
        waiting, self._waiting = self._waiting, deque()
        for _, then in waiting:  # those for whom it does not suffice wait again
            then(None)

    def shrink(self, keep: int, then: Callable[[], None] = lambda: None) -> None:
        """Give empty extents back but for so many; `then()` when they are gone."""
        empty = self.pool.empty_extents()
        self._left.append(then)
        for address in empty[: max(0, len(empty) - keep)]:
            region = next(number for number, start in self._extents.items() if start == address)
            self.pool.remove_extent(address)
            for table in (self._extents, self._used_to, self._ends, self.locked):
                table.pop(region, None)
            self._leaving += 1
            self._ask(control.DestroyRegion(region), self._extent_left)
        self._settle()

    def _extent_left(self, reply: meta.Reply) -> None:
        self._leaving -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._leaving:
            left, self._left = self._left, []
            for then in left:
                then()

    def close(self) -> list[Grown]:
        """The heap is destroyed; return what waits for an extent."""
        self.closed = True
        waiting, self._waiting = self._waiting, deque()
        return [then for _, then in waiting]
