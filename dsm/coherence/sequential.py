"""Sequential consistency of one region on one node: a single writer node, many reader nodes.

Owns the region's page table and joins the three roles a node plays for it: requester, directory and
holder (write-invalidate with fixed distributed managers: Li and Hudak, 1989).  Messages of a role to
another role of this node go through the engine's inbox, in order, never through a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.directory import Directory
from dsm.coherence.holder import Holder
from dsm.coherence.messages import Flag, Kind, Message
from dsm.coherence.placement import Placement
from dsm.coherence.region import ModelRegion
from dsm.coherence.requester import Requester
from dsm.coherence.rows import GONE, Rows, members
from dsm.coherence.states import READABLE, State
from dsm.coherence.table import LOST
from dsm.limits import WRITE_AHEAD_MAX_BYTES
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine

_UNKNOWN_FLAGS = ~int(Flag.WRITE | Flag.HAVE | Flag.FRESH | Flag.SPECULATIVE | Flag.CONFIRM)


class SequentialRegion(ModelRegion):
    """One region under the `sequential` model."""

    __slots__ = ("directory", "holder")

    #: What other models put in their place.
    requester_class: type[Requester] = Requester
    directory_class: type[Directory] = Directory
    holder_class: type[Holder] = Holder

    def __init__(self, engine: Engine, region: Region) -> None:
        super().__init__(engine, region, Placement(region), WRITE_AHEAD_MAX_BYTES)
        self.requester = self.requester_class(self)
        self.directory = self.directory_class(self)
        self.holder = self.holder_class(self)
        self.roles |= {
            Kind.GET: self.directory.request,
            Kind.AHEAD: self.directory.ahead,
            Kind.INVALIDATED: self.directory.invalidated,
            Kind.CONFIRM: self.directory.confirm,
            Kind.FETCH: self.holder.revoke,
            Kind.INVALIDATE: self.holder.revoke,
            Kind.GRANT: self.requester.install,
            Kind.DECLINE: self.requester.decline,
            Kind.VOID: self.requester.void_request,
            Kind.LOST: self.requester.lost,
            Kind.LOCATE: self.holder.locate,
            Kind.PRESENT: self.directory.located,
            Kind.ABSENT: self.directory.located,
        }
        if region.members == (engine.node,) and not region.options.fill:
            self._claim_all()

    def _claim_all(self) -> None:
        """Without another member nobody can be asked: every page is this node's, and traps no one."""
        table = self.table
        table.states[:] = State.EXCLUSIVE
        table.owners[:] = self.node + 1
        table.copysets[:] = 1 << self.node
        self.raise_all()

    @property
    def deadline(self) -> int | None:
        """When `resume` is to be called next; None when nothing waits for time to pass."""
        return self.holder.deadline

    def lowered(self, token: int) -> None:
        """A `Lower` of this region is done."""
        self.holder.lowered(token)

    def resume(self) -> None:
        """What was held back may perhaps go on."""
        self.holder.resume()

    def look_soon(self) -> None:
        """A thread got its page: what its instruction kept may be given up."""
        self.holder.look_soon()

    def check(self, message: Message) -> str | None:
        """Return what is wrong with a message from a peer, None when it may be handled."""
        if message.count < 1 or message.page + message.count > self.table.pages:
            return f"pages {message.page}+{message.count} of {self.table.pages}"
        if message.count > self.placement.chunk_pages:
            return f"{message.count} pages in one message, at most {self.placement.chunk_pages}"
        if message.flags & _UNKNOWN_FLAGS:
            return f"unknown flags {message.flags:#x}"
        return None

    def awaited(self, page: int) -> int:
        """Return the node from which something is missing for `page` to come here; -1 when none is known."""
        directory = self.placement.directory(page)
        return directory if directory != self.node else self.directory.awaited(page)

    def node_lost(self, node: int) -> None:
        """A node is dead: what it had and what it decided about cannot be had any more."""
        self.requester.directory_lost(node)
        self.holder.directory_lost(node)
        self.directory.node_lost(node)

    def is_pinned(self, page: int, count: int, takes_all: bool) -> bool:
        """Whether a pin forbids to take all access (`takes_all`) or write access to the range."""
        end = page + count
        for low, high, write in self.pins:
            if low < end and page < high and (takes_all or write):
                return True
        return any(bulk.holds(page, end, takes_all) for bulk in self.bulks.under_way)

    def rows(self, page: int, count: int) -> Rows:
        """Return what this node knows of these pages, for the page table."""
        table = self.table
        rows = super().rows(page, count)
        here = rows["home"] == self.node
        owners = table.owners[page : page + count].astype(np.int16)
        rows["owner"][here] = np.where(owners >= LOST, GONE, owners - 1)[here]
        rows["copyset"][here] = members(table.copysets[page : page + count])[here]
        return rows

    def describe(self, page: int) -> str:
        """One line about a page, for errors and status."""
        table = self.table
        state = State(table.state[page])
        parts = [f"page {page} is {state.name} here"]
        if self.placement.directory(page) == self.node:
            owner = table.owner[page]
            if owner >= LOST:
                parts.append(f"went away with node {owner - LOST}")
            else:
                parts.append(f"owner {owner - 1}, copyset {table.copyset[page]:#x}")
            if page in self.directory.busy:
                parts.append("in a transaction")
        if page in self.requester.waiting:
            parts.append(f"{len(self.requester.waiting[page])} waiting")
        if state in READABLE and self.is_pinned(page, 1, True):
            parts.append("pinned")
        return ", ".join(parts)
