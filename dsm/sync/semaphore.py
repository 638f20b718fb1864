"""Semaphores: units that threads take and give back; first come, first served.

Owns how many units are free and who waits.  Who waits for many units is not overtaken by who wants few.

*Unbounded.*  A unit belongs to nobody: any thread may add some, as it does to tell others that there is
something to fetch.  What a dead worker had taken is not given back: whether it had used it nobody knows.

*Bounded.*  There are as many units as in the beginning, and each that is not free belongs to the worker that
took it; only that worker gives it back.  What belongs to a worker that dies, or ends, is free again.
"""

from __future__ import annotations

import msgspec

from dsm.errors import Status
from dsm.sync.reply import Description, Gone, Owner, Party, Reply
from dsm.sync.waiting import Waiter, parties, without_call, without_gone
from dsm.types import MAX_UNITS, SyncObject
from dsm.wire.calls import Op

_ACQUIRE = int(Op.SEMAPHORE_ACQUIRE)
_RELEASE = int(Op.SEMAPHORE_RELEASE)
_NOT_OWNER = int(Status.NOT_OWNER)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class _Waiter(Waiter, frozen=True, gc=False):
    units: int = 0


class _Share(msgspec.Struct, gc=False):
    """What a worker has of a bounded semaphore."""

    units: int
    since: int


class Semaphore:
    """One semaphore, at its home; `SyncObject.value` is the number of its units."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        #: Less than the first waiter wants.
        self._free = described.value
        self._bounded = described.bounded
        self._waiting: list[_Waiter] = []
        #: Bounded: what each worker (node, worker) has; with what is free, all units.
        self._shares: dict[tuple[int, int], _Share] = {}

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Take `b` units, or give them back.

        USAGE: so many are never free, or would be too many.  NOT_OWNER: the worker does not have so many.
        """
        if op == _ACQUIRE and 1 <= b <= (self.described.value if self._bounded else MAX_UNITS):
            self._waiting.append(_Waiter(node, ticket, owner, now, units=b))
            return self._go_on(now)
        if op != _RELEASE or b < 1:
            return [self._reply(node, ticket, _USAGE)]
        if self._bounded:
            share = self._shares.get((node, owner[0]))
            if share is None or share.units < b:
                return [self._reply(node, ticket, _NOT_OWNER)]
            share.units -= b
            if not share.units:
                del self._shares[node, owner[0]]
        elif self._free + b > MAX_UNITS:
            return [self._reply(node, ticket, _USAGE)]
        self._free += b
        return [*self._go_on(now), self._reply(node, ticket)]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a waiting acquire with CANCELLED; who stood behind it may have its turn."""
        count = len(self._waiting)
        self._waiting = without_call(self._waiting, node, ticket)
        if count == len(self._waiting):
            return []
        return [self._reply(node, ticket, _CANCELLED), *self._go_on(now)]

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget waiters; of a bounded one, give back what the gone had."""
        self._waiting = without_gone(self._waiting, gone)
        for key in [key for key in self._shares if gone.has(*key)]:
            self._free += self._shares.pop(key).units
        return self._go_on(gone.now)

    def close(self) -> list[Reply]:
        """End every waiting acquire with CLOSED."""
        waiting, self._waiting = self._waiting, []
        return [self._reply(each.node, each.ticket, _CLOSED) for each in waiting]

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        return Description(
            it.object,
            it.kind,
            it.name,
            waiting=parties(self._waiting),
            value=self._free,
            holders=tuple(Party(*key, 0, share.since) for key, share in self._shares.items()),
        )

    def _reply(self, node: int, ticket: int, status: int = 0) -> Reply:
        return Reply(node, ticket, status, object=self.described.object)

    def _go_on(self, now: int) -> list[Reply]:
        """Serve those at the head of the queue, as far as there are units."""
        served = 0
        for waiter in self._waiting:
            if waiter.units > self._free:
                break
            served += 1
            self._free -= waiter.units
            if self._bounded:
                self._shares.setdefault((waiter.node, waiter.owner[0]), _Share(0, now)).units += waiter.units
        granted, self._waiting = self._waiting[:served], self._waiting[served:]
        return [self._reply(each.node, each.ticket) for each in granted]
