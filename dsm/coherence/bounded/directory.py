"""Directory side of bounded staleness: one writer token a page, and readers that leave no trace.

Owns the two differences to the sequential directory.  A copyset has its owner alone; so a write waits for
no reader, and finds at most one node to take the page from.  A request to read opens no transaction: it goes
on to the owner at once, so that a reader that is slow, or stopped, keeps nobody waiting; it waits in a queue
only while the page is on its way from one writer to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.directory import Directory
from dsm.coherence.messages import Flag, Kind, Message
from dsm.coherence.table import LOST

if TYPE_CHECKING:
    from dsm.coherence.bounded.region import BoundedRegion

_WRITE, _SPECULATIVE = int(Flag.WRITE), int(Flag.SPECULATIVE)
_FETCH = int(Kind.FETCH)


class BoundedDirectory(Directory):
    """Directory entries of one bounded region on one node."""

    __slots__ = ()

    region: BoundedRegion

    def _start(self, message: Message, page: int, count: int) -> None:
        owner = self.region.table.owner[page]
        if message.flags & _WRITE or owner == 0 or owner >= LOST:
            super()._start(message, page, count)
        elif owner != message.node + 1:
            self._fetch_copy(message, page, count, owner - 1)
        # Otherwise it asked twice, and has the page by the answer to the first.

    def _fetch_copy(self, message: Message, page: int, count: int, owner: int) -> None:
        fetch = Message(
            _FETCH,
            self.region.number,
            page,
            count,
            message.request,
            message.node,
            _SPECULATIVE,
            message.value,
        )
        self.region.send(owner, fetch)

    def _note(self, node: int, page: int, count: int, taken: bool) -> None:
        if taken:
            super()._note(node, page, count, True)

    def awaited(self, page: int) -> int:
        """Return a node of which something is awaited about `page`; -1 when none is known."""
        awaited = super().awaited(page)
        owner = self.region.table.owner[page]
        return owner - 1 if awaited < 0 and 0 < owner < LOST else awaited
