"""The model of a worker process: what it has mapped, its applied table, its service thread.

Owns, for each region, the applied table (what the manager reads), the protection that the processor
enforces (what accesses meet; it changes a step earlier than the table says) and the page locks.  The
service thread obeys the manager's commands; each of its steps is an event of its own, so everything
can come between.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from dsm.testing.simulation.trace import What, pages
from dsm.testing.simulation.truth import NONE
from dsm.testing.simulation.world import Violation, World

if TYPE_CHECKING:
    from dsm.testing.simulation.frames import NodeRegion
    from dsm.testing.simulation.node import Node
    from dsm.testing.simulation.thread import Thread

#: Bits of wanted and applied bytes, as in layout.h.
LEVEL, MARK, PINNED, LOCKED = 0x03, 0x10, 0x40, 0x80
#: Pages that the service thread lowers with one mprotect.
SERVICE_RUN = 16


class WorkerRegion:
    """One region as one worker maps it."""

    __slots__ = ("applied", "closed", "home", "number", "pins", "protection")

    def __init__(self, home: NodeRegion) -> None:
        self.home = home
        self.number = home.number
        self.applied = bytearray(home.pages)
        #: What the processor enforces.
        self.protection = bytearray(home.pages)
        #: For each pinned page, the levels at which threads hold it.
        self.pins: dict[int, list[int]] = {}
        self.closed = False


class Worker:
    """One worker process."""

    def __init__(self, world: World, node: Node, number: int) -> None:
        self.world = world
        self.node = node
        #: Among the workers of its node.
        self.number = number
        self.regions: dict[int, WorkerRegion] = {}
        self.threads: list[Thread] = []
        #: Commands of the manager: sequence, region, page, count.
        self.commands: deque[tuple[int, WorkerRegion, int, int]] = deque()
        self.dead = False
        self._serving = False
        self._cursor = 0
        self._run: list[tuple[int, int]] = []

    def add_region(self, home: NodeRegion) -> None:
        """Map a region, with no access."""
        region = self.regions[home.number] = WorkerRegion(home)
        home.workers.append(region)

    def close_region(self, number: int) -> None:
        """The addresses stay reserved; touching them is an error from now on."""
        self.regions[number].closed = True

    def wanted(self, region: WorkerRegion, page: int) -> int:
        """Return the byte of the wanted table, as far as it counts."""
        return region.home.wanted[page]

    def protect(self, region: WorkerRegion, page: int, level: int) -> None:
        """Mprotect one page: accesses meet `level` from this instant."""
        home = region.home
        protection = region.protection
        if protection[page] == level:
            return
        before = max([other.protection[page] for other in home.workers])
        protection[page] = level
        after = max([other.protection[page] for other in home.workers])
        if before != after and not home.dropped:
            home.truth.mapped(self.node.number, page, before, after, home.frames[page])

    def die(self, _: Any = None) -> None:
        """Lose everything at once: threads, maps, locks; the manager notices later."""
        if self.dead:
            return
        world = self.world
        world.note(What.DEATH, self.node.number, self.number)
        self.end()
        world.forget([self, *self.threads])
        for region in self.regions.values():
            for page in range(region.home.pages):
                self.protect(region, page, NONE)
        world.after(world.pause(), self.node.worker_died, self)

    def end(self) -> None:
        """Its threads do nothing any more."""
        self.dead = True
        for thread in self.threads:
            thread.finished = True
            thread.waiting = False

    # -- service thread ---------------------------------------------------------------------------

    def command(self, sequence: int, region: WorkerRegion, page: int, count: int) -> None:
        """The manager posts a command."""
        if self.dead:
            return
        self.commands.append((sequence, region, page, count))
        if not self._serving:
            self._serving = True
            self.world.after(self.world.pause(), self._begin)

    def _begin(self, _: Any) -> None:
        sequence, region, page, count = self.commands[0]
        world = self.world
        what = f"r{region.number} {pages(page, count)}"
        world.note(What.COMMAND, self.node.number, self.number, sequence, page, what)
        self._cursor = page
        self._lock(None)

    def _lock(self, _: Any) -> None:
        """Lock the next pages, as many as are free: never wait for one while holding another."""
        _, region, page, count = self.commands[0]
        applied = region.applied
        end = min(page + count, self._cursor + SERVICE_RUN)
        last = self._cursor
        while last < end and not applied[last] & LOCKED:
            applied[last] |= LOCKED
            last += 1
        world = self.world
        if last == self._cursor:
            world.after(world.pause(), self._lock)
            return
        self._run = [(self._cursor, last)]
        world.after(world.pause(), self._read)

    def _read(self, _: Any) -> None:
        region = self.commands[0][1]
        first, last = self._run[0]
        applied = region.applied
        self._run = [
            (page, min(applied[page] & LEVEL, self.wanted(region, page) & LEVEL))
            for page in range(first, last)
        ]
        self.world.after(self.world.pause(), self._protect)

    def _protect(self, _: Any) -> None:
        region = self.commands[0][1]
        for page, level in self._run:
            self.protect(region, page, level)
        self.world.after(self.world.pause(), self._store)

    def _store(self, _: Any) -> None:
        sequence, region, page, count = self.commands[0]
        applied = region.applied
        for locked, level in self._run:
            applied[locked] = applied[locked] & PINNED | level
        self._cursor += len(self._run)
        world = self.world
        if self._cursor < page + count:
            world.after(world.pause(), self._lock)
            return
        self.commands.popleft()
        self.acknowledge(sequence)
        if self.commands:
            world.after(world.pause(), self._begin)
        else:
            self._serving = False

    def acknowledge(self, sequence: int) -> None:
        """Tell the manager that a command was obeyed."""
        world = self.world
        world.note(What.ACKNOWLEDGE, self.node.number, self.number, sequence)
        world.after(world.pause(), self.node.acknowledged, (self.number, sequence))

    # -- merging maps -----------------------------------------------------------------------------

    def drop_maps(self, region: WorkerRegion, page: int, count: int) -> None:
        """Near the limit of maps a worker gives access up by itself, pinned pages excepted."""
        for one in range(page, page + count):
            if not region.applied[one] & (LOCKED | PINNED) and region.applied[one]:
                region.applied[one] |= LOCKED
                self.world.after(self.world.pause(), self._drop_map, (region, one))

    def _drop_map(self, argument: tuple[WorkerRegion, int]) -> None:
        region, page = argument
        self.world.note(What.DROP_MAP, self.node.number, self.number, region.number, page)
        self.protect(region, page, NONE)
        self.world.after(self.world.pause(), self._dropped_map, argument)

    def _dropped_map(self, argument: tuple[WorkerRegion, int]) -> None:
        region, page = argument
        region.applied[page] = region.applied[page] & PINNED

    # -- pins -------------------------------------------------------------------------------------

    def apply_pinned(self, region: WorkerRegion, page: int, need: int) -> bool:
        """Map a page that the manager holds for us; False when its lock is taken just now."""
        applied = region.applied
        if applied[page] & LOCKED:
            return False
        level = region.home.wanted[page] & LEVEL
        if level < need and not region.home.dropped:
            raise Violation(f"region {region.number} page {page}: pinned at {need} but wanted says {level}")
        self.protect(region, page, level)
        applied[page] = PINNED | level
        region.pins.setdefault(page, []).append(need)
        return True

    def unpin(self, region: WorkerRegion, page: int, level: int) -> None:
        """One thread less holds this page."""
        region.pins[page].remove(level)
        if not region.pins[page]:
            del region.pins[page]
            region.applied[page] &= ~PINNED & 0xFF
