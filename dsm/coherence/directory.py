"""Directory side of sequential coherence: who has a page, and one transaction at a time on it.

Owns owner and copyset of the pages whose directory is this node, and the transactions.  A
transaction lasts until whatever this node says next to the requester comes behind the pages (order of
operations, 10): until this node has sent them itself, for a connection keeps its order, or until the
requester confirms that it installed what another node sent.  Requests for a page that is in one queue in
order of arrival.  Reading ahead takes no part in transactions: it is served at once or declined, so that
speculation never makes anybody wait.

What becomes of entries and transactions when a node dies is in `recovery`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.messages import Flag, Kind, Message
from dsm.coherence.recovery import Search
from dsm.coherence.table import LOST
from dsm.errors import InternalError

if TYPE_CHECKING:
    from dsm.coherence.sequential import SequentialRegion

_WRITE, _HAVE, _SPECULATIVE = int(Flag.WRITE), int(Flag.HAVE), int(Flag.SPECULATIVE)
_GRANT, _FETCH, _INVALIDATE, _DECLINE, _VOID, _LOST_KIND = (
    int(k) for k in (Kind.GRANT, Kind.FETCH, Kind.INVALIDATE, Kind.DECLINE, Kind.VOID, Kind.LOST)
)
_FRESH_GRANT = int(Flag.WRITE | Flag.FRESH)
#: Of a transaction: nobody has been asked for the pages yet.
_NOBODY = -1

#: A request that waits for its turn: (message, page, count).
Queued = tuple[Message, int, int]


class Transaction:
    """One run of pages on its way to one requester."""

    __slots__ = ("awaiting", "count", "message", "page", "queue", "source", "upgrade")

    def __init__(self, message: Message, page: int, count: int) -> None:
        self.message = message
        self.page = page
        self.count = count
        #: Bits of the nodes whose INVALIDATED is still missing.
        self.awaiting = 0
        #: The node that was asked to send the pages.
        self.source = _NOBODY
        #: The requester keeps its own copy: the grant carries no data.
        self.upgrade = False
        #: Requests that wait for pages of this run; None while there are none.
        self.queue: list[Queued] | None = None

    def awaited(self) -> int:
        """Return a node of which something is awaited."""
        if self.awaiting:
            return (self.awaiting & -self.awaiting).bit_length() - 1
        return self.source if self.source != _NOBODY else self.message.node


class Directory:
    """Directory entries of one region on one node."""

    __slots__ = ("busy", "region")

    def __init__(self, region: SequentialRegion) -> None:
        self.region = region
        #: page -> the transaction, or search for a surviving copy, it is in.
        self.busy: dict[int, Transaction | Search] = {}

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
                _enqueue(transaction, message, page, 1)
            return
        for run, pages in self._runs(page, count):
            transaction = busy.get(run)
            if transaction is None:
                self._start(message, run, pages)
            else:
                _enqueue(transaction, message, run, pages)

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
            mine = owner == node + 1 or (owner and table.copyset[page] & bit)
            if page in self.busy or mine or owner >= LOST:
                answer = Message(_DECLINE, region.number, page, count, message.request, node)
                region.send(node, answer)
            elif owner == 0:
                self._note(node, page, count, True)
                flags = _FRESH_GRANT | _SPECULATIVE
                grant = Message(_GRANT, region.number, page, count, message.request, node, flags)
                region.send(node, grant)
            else:
                self._note(node, page, count, False)
                fetch = Message(
                    _FETCH, region.number, page, count, message.request, node, _SPECULATIVE, message.value
                )
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
        if owner >= LOST:
            self._refuse(message, page, count, owner - LOST)
            return
        transaction = Transaction(message, page, count)
        if count == 1:
            self.busy[page] = transaction
        else:
            self.busy.update(dict.fromkeys(range(page, page + count), transaction))
        if not message.flags & _WRITE:
            if owner == node + 1:
                raise region.broken(page, f"node {node} asks to read page {page}, which it owns")
            transaction.source = owner - 1
            fetch = Message(_FETCH, region.number, page, count, message.request, node)
            region.send(owner - 1, fetch)
            return
        bit = 1 << node
        copyset = table.copyset[page]
        others = copyset & ~bit
        if message.flags & _HAVE and copyset & bit:
            transaction.upgrade = True
        elif owner == node + 1:
            raise region.broken(page, f"node {node} owns page {page} but has no copy of it")
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
        lost = region.engine.lost
        if lost and node in lost:
            self._abandon(transaction)
        elif transaction.upgrade:
            region.send(node, Message(_GRANT, region.number, page, count, number, node, _WRITE))
            self._close(transaction)
        else:
            owner = region.table.owner[page] - 1
            if lost and owner in lost:
                region.table.lose(page, count, owner)
                self._refuse(asked, page, count, owner)
                self._end(transaction)
                return
            transaction.source = owner
            region.send(owner, Message(_FETCH, region.number, page, count, number, node, _WRITE))

    def sent(self, page: int, count: int) -> None:
        """This node, the owner, has sent the pages of a transaction: what it says now comes behind them."""
        self._close(self._find(page, count, "sent"))

    def confirm(self, message: Message) -> None:
        """The requester installed what another node sent."""
        self._close(self._find(message.page, message.count, "CONFIRM"))

    def _close(self, transaction: Transaction) -> None:
        """Note what the requester has, and take the next request."""
        asked = transaction.message
        lost = self.region.engine.lost
        if lost and asked.node in lost:
            self._abandon(transaction)
            return
        self._note(asked.node, transaction.page, transaction.count, bool(asked.flags & _WRITE))
        self._end(transaction)

    def _end(self, ended: Transaction | Search, dead: int = -1) -> None:
        """These pages are free again: find them an owner if theirs died, then take the next request.

        `dead` is a node to which they may have been sent by an owner that lives.
        """
        page, count = ended.page, ended.count
        if count == 1:
            del self.busy[page]
        else:
            for p in range(page, page + count):
                del self.busy[p]
        region = self.region
        owner = region.table.owner[page]
        if dead >= 0:
            self._search(page, count, dead)
        elif region.engine.lost and 0 < owner < LOST and owner - 1 in region.engine.lost:
            self._search(page, count, owner - 1)
        if ended.queue is not None:
            for queued in ended.queue:
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
        if not isinstance(transaction, Transaction) or transaction.page != page or transaction.count != count:
            raise self.region.broken(page, f"{event} for pages {page}+{count}: no such transaction")
        return transaction

    # -- when a node dies --------------------------------------------------------------------------------

    def node_lost(self, node: int) -> None:
        """A node is dead: end what it asked, ask others for what it was to send, find other copies."""
        table = self.region.table
        bit = 1 << node
        table.forget_holder(node)
        under_way = list(dict.fromkeys(self.busy.values()))
        for each in under_way:
            if each.queue is not None:
                each.queue = [queued for queued in each.queue if queued[0].node != node]
        for each in under_way:
            if isinstance(each, Search):
                each.holder_lost(node)
                self._conclude(each)
            elif each.source == _NOBODY:
                missing = each.awaiting & bit
                each.awaiting &= ~bit
                if missing and not each.awaiting:
                    self._give(each)
            elif each.source == self.region.node:
                # What has begun ends with our own holder's answer, whoever the requester is.
                if each.message.node == node and self.region.holder.withdraw(each.page, each.count):
                    each.source = _NOBODY
                    self._abandon(each)
            elif each.message.node == node:
                self._abandon(each)
            elif each.source == node:
                asked = each.message
                void = Message(_VOID, asked.region, each.page, each.count, asked.request, asked.node)
                self.region.send(asked.node, void)
        for page, count in table.owned_by(node):
            self._search_idle(page, count, node)

    def _abandon(self, transaction: Transaction) -> None:
        """The requester is dead; if it had the only copy, or got it, that is gone with it."""
        asked = transaction.message
        page, count, source = transaction.page, transaction.count, transaction.source
        region = self.region
        table = region.table
        if asked.flags & _WRITE:
            if transaction.upgrade or source == region.node:
                table.lose(page, count, asked.node)
            else:  # all copies but the owner's were given up, and that is perhaps on its way
                owner = table.owner[page] - 1
                table.copysets[page : page + count] = 0 if owner in region.engine.lost else 1 << owner
                if source != _NOBODY and owner not in region.engine.lost:
                    self._end(transaction, asked.node)
                    return
        self._end(transaction)

    def _search_idle(self, page: int, count: int, dead: int) -> None:
        """Search for those of these pages that are in no transaction."""
        end = page + count
        while page < end:
            stop = page
            while stop < end and stop not in self.busy:
                stop += 1
            for run, pages in self.region.table.directory_runs(page, stop - page) if stop > page else ():
                for first, number in self.region.placement.requests(run, pages):
                    self._search(first, number, dead)
            page = stop + 1

    def _search(self, page: int, count: int, dead: int) -> None:
        """Ask who has a copy of these idle pages, which are alike: a dead node had, or was to get, them."""
        region = self.region
        table = region.table
        copyset = table.copyset[page]
        if not copyset:
            table.lose(page, count, dead)
            return
        search = Search(page, count, copyset, dead)
        self.busy.update(dict.fromkeys(range(page, page + count), search))
        for holder in search.holders():
            region.send(holder, Message(int(Kind.LOCATE), region.number, page, count, 0, region.node))

    def located(self, message: Message) -> None:
        """A node has some pages, or has not: after a LOCATE, or (ABSENT) a VOID."""
        transaction = self.busy.get(message.page)
        if isinstance(transaction, Search):
            try:
                transaction.answered(message)
            except InternalError as error:
                raise self.region.broken(message.page, str(error)) from None
            self._conclude(transaction)
            return
        transaction = self._find(message.page, message.count, "ABSENT")
        if transaction.source not in self.region.engine.lost:
            text = f"node {message.node} gave up page {message.page}, which is on its way to it"
            raise self.region.broken(message.page, text)
        self._end(transaction)

    def _conclude(self, search: Search) -> None:
        """When all have answered: a node that has a copy is the owner from now on."""
        if search.left:
            return
        table = self.region.table
        for page, holders in zip(range(search.page, search.page + search.count), search.found, strict=True):
            if holders:
                table.owner[page] = (holders & -holders).bit_length()
                table.copyset[page] = holders
            else:
                table.lose(page, 1, search.blame)
        self._end(search)

    def _refuse(self, message: Message, page: int, count: int, dead: int) -> None:
        """Tell a requester that these pages went away with a node."""
        region = self.region
        region.send(message.node, Message(_LOST_KIND, region.number, page, count, message.request, dead))

    def awaited(self, page: int) -> int:
        """Return a node of which something is awaited about `page`; -1 when it is in no transaction."""
        transaction = self.busy.get(page)
        return -1 if transaction is None else transaction.awaited()


def _enqueue(transaction: Transaction | Search, message: Message, page: int, count: int) -> None:
    """Let a request wait for these pages."""
    if transaction.queue is None:
        transaction.queue = []
    transaction.queue.append((message, page, count))
