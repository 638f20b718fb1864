"""Locks: not recursive, owned by a thread, without starvation, robust against the death of the owner.

Owns who holds a lock and who waits for it.

Order.  Nodes with waiters form a queue, in the order in which each began to wait, and the waiters of a
node another.  A lock that is released goes to the next waiter of the *same* node, whose pages are there,
but at most `LOCAL_HANDOVERS` times in a row while other nodes wait; then the node goes to the end of the
queue and the first one is served.  In a cluster of n nodes, a thread at the head of its node's queue is
overtaken by at most ``(n - 1) * (LOCAL_HANDOVERS + 1)`` others.

Death.  A lock whose owner dies, or leaves with it, passes on as if released, but the next one to get it
is told OWNER_DIED instead of OK: it *holds* the lock, and what the lock protects may be half changed.
That is told once, unless its new owner dies too, or releases it *inconsistent*: then the next one is told
again (as with POSIX robust mutexes, but a lock is never given up for unrecoverable).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from dsm.errors import InternalError, Status
from dsm.sync.reply import Description, Gone, Owner, Party, Reply
from dsm.types import SyncObject
from dsm.wire.calls import Op

#: Hand-overs within one node in a row while other nodes wait.
LOCAL_HANDOVERS = 16

_ACQUIRE = int(Op.LOCK_ACQUIRE)
_RELEASE = int(Op.LOCK_RELEASE)
_OK = int(Status.OK)
_OWNER_DIED = int(Status.OWNER_DIED)
_NOT_OWNER = int(Status.NOT_OWNER)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class _Waiter(msgspec.Struct, frozen=True, gc=False):
    ticket: int
    owner: Owner
    since: int


class Lock:
    """One lock, at its home."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        #: Node and thread that hold the lock; None, None when it is free.  Free means that nobody waits.
        self._node: int | None = None
        self._owner: Owner | None = None
        self._since = 0
        #: Waiters by node.  Nodes stand in the order of their turns; none has an empty queue.
        self._waiting: dict[int, deque[_Waiter]] = {}
        #: Hand-overs within the holder's node since the lock came there.
        self._local = 0
        #: The last owner died and nobody has been told yet.
        self._died = False
        #: What became of it; stands until another owner dies.
        self._cause = 0

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Acquire or release.

        Acquire: OK or OWNER_DIED once `owner` holds the lock; USAGE when it holds it already (it would
        wait for itself for ever).  Release: OK, or NOT_OWNER; `b` 1: what it protects is not repaired.
        """
        mine = self._owner == owner and self._node == node
        if op == _ACQUIRE:
            if self._owner is None:
                self._local = 0
                return [self._grant(node, ticket, owner, now)]
            if mine:
                return [Reply(node, ticket, _USAGE)]
            waiter = _Waiter(ticket, owner, now)
            queue = self._waiting.get(node)
            if queue is None:
                self._waiting[node] = deque((waiter,))
            else:
                queue.append(waiter)
            return []
        if op == _RELEASE:
            if not mine:
                return [Reply(node, ticket, _NOT_OWNER)]
            self._died = b == 1
            if not self._waiting:
                self._node = self._owner = None
                return [Reply(node, ticket)]
            # The next holder first: it is the one who waits.
            return [self._pass_on(now), Reply(node, ticket)]
        return [Reply(node, ticket, _USAGE)]

    def cancel(self, node: int, ticket: int) -> list[Reply]:
        """End a waiting acquire with CANCELLED; one that has been granted stays granted."""
        if all(waiter.ticket != ticket for waiter in self._waiting.get(node, ())):
            return []
        self._keep(node, lambda waiter: waiter.ticket != ticket)
        return [Reply(node, ticket, _CANCELLED)]

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget waiters; pass on a lock that one of the gone held."""
        node = gone.node
        self._keep(node, lambda waiter: not gone.has(node, waiter.owner[0]))
        if self._node is None or self._owner is None or not gone.has(self._node, self._owner[0]):
            return []
        self._died, self._cause = True, gone.cause
        if self._waiting:
            return [self._pass_on(gone.now)]
        self._node = self._owner = None
        return []

    def close(self) -> list[Reply]:
        """End every waiting acquire with CLOSED."""
        waiting, self._waiting = self._waiting, {}
        return [Reply(node, waiter.ticket, _CLOSED) for node, queue in waiting.items() for waiter in queue]

    def describe(self) -> Description:
        """Return the state; who waits is given node by node, in the order of the nodes' turns."""
        it = self.described
        holder = None
        if self._owner is not None and self._node is not None:
            holder = Party(self._node, *self._owner, self._since)
        waiting = tuple(
            Party(node, *waiter.owner, waiter.since)
            for node, queue in self._waiting.items()
            for waiter in queue
        )
        return Description(it.object, it.kind, it.name, holder, waiting, damaged=self._died)

    def _grant(self, node: int, ticket: int, owner: Owner, now: int) -> Reply:
        self._node = node
        self._owner = owner
        self._since = now
        if self._died:
            self._died = False
            return Reply(node, ticket, _OWNER_DIED, self._cause)
        return Reply(node, ticket)

    def _pass_on(self, now: int) -> Reply:
        """Grant the lock to the next waiter; there is one."""
        waiting = self._waiting
        node = self._node
        if node is None:
            raise InternalError(f"lock {self.described.name!r} is free and somebody waits for it")
        queue = waiting.get(node)
        if queue is not None and (self._local < LOCAL_HANDOVERS or len(waiting) == 1):
            self._local += 1
        else:
            if queue is not None:
                # This node had its share: its turn comes after all others.
                waiting[node] = waiting.pop(node)
            node, queue = next(iter(waiting.items()))
            self._local = 0
        waiter = queue.popleft()
        if not queue:
            del waiting[node]
        return self._grant(node, waiter.ticket, waiter.owner, now)

    def _keep(self, node: int, predicate: Callable[[_Waiter], bool]) -> None:
        """Remove the waiters of `node` for which `predicate` is false."""
        queue = self._waiting.get(node)
        if queue is None:
            return
        kept = deque(filter(predicate, queue))
        if kept:
            self._waiting[node] = kept
        else:
            del self._waiting[node]
