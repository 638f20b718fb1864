"""Readers and writers: many threads read, or one writes; nobody starves; robust against a writer's death.

Owns who holds the lock for reading or alone, and which readers wait.  Writers wait as for a lock
(`dsm.sync.turns`).

Order.  Phases alternate (phase-fair: Brandenburg and Anderson, "Spin-based reader-writer synchronization
for multiprocessor real-time systems", 2010).  Behind a writer, *all* readers that wait at that moment go
together; behind such a batch, one writer.  A reader that comes while a writer waits, waits.  So a reader
waits for one writer, however many wait; and a writer for those writers that a lock would put before it, each
with a batch of readers.

Death.  A reader that dies has changed nothing and just releases.  When who holds the lock alone dies, or
leaves with it, the next one to get it is told OWNER_DIED, and holds it *alone*, even if it asked to read: so
it may repair what is half changed, and nobody else sees it before.  Told once, unless that one dies or
releases *inconsistent*, as with a lock.
"""

from __future__ import annotations

from dsm.errors import Status
from dsm.sync.reply import Description, Gone, Owner, Party, Reply
from dsm.sync.turns import NO_NODE, Turns
from dsm.sync.waiting import Waiter, parties, without_call, without_gone
from dsm.types import SyncObject
from dsm.wire.calls import Op

_READ = int(Op.RW_READ)
_WRITE = int(Op.RW_WRITE)
_RELEASE = int(Op.RW_RELEASE)
_OWNER_DIED = int(Status.OWNER_DIED)
_NOT_OWNER = int(Status.NOT_OWNER)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class RWLock:
    """One readers-writer lock, at its home."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        #: Who holds it alone; None when nobody does.
        self._alone: Waiter | None = None
        #: Who holds it for reading, by node and thread, and since when; empty while somebody holds it alone.
        self._reading: dict[tuple[int, Owner], int] = {}
        #: Readers that wait, in order of arrival.  Nobody waits while nobody holds the lock.
        self._readers: list[Waiter] = []
        self._writers = Turns()
        #: The phase that runs, or was the last, is a writer's.
        self._written = False
        #: Node of the last writer, whose neighbours are preferred; NO_NODE once the lock was free.
        self._node = NO_NODE
        #: Who held it alone died and nobody has been told yet; nobody reads then.
        self._died = False
        #: What became of it; stands until another one dies.
        self._cause = 0

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Acquire for reading or writing, or release.

        Acquire: OK; OWNER_DIED: `owner` holds it alone; USAGE when it holds it already, in whatever way.
        Release: OK, or NOT_OWNER; `b` 1, of who holds it alone: what it protects is not repaired.
        """
        alone = self._alone
        mine = alone is not None and (alone.node, alone.owner) == (node, owner)
        if op == _RELEASE:
            if mine:
                self._alone, self._died = None, b == 1
            elif self._reading.pop((node, owner), None) is None:
                return [self._reply(node, ticket, _NOT_OWNER)]
            return [*self._go_on(now), self._reply(node, ticket)]
        if op not in (_READ, _WRITE) or mine or (node, owner) in self._reading:
            return [self._reply(node, ticket, _USAGE)]
        waiter = Waiter(node, ticket, owner, now)
        if op == _READ:
            self._readers.append(waiter)
        else:
            self._writers.add(waiter)
        return self._go_on(now)

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a waiting acquire with CANCELLED; what has been granted stays granted."""
        count = len(self._readers)
        self._readers = without_call(self._readers, node, ticket)
        if count == len(self._readers) and not self._writers.remove(node, lambda w: w.ticket == ticket):
            return []
        return [self._reply(node, ticket, _CANCELLED), *self._go_on(now)]

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget waiters and readers; pass on what one of the gone held alone."""
        self._readers = without_gone(self._readers, gone)
        self._writers.remove(gone.node, lambda each: gone.has(each.node, each.owner[0]))
        self._reading = {
            (node, owner): since
            for (node, owner), since in self._reading.items()
            if not gone.has(node, owner[0])
        }
        if self._alone is not None and gone.has(self._alone.node, self._alone.owner[0]):
            self._alone, self._died, self._cause = None, True, gone.cause
        return self._go_on(gone.now)

    def close(self) -> list[Reply]:
        """End every waiting acquire with CLOSED."""
        waiting, self._readers = [*self._readers, *self._writers.clear()], []
        return [self._reply(each.node, each.ticket, _CLOSED) for each in waiting]

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        return Description(
            it.object,
            it.kind,
            it.name,
            holder=self._alone.party() if self._alone is not None else None,
            waiting=parties((*self._readers, *self._writers)),
            damaged=self._died,
            holders=tuple(Party(node, *owner, since) for (node, owner), since in self._reading.items()),
            readers=len(self._readers),
        )

    def _reply(self, node: int, ticket: int, status: int = 0, result: int = 0) -> Reply:
        return Reply(node, ticket, status, result, self.described.object)

    def _go_on(self, now: int) -> list[Reply]:
        """Grant the lock to whose turn it is, if it can be granted."""
        if self._alone is not None or (self._reading and self._writers):
            return []
        if self._readers and (self._written or not self._writers):
            self._written = False
            if self._died:
                return [self._grant_alone(self._readers.pop(0), now)]
            return self._grant_batch(now)
        if self._writers:
            waiter = self._writers.take(self._node)
            self._written, self._node = True, waiter.node
            return [self._grant_alone(waiter, now)]
        if not self._reading:
            self._node = NO_NODE
        return []

    def _grant_batch(self, now: int) -> list[Reply]:
        batch, self._readers = self._readers, []
        self._reading.update({(each.node, each.owner): now for each in batch})
        return [self._reply(each.node, each.ticket) for each in batch]

    def _grant_alone(self, waiter: Waiter, now: int) -> Reply:
        self._alone = Waiter(waiter.node, waiter.ticket, waiter.owner, now)
        if self._died:
            self._died = False
            return self._reply(waiter.node, waiter.ticket, _OWNER_DIED, self._cause)
        return self._reply(waiter.node, waiter.ticket)
