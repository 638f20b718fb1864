"""Release consistency of one region on one node: many writers, with a home for each page.

Owns the region's page table and joins the roles a node plays for it: requester, home, writer and acquirer
(home-based lazy release consistency: Zhou, Iftode and Li, 1996; intervals and write notices as in
TreadMarks).  What orders the regions of a node is in `fence`.

States, of a page whose home is elsewhere: SHARED a clean copy, EXCLUSIVE one with a twin, DOWNGRADING
losing write access for a release, INVALIDATING being given up.  Of a page whose home is here: see `home`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dsm.coherence.messages import Flag, Kind, Message, Runs
from dsm.coherence.region import ModelRegion
from dsm.coherence.release.acquirer import Acquirer
from dsm.coherence.release.habits import Habits
from dsm.coherence.release.home import Home
from dsm.coherence.release.homes import Homes
from dsm.coherence.release.rehoming import Rehomings
from dsm.coherence.release.requester import ReleaseRequester
from dsm.coherence.release.runs import Pages
from dsm.coherence.release.writer import Writer
from dsm.coherence.rows import Rows, members
from dsm.coherence.states import READABLE, State
from dsm.errors import Status
from dsm.limits import READ_AHEAD_MAX_BYTES
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine

_KNOWN_FLAGS = int(Flag.WRITE | Flag.FRESH | Flag.HOME)
_DIFF, _DROP, _DIFFED, _MOVED = int(Kind.DIFF), int(Kind.DROP), int(Kind.DIFFED), int(Kind.MOVED)


class ReleaseRegion(ModelRegion):
    """One region under the `release` model."""

    __slots__ = ("acquirer", "habits", "home", "rehomings", "writer")

    requester: ReleaseRequester
    placement: Homes

    def __init__(self, engine: Engine, region: Region) -> None:
        # Pages that are made writable early cost a comparison; nobody loses them.
        super().__init__(engine, region, Homes(engine.node, region), READ_AHEAD_MAX_BYTES)
        self.requester = ReleaseRequester(self)
        self.home = Home(self)
        self.writer = Writer(self)
        self.acquirer = Acquirer(self)
        self.rehomings = Rehomings(self)
        self.habits = Habits(self, region.options.page_size)
        self.roles |= {
            Kind.GET: self.home.request,
            Kind.AHEAD: self.home.request,
            Kind.DROP: self.home.drop,
            Kind.GRANT: self.requester.install,
            Kind.LOST: self.requester.lost,
            Kind.MOVED: self.requester.moved,
            Kind.DIFFED: self._diffed,
        }
        if region.members == (engine.node,) and not region.options.fill:
            self.table.states[:] = State.EXCLUSIVE  # private from the start
            self.raise_all()

    def _diffed(self, message: Message) -> None:
        if not self.home.diffed(message):
            self.writer.acknowledged(message)

    def lowered(self, token: int) -> None:
        """A `Lower` is done."""
        for role in (self.writer, self.acquirer, self.home):
            if token in role.lowering:
                role.lowered(token)
                break
        self.engine.fence.look()

    def check(self, message: Message) -> str | None:
        """Return what is wrong with a message from a peer, None when it may be handled."""
        if message.count < 1 or message.page + message.count > self.table.pages:
            return f"pages {message.page}+{message.count} of {self.table.pages}"
        if message.kind not in (_DIFF, _DIFFED, _MOVED) and message.count > self.placement.chunk_pages:
            return f"{message.count} pages in one message, at most {self.placement.chunk_pages}"
        if message.flags & ~_KNOWN_FLAGS:
            return f"unknown flags {message.flags:#x}"
        return None

    def settle_pages(self, pages: Pages) -> None:
        """The states of these pages (ascending) changed: wake who is served, ask for who is not."""
        if len(pages) and (self.requester.waiting or self.bulks.under_way):
            low = int(pages[0])
            self.requester.settle(low, int(pages[-1]) - low + 1)

    def fall_back(self, runs: Runs) -> None:
        """Pages are being taken away: pins that grow have to bring them again."""
        if self.bulks.under_way:
            for page, count in runs.tolist():
                self.bulks.fall_back(page, count)

    def cancel(self, waiter: int) -> bool:
        """End a wait with CANCELLED; False when `waiter` does not wait here."""
        return super().cancel(waiter) or self.rehomings.cancel(waiter)

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        super().forget(waits)
        self.rehomings.forget(waits)

    def expire(self, age: int) -> None:
        """End the waits that began, or last came forward, at `age` or before."""
        super().expire(age)
        self.rehomings.expire(age)

    def end_all(self, status: Status) -> None:
        """Every wait ends with `status`; late answers find no request."""
        super().end_all(status)
        self.rehomings.end_all(status)

    def awaited(self, page: int) -> int:
        """Return the node from which something is missing for `page` to come here; -1 when none is known."""
        directory = self.placement.directory(page)
        return directory if directory != self.node else -1

    def node_lost(self, node: int) -> None:
        """A node is dead: the pages of which it was the home cannot be had any more."""
        self.requester.directory_lost(node)
        self.writer.node_lost(node)
        self.home.node_lost(node)

    # -- pins ----------------------------------------------------------------------------------------------

    def pinned(self, pages: Pages, write: bool = False) -> npt.NDArray[np.bool_]:
        """Return, for each of `pages`, whether it is pinned (with `write`: for writing)."""
        held = np.zeros(len(pages), np.bool_)
        for low, high, writes in self.pins:
            if writes or not write:
                held |= (pages >= low) & (pages < high)
        return held

    def resume(self) -> None:
        """What waited for the end of a pin may go on."""
        self.acquirer.unpinned()
        self.home.unpinned()
        self.engine.fence.look()

    @property
    def deadline(self) -> int | None:
        """Nothing here waits for time to pass."""
        return None

    def look_soon(self) -> None:
        """Nothing here is kept for a thread's sake."""

    # -- reports -------------------------------------------------------------------------------------------

    def rows(self, page: int, count: int) -> Rows:
        """Return what this node knows of these pages, for the page table: their owner is their home."""
        rows = super().rows(page, count)
        mine = self.placement.mine(np.arange(page, page + count))
        touched = rows["state"] != State.INVALID
        rows["owner"][mine & touched] = self.node
        rows["copyset"][mine] = (members(self.table.copysets[page : page + count]) + touched)[mine]
        unclaimed = ~mine & (rows["home"] == self.node)
        rows["copyset"][unclaimed] = 0
        rows["home"][unclaimed] = -1
        return rows

    def describe(self, page: int) -> str:
        """One line about a page, for errors and status."""
        table = self.table
        state = State(table.state[page])
        parts = [f"page {page} is {state.name} here"]
        if self.placement.is_mine(page):
            parts.append(f"its home is here, copyset {table.copyset[page]:#x}")
        else:
            parts.append(f"its home is node {self.placement.directory(page)} as far as is known here")
        if page in self.requester.waiting:
            parts.append(f"{len(self.requester.waiting[page])} waiting")
        if state in READABLE and self.pinned(np.array([page]))[0]:
            parts.append("pinned")
        return ", ".join(parts)
