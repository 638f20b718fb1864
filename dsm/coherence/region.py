"""What one node keeps of one region under any model.

Owns the parts that the models share: the page table, the requester's side (faults, reading ahead, prefetch
and pin), marks and pins, and the way of messages between the roles of a node, through the engine's inbox,
in order, never by a call.  A model adds the roles that decide who may have which page.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.bulk import Bulks
from dsm.coherence.hold import key_of
from dsm.coherence.messages import Effect, Level, Message, Raise, Send
from dsm.coherence.placement import Placement
from dsm.coherence.readahead import ReadAhead
from dsm.coherence.requester import Requester
from dsm.coherence.rows import GONE, Rows, rows_of
from dsm.coherence.table import PageTable
from dsm.errors import InternalError, Status
from dsm.limits import BULK_WINDOW_BYTES, READ_AHEAD_MAX_BYTES, READ_AHEAD_MIN_BYTES
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine


class ModelRegion(abc.ABC):
    """One region on one node.

    Parameters
    ----------
    engine
        Whose it is.
    region
        What the metadata store says of it.
    placement
        Where to ask for a page.
    write_ahead_bytes
        The largest window that a run of write faults opens.
    """

    __slots__ = (
        "base",
        "bulk_pages",
        "bulks",
        "effects",
        "engine",
        "hold",
        "inbox",
        "invalidations",
        "marks",
        "members",
        "node",
        "number",
        "pins",
        "placement",
        "read_ahead",
        "requester",
        "roles",
        "table",
    )

    requester: Requester
    placement: Placement
    #: A pin takes pages as for writing, also to read.
    pins_take = False

    def __init__(self, engine: Engine, region: Region, placement: Placement, write_ahead_bytes: int) -> None:
        self.engine = engine
        self.effects: list[Effect] = engine.effects
        self.inbox: deque[Message] = engine.inbox
        self.node = engine.node
        self.number = region.region
        self.members = region.members
        self.placement = placement
        self.table = self.make_table(region.pages)
        self.table.broken = self.broken
        self.hold = engine.hold
        #: What to add to a page's number for its place in the order of all pages.
        self.base = key_of(region.region, 0)
        size = region.options.page_size
        self.read_ahead = ReadAhead(
            max(1, READ_AHEAD_MIN_BYTES // size),
            max(1, READ_AHEAD_MAX_BYTES // size),
            max(1, write_ahead_bytes // size),
        )
        #: Pages that a prefetch or pin asks for ahead of what it has.
        self.bulk_pages = max(1, BULK_WINDOW_BYTES // size)
        self.bulks = Bulks(self)
        #: Kind of a message -> who takes it.
        self.roles: dict[int, Callable[[Message], None]] = {}
        #: First pages of read-ahead windows: a worker's first use of one opens the next window.
        self.marks: set[int] = set()
        #: Ranges held for system calls: (page, end, write).
        self.pins: list[tuple[int, int, bool]] = []
        #: Pages that this node gave up because another one writes them.
        self.invalidations = 0

    def make_table(self, pages: int) -> PageTable:
        """Return the page table."""
        return PageTable(pages)

    def raise_all(self) -> None:
        """Let workers write every page: nobody else can be asked for them."""
        self.effects.append(Raise(self.number, 0, self.table.pages, int(Level.WRITE)))

    def send(self, node: int, message: Message) -> None:
        """Send to another node, or put into this node's own inbox."""
        if node == self.node:
            self.inbox.append(message)
        else:
            self.effects.append(Send(node, message))

    def message(self, message: Message) -> None:
        """Take one message: the transition of every role starts here."""
        role = self.roles.get(message.kind)
        if role is None:
            raise self.broken(
                message.page, f"a message of kind {message.kind} came where only its payload may"
            )
        role(message)

    def take_mark(self, page: int, count: int) -> int:
        """Remove and return the mark in the range; -1 when there is none."""
        if self.marks:
            if count == 1:
                if page in self.marks:
                    self.marks.remove(page)
                    return page
                return -1
            for mark in self.marks:
                if page <= mark < page + count:
                    self.marks.remove(mark)
                    return mark
        return -1

    def cancel(self, waiter: int) -> bool:
        """End a wait with CANCELLED; False when `waiter` does not wait here."""
        return self.requester.cancel(waiter) or self.bulks.cancel(waiter)

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        self.requester.forget(waits)
        self.bulks.forget(waits)

    def expire(self, age: int) -> None:
        """End the waits that began, or last came forward, at `age` or before."""
        self.requester.expire(age)
        self.bulks.expire(age)

    def end_all(self, status: Status) -> None:
        """Every wait ends with `status`; late answers find no request."""
        self.requester.end_all(status)
        self.bulks.end_all(status)

    def unpin(self, page: int, count: int, write: bool) -> None:
        """Release a pin; what it kept waiting goes on."""
        self.pins.remove((page, page + count, write or self.pins_take))
        self.resume()

    def broken(self, page: int, text: str) -> InternalError:
        """Return the error for an impossible state of a page, with the story of the page."""
        return InternalError(f"{text}\n{self.engine.story(self.number, page)}")

    def rows(self, page: int, count: int) -> Rows:
        """Return what this node knows of these pages, for the page table.

        A model adds owner and copyset in the rows of the pages that it decides about here.
        """
        rows = rows_of(self.table, page, count)
        homes = rows["home"] = self.placement.directories(np.arange(page, page + count))
        if self.engine.lost:
            rows["owner"][np.isin(homes, list(self.engine.lost)) & (rows["level"] == 0)] = GONE
        return rows

    @property
    @abc.abstractmethod
    def deadline(self) -> int | None:
        """When `resume` is to be called next; None when nothing waits for time to pass."""

    @abc.abstractmethod
    def lowered(self, token: int) -> None:
        """A `Lower` of this region is done."""

    @abc.abstractmethod
    def resume(self) -> None:
        """What was held back may perhaps go on."""

    @abc.abstractmethod
    def look_soon(self) -> None:
        """A thread got its page: what was kept for it meanwhile may be given up."""

    @abc.abstractmethod
    def check(self, message: Message) -> str | None:
        """Return what is wrong with a message from a peer, None when it may be handled."""

    @abc.abstractmethod
    def awaited(self, page: int) -> int:
        """Return the node from which something is missing for `page` to come here; -1 when none is known."""

    @abc.abstractmethod
    def node_lost(self, node: int) -> None:
        """A node is dead: what it had and what it decided about cannot be had any more."""

    @abc.abstractmethod
    def describe(self, page: int) -> str:
        """One line about a page, for errors and status."""
