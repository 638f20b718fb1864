"""The search for surviving copies of pages whose owner, or next owner, died.

Owns one search: who was asked, who has answered, and who has which page.  The directory knows who *may*
have a copy; whoever read ahead may have been waiting for the dead node to send it.  So it asks each of
them, and what is found decides: one of those who have the page is its owner from then on, and a page that
nobody has is lost.
"""

from __future__ import annotations

from dsm.coherence.messages import Kind, Message
from dsm.errors import InternalError

_PRESENT = int(Kind.PRESENT)


class Search:
    """Pages of one directory, alike in owner and copyset, for which copies are looked for."""

    __slots__ = ("blame", "count", "found", "left", "page", "queue")

    def __init__(self, page: int, count: int, copyset: int, blame: int) -> None:
        self.page = page
        self.count = count
        #: The dead node with which the pages went away if nobody has them.
        self.blame = blame
        #: node -> pages about which it has yet to answer.
        self.left = {node: count for node in range(copyset.bit_length()) if copyset >> node & 1}
        #: Bits of the nodes that have each page.
        self.found = [0] * count
        #: Requests that wait for these pages: (message, page, count); None while there are none.
        self.queue: list[tuple[Message, int, int]] | None = None

    def holders(self) -> list[int]:
        """Return the nodes to be asked."""
        return list(self.left)

    def answered(self, message: Message) -> None:
        """Take a PRESENT or ABSENT."""
        if self.left.get(message.node, 0) < message.count:
            raise InternalError(
                f"node {message.node} says more of pages {self.page}+{self.count} than was asked"
            )
        if message.kind == _PRESENT:
            low = message.page - self.page
            for index in range(low, low + message.count):
                self.found[index] |= 1 << message.node
        left = self.left[message.node] - message.count
        if left:
            self.left[message.node] = left
        else:
            del self.left[message.node]

    def holder_lost(self, node: int) -> None:
        """Another node died: what it has does not count."""
        self.left.pop(node, None)
        self.found = [holders & ~(1 << node) for holders in self.found]

    def awaited(self) -> int:
        """Return a node whose answer is missing."""
        return next(iter(self.left), -1)
