"""Locks that are lent to this node: its threads' calls are decided here, until the home wants them back.

Owns the way of a lock here and home again, and what becomes of the calls that it crosses.  Who holds such a
lock, and who waits for it here, is `dsm.sync.cache`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from dsm.errors import Status
from dsm.manager.calls import NO_TICKET
from dsm.sync.reply import Description, Party, Reply
from dsm.sync.waiting import Waiter, parties
from dsm.wire.calls import Op, SyncKind

if TYPE_CHECKING:
    from dsm.manager.sync import Sync

_ACQUIRE, _RELEASE, _CANCEL = int(Op.LOCK_ACQUIRE), int(Op.LOCK_RELEASE), int(Op.CANCEL)
_RETURN = int(SyncKind.RETURN)


class Lending:
    """Locks that are lent to one node.

    Parameters
    ----------
    sync
        The driver of the node's calls.
    """

    def __init__(self, sync: Sync) -> None:
        self._sync = sync

    def describe(self) -> list[Description]:
        """Return what the homes of the locks that are lent to this node do not know."""
        return [self._describe(number) for number in self._sync.cache]

    def _describe(self, number: int) -> Description:
        owner, since, waiting, died = self._sync.cache.state(number)
        node = self._sync.node
        holder = Party(node, *owner, since) if owner is not None else None
        it = self._sync.known[number]
        return Description(it.object, it.kind, it.name, holder, parties(waiting), damaged=died, lent=node)

    def may_lend(self, node: int) -> bool:
        """Whether a lock may be lent: to this node itself only where that saves it a release."""
        return node != self._sync.node or self._sync.ordering.is_needed

    def is_owed(self, op: int, number: int) -> bool:
        """Whether a call that releases needs no release of the node now."""
        return op == _RELEASE and number in self._sync.cache

    def begin(self, number: int, ticket: int) -> None:
        """A lock is lent to this node, along with the grant for a call; its home has dropped all others."""
        sync, calls = self._sync, self._sync.calls
        now = time.monotonic_ns()
        call = calls.waiting.get(ticket)
        kept, given_up = calls.crossing(number, ticket)
        waiting = [
            Waiter(sync.node, each, (calls.waiting[each].worker, calls.waiting[each].a), now) for each in kept
        ]
        sync.cache.lend(number, (call.worker, call.a) if call is not None else None, waiting, now)
        if call is None:
            self._give_back(number)
        for each in given_up:
            sync.ended(each, Status.CANCELLED, 0)

    def ask(self, op: int, number: int, ticket: int, worker: int, a: int, b: int) -> bool:
        """Decide a call of a lock that is lent to this node; False: its home has to."""
        cache = self._sync.cache
        now = time.monotonic_ns()
        if op == _ACQUIRE:
            self.deliver(cache.acquire(number, ticket, (worker, a), now))
        elif op == _RELEASE:
            self.deliver(cache.release(number, ticket, (worker, a), b == 1, now))
        elif op == _CANCEL:
            pass  # granted already
        elif cache.owner(number) == (worker, a):
            self._give_back(number)
            return False
        else:
            self._sync.ended(ticket, Status.NOT_OWNER, 0)
        return True

    def deliver(self, replies: list[Reply]) -> None:
        """Let threads of this node go on."""
        for reply in replies:
            if reply.ticket != NO_TICKET:
                self._sync.ended(reply.ticket, reply.status, reply.result)

    def recalled(self, number: int) -> None:
        """A lock is wanted back; what its releases here owe comes first."""
        cache = self._sync.cache
        if not cache.recall(number):
            return
        if cache.owes(number):
            self._sync.ordering.owed(partial(self._give_back, number))
        else:
            self._give_back(number)

    def recall_free(self) -> None:
        """Give back every lock that nobody here holds."""
        for number in self._sync.cache:
            if self._sync.cache.owner(number) is None:
                self.recalled(number)

    def _give_back(self, number: int) -> None:
        """Send a lock home, and behind it the calls that wait for it."""
        sync, unasked = self._sync, self._sync.calls.unasked
        given = sync.cache.give_back(number)
        if given is None:
            return
        home, (worker, token) = sync.homes[number], given.owner
        unasked.update(waiter.ticket for waiter in given.waiting)
        sync.ask(home, _RETURN, number, NO_TICKET, worker, token, given.word)
        for waiter in given.waiting:
            unasked.discard(waiter.ticket)
            sync.ask(home, _ACQUIRE, number, waiter.ticket, waiter.owner[0], waiter.owner[1], 0)
