"""Directory side of sequential coherence: who has a page, and one transaction at a time on it.

Owns owner and copyset of the pages whose directory is this node, and the transactions.  A
transaction lasts until whatever this node says next to the requester comes behind the pages (order of
operations, 10): until this node has sent them itself, for a connection keeps its order, or until the
requester confirms that it installed what another node sent.  Requests for a page that is in one queue in
order of arrival.  Reading ahead takes no part in transactions: it is served at once or declined, so that
speculation never makes anybody wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.messages import Flag, Kind, Message
from dsm.errors import InternalError

if TYPE_CHECKING:
    from dsm.coherence.sequential import SequentialRegion

_WRITE, _HAVE, _SPECULATIVE = int(Flag.WRITE), int(Flag.HAVE), int(Flag.SPECULATIVE)
_GRANT, _FETCH, _INVALIDATE, _DECLINE = (
    int(k) for k in (Kind.GRANT, Kind.FETCH, Kind.INVALIDATE, Kind.DECLINE)
)
_FRESH_GRANT = int(Flag.WRITE | Flag.FRESH)


class Transaction:
    """One run of pages on its way to one requester."""

    __slots__ = ("awaiting", "count", "message", "page", "queue", "upgrade")

    def __init__(self, message: Message, page: int, count: int) -> None:
        self.message = message
        self.page = page
        self.count = count
        #: Bits of the nodes whose INVALIDATED is still missing.
        self.awaiting = 0
        #: The requester keeps its own copy: the grant carries no data.
        self.upgrade = False
        #: Requests that wait for pages of this run: (message, page, count); None while there are none.
        self.queue: list[tuple[Message, int, int]] | None = None

    def enqueue(self, message: Message, page: int, count: int) -> None:
        """Let a request wait for these pages."""
        if self.queue is None:
            self.queue = []
        self.queue.append((message, page, count))


class Directory:
    """Directory entries of one region on one node."""

    __slots__ = ("busy", "region")

    def __init__(self, region: SequentialRegion) -> None:
        self.region = region
        #: page -> the transaction it is in.
        self.busy: dict[int, Transaction] = {}

    # -- requests ----------------------------------------------------------------------------------------

    def request(self, message: Message) -> None:
        """Take a GET."""
        self.get(message, message.page, message.count)

    def get(self, message: Message, page: int, count: int) -> None:
        """Serve a demand for these pages, or queue it."""
        busy = self.busy
        if count == 1:
            transaction = busy.get(page)
            if transaction is None:
                self._start(message, page, 1)
            else:
                transaction.enqueue(message, page, 1)
            return
        for run, pages in self._runs(page, count):
            transaction = busy.get(run)
            if transaction is None:
                self._start(message, run, pages)
            else:
                transaction.enqueue(message, run, pages)

    def _runs(self, page: int, count: int) -> list[tuple[int, int]]:
        """Split a range where owner, copyset or the transaction changes."""
        runs = self.region.table.directory_runs(page, count)
        busy = self.busy
        if not busy:
            return runs
        cuts: list[tuple[int, int]] = []
        for start, pages in runs:
            low = start
            for p in range(start + 1, start + pages):
                if busy.get(p) is not busy.get(p - 1):
                    cuts.append((low, p - low))
                    low = p
            cuts.append((low, start + pages - low))
        return cuts

    def ahead(self, message: Message) -> None:
        """Serve what is at hand of a speculative read; decline the rest."""
        region = self.region
        table = region.table
        node = message.node
        bit = 1 << node
        for page, count in self._runs(message.page, message.count):
            owner = table.owner[page]
            if page in self.busy or owner == node + 1 or (owner and table.copyset[page] & bit):
                answer = Message(_DECLINE, region.number, page, count, message.request, node)
                region.send(node, answer)
            elif owner == 0:
                self._note(node, page, count, True)
                flags = _FRESH_GRANT | _SPECULATIVE
                grant = Message(_GRANT, region.number, page, count, message.request, node, flags)
                region.send(node, grant)
            else:
                self._note(node, page, count, False)
                fetch = Message(_FETCH, region.number, page, count, message.request, node, _SPECULATIVE)
                region.send(owner - 1, fetch)

    # -- a transaction -----------------------------------------------------------------------------------

    def _start(self, message: Message, page: int, count: int) -> None:
        region = self.region
        table = region.table
        node = message.node
        owner = table.owner[page]
        if owner == 0:
            grant = Message(_GRANT, region.number, page, count, message.request, node, _FRESH_GRANT)
            region.send(node, grant)
            self._note(node, page, count, True)
            return
        transaction = Transaction(message, page, count)
        if count == 1:
            self.busy[page] = transaction
        else:
            self.busy.update(dict.fromkeys(range(page, page + count), transaction))
        if not message.flags & _WRITE:
            if owner == node + 1:
                raise InternalError(f"node {node} asks to read page {page}, which it owns")
            fetch = Message(_FETCH, region.number, page, count, message.request, node)
            region.send(owner - 1, fetch)
            return
        bit = 1 << node
        copyset = table.copyset[page]
        others = copyset & ~bit
        if message.flags & _HAVE and copyset & bit:
            transaction.upgrade = True
        elif owner == node + 1:
            raise InternalError(f"node {node} owns page {page} but has no copy of it")
        else:
            others &= ~(1 << (owner - 1))
        transaction.awaiting = others
        if not others:
            self._give(transaction)
            return
        invalidate = Message(_INVALIDATE, region.number, page, count, message.request, node)
        holder = 0
        while others:
            if others & 1:
                region.send(holder, invalidate)
            others >>= 1
            holder += 1

    def invalidated(self, message: Message) -> None:
        """A holder (named in `node`) gave its copies up."""
        transaction = self._find(message.page, message.count, "INVALIDATED")
        transaction.awaiting &= ~(1 << message.node)
        if not transaction.awaiting:
            self._give(transaction)

    def _give(self, transaction: Transaction) -> None:
        """Nobody else has a copy but the owner: let the requester write."""
        region = self.region
        asked = transaction.message
        page, count, number, node = transaction.page, transaction.count, asked.request, asked.node
        if transaction.upgrade:
            region.send(node, Message(_GRANT, region.number, page, count, number, node, _WRITE))
            self._close(transaction)
        else:
            owner = region.table.owner[page] - 1
            region.send(owner, Message(_FETCH, region.number, page, count, number, node, _WRITE))

    def sent(self, page: int, count: int) -> None:
        """This node, the owner, has sent the pages of a transaction: what it says now comes behind them."""
        self._close(self._find(page, count, "sent"))

    def confirm(self, message: Message) -> None:
        """The requester installed what another node sent."""
        self._close(self._find(message.page, message.count, "CONFIRM"))

    def _close(self, transaction: Transaction) -> None:
        """Note what the requester has, and take the next request."""
        page, count = transaction.page, transaction.count
        asked = transaction.message
        self._note(asked.node, page, count, bool(asked.flags & _WRITE))
        if count == 1:
            del self.busy[page]
        else:
            for p in range(page, page + count):
                del self.busy[p]
        if transaction.queue is not None:
            for queued in transaction.queue:
                self.get(*queued)

    def _note(self, node: int, page: int, count: int, taken: bool) -> None:
        """The node owns the pages alone (`taken`), or has a copy more."""
        table = self.region.table
        if count == 1:
            if taken:
                table.owner[page] = node + 1
                table.copyset[page] = 1 << node
            else:
                table.copyset[page] |= 1 << node
        elif taken:
            table.owners[page : page + count] = node + 1
            table.copysets[page : page + count] = 1 << node
        else:
            table.copysets[page : page + count] |= 1 << node

    def _find(self, page: int, count: int, event: str) -> Transaction:
        transaction = self.busy.get(page)
        if transaction is None or transaction.page != page or transaction.count != count:
            raise InternalError(f"{event} for pages {page}+{count}: no such transaction")
        return transaction
