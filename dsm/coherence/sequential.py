"""Sequential consistency of one region on one node: a single writer node, many reader nodes.

Owns the region's page table and joins the three roles a node plays for it: requester, directory and
holder (write-invalidate with fixed distributed managers: Li and Hudak, 1989).  Messages of a role to
another role of this node go through the engine's inbox, in order, never through a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.coherence.bulk import Bulks
from dsm.coherence.directory import Directory
from dsm.coherence.hold import key_of
from dsm.coherence.holder import Holder
from dsm.coherence.messages import Effect, Flag, Kind, Level, Message, Raise, Send
from dsm.coherence.placement import Placement
from dsm.coherence.readahead import ReadAhead
from dsm.coherence.requester import Requester
from dsm.coherence.states import READABLE, State
from dsm.coherence.table import LOST, PageTable
from dsm.errors import InternalError, Status
from dsm.limits import BULK_WINDOW_BYTES, READ_AHEAD_MAX_BYTES, READ_AHEAD_MIN_BYTES, WRITE_AHEAD_MAX_BYTES
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine

_UNKNOWN_FLAGS = ~int(Flag.WRITE | Flag.HAVE | Flag.FRESH | Flag.SPECULATIVE | Flag.CONFIRM)


class SequentialRegion:
    """One region under the `sequential` model."""

    __slots__ = (
        "_roles",
        "base",
        "bulk_pages",
        "bulks",
        "directory",
        "effects",
        "engine",
        "hold",
        "holder",
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
        "table",
    )

    def __init__(self, engine: Engine, region: Region) -> None:
        self.engine = engine
        self.effects: list[Effect] = engine.effects
        self.inbox: deque[Message] = engine.inbox
        self.node = engine.node
        self.number = region.region
        self.members = region.members
        self.placement = Placement(region)
        self.table = PageTable(region.pages)
        self.table.broken = self.broken
        self.hold = engine.hold
        #: What to add to a page's number for its place in the order of all pages.
        self.base = key_of(region.region, 0)
        size = region.options.page_size
        self.read_ahead = ReadAhead(
            max(1, READ_AHEAD_MIN_BYTES // size),
            max(1, READ_AHEAD_MAX_BYTES // size),
            max(1, WRITE_AHEAD_MAX_BYTES // size),
        )
        #: Pages that a prefetch or pin asks for ahead of what it has.
        self.bulk_pages = max(1, BULK_WINDOW_BYTES // size)
        self.requester = Requester(self)
        self.bulks = Bulks(self)
        self.directory = Directory(self)
        self.holder = Holder(self)
        self._roles: dict[int, Callable[[Message], None]] = {
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
        #: First pages of read-ahead windows: a worker's first use of one opens the next window.
        self.marks: set[int] = set()
        #: Ranges held for system calls: (page, end, write).
        self.pins: list[tuple[int, int, bool]] = []
        #: Pages that this node gave up because another one writes them.
        self.invalidations = 0
        if region.members == (engine.node,) and not region.options.fill:
            self._claim_all()

    def _claim_all(self) -> None:
        """Without another member nobody can be asked: every page is this node's, and traps no one."""
        table = self.table
        table.states[:] = State.EXCLUSIVE
        table.owners[:] = self.node + 1
        table.copysets[:] = 1 << self.node
        self.effects.append(Raise(self.number, 0, table.pages, int(Level.WRITE)))

    def send(self, node: int, message: Message) -> None:
        """Send to another node, or put into this node's own inbox."""
        if node == self.node:
            self.inbox.append(message)
        else:
            self.effects.append(Send(node, message))

    def message(self, message: Message) -> None:
        """Take one message: the transition of every role starts here."""
        role = self._roles.get(message.kind)
        if role is None:
            raise self.broken(
                message.page, f"a message of kind {message.kind} came where only its payload may"
            )
        role(message)

    def check(self, message: Message) -> str | None:
        """Return what is wrong with a message from a peer, None when it may be handled."""
        if message.count < 1 or message.page + message.count > self.table.pages:
            return f"pages {message.page}+{message.count} of {self.table.pages}"
        if message.count > self.placement.chunk_pages:
            return f"{message.count} pages in one message, at most {self.placement.chunk_pages}"
        if message.flags & _UNKNOWN_FLAGS:
            return f"unknown flags {message.flags:#x}"
        return None

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

    def awaited(self, page: int) -> int:
        """Return the node from which something is missing for `page` to come here; -1 when none is known."""
        directory = self.placement.directory(page)
        return directory if directory != self.node else self.directory.awaited(page)

    def end_all(self, status: Status) -> None:
        """Every wait ends with `status`; late answers find no request."""
        self.requester.end_all(status)
        self.bulks.end_all(status)

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

    def unpin(self, page: int, count: int, write: bool) -> None:
        """Release a pin; what it kept waiting goes on."""
        self.pins.remove((page, page + count, write))
        self.holder.resume()

    def broken(self, page: int, text: str) -> InternalError:
        """Return the error for an impossible state of a page, with the story of the page."""
        return InternalError(f"{text}\n{self.engine.story(self.number, page)}")

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
