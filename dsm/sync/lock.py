"""Locks: not recursive, owned by a thread, without starvation, robust against the death of the owner.

Owns who holds a lock, or to which node it is lent (`dsm.sync.cache`).  Who waits, in which order, is
`dsm.sync.turns`; who waits for a notification of one of its conditions, `dsm.sync.condition`.

Death.  A lock whose owner dies, or leaves with it, passes on as if released, but the next one to get it
is told OWNER_DIED instead of OK: it *holds* the lock, and what the lock protects may be half changed.
That is told once, unless its new owner dies too, or releases it *inconsistent*: then the next one is told
again (as with POSIX robust mutexes, but a lock is never given up for unrecoverable).

Conditions.  Who holds the lock may wait for a notification: in one step it gives the lock up and joins the
condition's queue.  Who holds the lock may notify: in one step those who are notified move to the lock's own
queue, and their call ends as an acquire does.

Lending.  A lock without conditions is lent to the node that gets it the second time in a row while no other
node wants it.  Then the node decides; the first thread of another node lets the home ask for the lock back.
A node that dies with a lock lent to it is an owner that died: what was written there under the lock may be
lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.errors import InternalError, Status
from dsm.sync.reply import Description, Gone, Owner, Party, Reply
from dsm.sync.turns import Turns
from dsm.sync.waiting import Waiter, parties
from dsm.types import SyncObject
from dsm.wire.calls import CONDITION_BITS, Op, Returned, SyncKind, returned_of

if TYPE_CHECKING:
    from dsm.sync.condition import Condition

_ACQUIRE = int(Op.LOCK_ACQUIRE)
_RELEASE = int(Op.LOCK_RELEASE)
_WAIT = int(Op.CONDITION_WAIT)
_NOTIFY = int(Op.CONDITION_NOTIFY)
_RETURN = int(SyncKind.RETURN)
_OK = int(Status.OK)
_OWNER_DIED = int(Status.OWNER_DIED)
_NOT_OWNER = int(Status.NOT_OWNER)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)
#: A node that is none.
_NOBODY = -1


class Lock:
    """One lock, at its home."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        #: Its conditions, by their numbers.
        self.conditions: dict[int, Condition] = {}
        #: Whether the lock may be lent to a node.
        self.may_lend: Callable[[int], bool] = lambda node: False
        #: Node and thread that hold the lock; None, None when it is free or lent.
        #: Free means that nobody waits.
        self._node: int | None = None
        self._owner: Owner | None = None
        self._since = 0
        self._turns = Turns()
        #: The last owner died and nobody has been told yet.
        self._died = False
        #: What became of it; stands until another owner dies.
        self._cause = 0
        #: The node it is lent to, whether that was asked to give it back, and the node that had it last.
        self._lent = self._last = _NOBODY
        self._is_recalled = False

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Acquire or release; wait for a notification, or notify.

        Acquire: OK or OWNER_DIED once `owner` holds the lock; USAGE when it holds it already (it would
        wait for itself for ever).  Release: OK, or NOT_OWNER; `b` 1: what it protects is not repaired.
        Wait and notify: as `dsm.wire.calls` says, or NOT_OWNER.
        """
        mine = self._owner == owner and self._node == node
        if op == _ACQUIRE:
            if self._lent != _NOBODY:
                return self._wanted(Waiter(node, ticket, owner, now))
            if self._owner is None:
                self._turns.begin()
                return [self._grant(node, ticket, owner, now)]
            if mine:
                return [self._reply(node, ticket, _USAGE)]
            self._turns.add(Waiter(node, ticket, owner, now))
            return []
        if op == _RELEASE:
            if not mine:
                return [self._reply(node, ticket, _NOT_OWNER)]
            self._died = b == 1
            # The next holder first: it is the one who waits.
            return [*self._let_go(now), self._reply(node, ticket)]
        if op == _RETURN:
            return self._returned(node, owner, b, now)
        if op not in (_WAIT, _NOTIFY):
            return [self._reply(node, ticket, _USAGE)]
        condition = self.conditions.get(b & (1 << CONDITION_BITS) - 1)
        if condition is None or not mine:
            return [self._reply(node, ticket, _USAGE if condition is None else _NOT_OWNER)]
        if op == _WAIT:
            condition.add(node, ticket, owner, now)
            return self._let_go(now)
        return [self._reply(node, ticket, _OK, condition.notify(b >> CONDITION_BITS, now))]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a waiting acquire or wait with CANCELLED; what has been granted stays granted."""
        removed = self._turns.remove(node, lambda waiter: waiter.ticket == ticket)
        self._pass_notifications_on(removed, now)
        if not removed and not any(each.withdraw(node, ticket) for each in self.conditions.values()):
            return []
        return [self._reply(node, ticket, _CANCELLED)]

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget waiters; pass on a lock that one of the gone held."""
        for condition in self.conditions.values():
            condition.forget(gone)
        removed = self._turns.remove(gone.node, lambda waiter: gone.has(waiter.node, waiter.owner[0]))
        self._pass_notifications_on(removed, gone.now)
        if gone.worker is None and gone.node == self._lent:
            self._lent = _NOBODY
            self._died, self._cause = True, gone.cause
            return self._pass_on(gone.node, gone.now)
        if self._node is None or self._owner is None or not gone.has(self._node, self._owner[0]):
            return []
        self._died, self._cause = True, gone.cause
        return self._let_go(gone.now)

    def close(self) -> list[Reply]:
        """End every waiting acquire with CLOSED."""
        return [self._reply(waiter.node, waiter.ticket, _CLOSED) for waiter in self._turns.clear()]

    def describe(self) -> Description:
        """Return the state; who waits is given node by node, in the order of the nodes' turns."""
        it = self.described
        holder = None
        if self._owner is not None and self._node is not None:
            holder = Party(self._node, *self._owner, self._since)
        waiting = parties(self._turns)
        return Description(it.object, it.kind, it.name, holder, waiting, damaged=self._died, lent=self._lent)

    def notified(self, waiter: Waiter) -> None:
        """Let a thread wait for the lock whose wait for a notification is over; somebody holds the lock."""
        if self._owner is None:
            raise InternalError(f"lock {self.described.name!r} is free, and a thread was notified")
        self._turns.add(waiter)

    def _reply(self, node: int, ticket: int, status: int = 0, result: int = 0) -> Reply:
        return Reply(node, ticket, status, result, self.described.object)

    def _grant(self, node: int, ticket: int, owner: Owner, now: int) -> Reply:
        again, self._last = node == self._last, node
        if self._died:
            self._died = False
            self._holds(node, owner, now)
            return self._reply(node, ticket, _OWNER_DIED, self._cause)
        if not again or self.conditions or self._turns.waits_elsewhere(node) or not self.may_lend(node):
            self._holds(node, owner, now)
            return self._reply(node, ticket)
        self._node = self._owner = None
        self._lent, self._is_recalled = node, False
        # It knows which of its calls have no answer, and takes them.
        self._turns.remove(node, lambda waiter: True)
        return Reply(node, ticket, _OK, 0, self.described.object, lent=True)

    def _holds(self, node: int, owner: Owner, now: int) -> None:
        self._node = node
        self._owner = owner
        self._since = now

    def _let_go(self, now: int) -> list[Reply]:
        """Grant the lock to the next waiter, or let it be free."""
        node = self._node
        if node is None:
            raise InternalError(f"lock {self.described.name!r} is free already")
        return self._pass_on(node, now)

    def _pass_on(self, node: int, now: int) -> list[Reply]:
        """Grant the lock that comes from `node` to the next waiter, or let it be free."""
        self._node = self._owner = None
        if not self._turns:
            return []
        waiter = self._turns.take(node)
        return [self._grant(waiter.node, waiter.ticket, waiter.owner, now)]

    def _wanted(self, waiter: Waiter) -> list[Reply]:
        """A thread asks for the lock, which is lent."""
        if waiter.node == self._lent:  # that does not know it yet, and will have both, its call and the lock
            return []
        self._turns.add(waiter)
        if self._is_recalled:
            return []
        self._is_recalled = True
        return [Reply(self._lent, 0, object=self.described.object, recall=True)]

    def _returned(self, node: int, owner: Owner, word: int, now: int) -> list[Reply]:
        """The node gives the lock back."""
        if node != self._lent:
            return []
        self._lent = _NOBODY
        what, cause = returned_of(word)
        if cause:
            self._cause = cause
        self._turns.begin()
        if what & Returned.HELD:
            self._holds(node, owner, now)
            return []
        self._died = bool(what & Returned.DIED)
        return self._pass_on(node, now)

    def _pass_notifications_on(self, removed: list[Waiter], now: int) -> None:
        """Give what those were notified of, who do not want the lock any more, to others."""
        for waiter in removed:
            condition = self.conditions.get(waiter.condition)
            if condition is not None:
                condition.pass_on(waiter, now)
