"""The model of a worker that reads under leases: its handler, and the service thread that ends access.

Owns `due`, the earliest end of a lease under which something is mapped, and the look at that time.  The
handler notes the end before it maps, holding the page's lock, and looks at the clock again afterwards; the
look takes no page whose lock is held, and comes back to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsm.limits import LEASE_GUARD_PART
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.truth import NONE, READ
from dsm.testing.simulation.worker import LEVEL, LOCKED, PINNED, Worker, WorkerRegion
from dsm.testing.simulation.world import World

if TYPE_CHECKING:
    from dsm.testing.simulation.bounded.node import LeasedRegion
    from dsm.testing.simulation.node import Node

_NEVER = 1 << 62
#: Leases that end within this part of the guard end together, as in lease.c.
_LOOKS_OF_A_GUARD = 8


class BoundedWorker(Worker):
    """One worker process."""

    def __init__(self, world: World, node: Node, number: int) -> None:
        super().__init__(world, node, number)
        self._due = _NEVER

    def lease(self, region: WorkerRegion, page: int) -> int:
        """Return when the lease of a page ends."""
        home: LeasedRegion = region.home  # type: ignore[assignment]
        return home.leases[page]

    def wanted(self, region: WorkerRegion, page: int) -> int:
        """Return the byte of the wanted table, as far as it counts: not after the end of its lease."""
        byte = region.home.wanted[page]
        if byte & LEVEL == READ and self.lease(region, page) <= self.world.now:
            return byte & ~LEVEL
        return byte

    # -- the service thread -----------------------------------------------------------------------

    def note(self, end: int) -> None:
        """Something is about to be mapped until `end`."""
        if end < self._due:
            self._due = end
            self.world.at(end, self.look, end)

    def look(self, due: int) -> None:
        """Leases have ended: take away what was mapped under them."""
        if due != self._due:
            return
        self.world.note(What.TICK, self.node.number, self.number)
        self._due = _NEVER
        for region in self.regions.values():
            if not region.closed:
                self._end_leases(region)

    def _end_leases(self, region: WorkerRegion) -> None:
        now = self.world.now
        home: LeasedRegion = region.home  # type: ignore[assignment]
        until = now + home.staleness // LEASE_GUARD_PART // _LOOKS_OF_A_GUARD
        first = _NEVER
        for page in range(home.pages):
            applied = region.applied[page]
            if not applied & (LOCKED | LEVEL) or (applied & LEVEL != READ and not applied & LOCKED):
                continue
            if home.wanted[page] & LEVEL != READ:
                continue
            if applied & LOCKED:
                first = min(first, now + self.world.pause())
            elif self.lease(region, page) <= until:
                self.protect(region, page, NONE)
                region.applied[page] = applied & PINNED
            else:
                first = min(first, self.lease(region, page))
        self.note(first)


class BoundedThread(Thread):
    """One thread."""

    worker: BoundedWorker

    def _access(self, operation: Any, region: WorkerRegion) -> None:
        home: LeasedRegion = region.home  # type: ignore[assignment]
        grace = home.staleness // LEASE_GUARD_PART
        resumed = self.world.last_stop(self.worker)
        home.truth.excused = resumed > 0 and self.world.now <= resumed + grace  # type: ignore[attr-defined]
        super()._access(operation, region)

    def _take(self, wanted: int) -> None:
        super()._take(wanted)
        region = self._region()
        ends = [self.worker.lease(region, page) for page, level in self._held if level == READ]
        if ends:
            self.worker.note(min(ends))

    def _protect(self, argument: Any) -> None:
        """Map what is still wanted: this thread may have lost its processor since it looked."""
        region = self._region()
        self._held = [
            (page, min(level, self.worker.wanted(region, page) & LEVEL) if level == READ else level)
            for page, level in self._held
        ]
        super()._protect(argument)
