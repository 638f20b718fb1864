"""Bounded staleness of one region on one node: read leases, one writer token a page, no invalidations.

Owns the policy; the mechanism is that of sequential consistency.  A page has one owner, who holds the
writer token and writes its frame freely.  Other nodes read copies that carry a lease (Gray and Cheriton,
1989): it ends `max_staleness` after their request was *sent*, less a guard in which the workers take access
away.  They do so themselves, by the ends that stand in shared memory, so that neither a stopped manager nor
a lost connection lets them read on.  Nobody is told when a page is written.

The token moves as a page does under the sequential model, and the previous writer keeps nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.bounded.directory import BoundedDirectory
from dsm.coherence.bounded.holder import BoundedHolder
from dsm.coherence.bounded.leases import LeaseTable
from dsm.coherence.bounded.requester import BoundedRequester
from dsm.coherence.messages import Flag, Kind, Message
from dsm.coherence.rows import Rows
from dsm.coherence.sequential import SequentialRegion
from dsm.coherence.states import State
from dsm.limits import LEASE_GUARD_PART
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine

_DATA = int(Kind.DATA)
_WRITE = int(Flag.WRITE)
_INVALIDATIONS = (int(Kind.INVALIDATE), int(Kind.INVALIDATED))


class BoundedRegion(SequentialRegion):
    """One region under the `bounded` model."""

    __slots__ = ("lease_ns",)

    requester_class = BoundedRequester
    directory_class = BoundedDirectory
    holder_class = BoundedHolder
    #: What is held for long must not grow old: a pin takes the token, also to read.
    pins_take = True

    table: LeaseTable
    requester: BoundedRequester

    def __init__(self, engine: Engine, region: Region) -> None:
        staleness = region.options.max_staleness_ns
        #: Nanoseconds from the sending of a request to the end of what it brings.
        self.lease_ns = staleness - staleness // LEASE_GUARD_PART
        super().__init__(engine, region)
        # A chunk at a time: the leases of a whole window would end while the last of it comes.
        self.bulk_pages = self.placement.chunk_pages

    def make_table(self, pages: int) -> LeaseTable:
        """Return the page table."""
        engine = self.engine
        return LeaseTable(pages, lambda: engine.now)

    def check(self, message: Message) -> str | None:
        """Return what is wrong with a message from a peer, None when it may be handled."""
        if message.kind in _INVALIDATIONS:
            return "pages of a bounded region are never invalidated"
        if message.kind == _DATA and message.value and not message.flags & _WRITE:
            request = self.requester.requests.get(message.request)
            if request is not None and not request.sent <= message.value <= request.asked:
                return f"a copy is said to have been asked for at {message.value}"
        return super().check(message)

    @property
    def deadline(self) -> int | None:
        """When `resume` is to be called next; None when nothing waits for time to pass."""
        found = [at for at in (self.holder.deadline, self.requester.deadline) if at is not None]
        return min(found, default=None)

    def resume(self) -> None:
        """What was held back may perhaps go on; what was not answered for long is asked again."""
        self.holder.resume()
        self.requester.look()

    def node_lost(self, node: int) -> None:
        """A node is dead: what it had and what it decided about cannot be had any more."""
        super().node_lost(node)
        self.requester.owner_lost()

    def rows(self, page: int, count: int) -> Rows:
        """Return what this node knows of these pages, for the page table: a copy that is over is none."""
        rows = super().rows(page, count)
        left = self.table.ends[page : page + count].astype(np.int64) - self.engine.now
        state = rows["state"]
        leased = (state == State.SHARED) | (state == State.UPGRADING)
        over = leased & (left <= 0)
        rows["level"][over] = 0
        rows["lease"][leased & ~over] = left[leased & ~over]
        rows["state"][over] = np.where(state[over] == State.SHARED, State.INVALID, State.WRITING)
        return rows

    def describe(self, page: int) -> str:
        """One line about a page, for errors and status."""
        left = self.table.end[page] - self.engine.now
        lease = f", lease ends in {left / 1e6:.1f} ms" if left > 0 else ""
        return super().describe(page) + lease
