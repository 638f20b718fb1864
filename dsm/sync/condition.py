"""Conditions: threads that wait, without the lock, for somebody who changes what the lock protects.

Owns who waits for a notification.  The lock is the door to it: every operation needs the lock in the thread's
hands, and takes effect at the lock's home in one step, so that no notification falls between a thread's look
at the data and its wait.

A notification moves a waiter to the queue of the lock, which somebody holds then.  If it does not want the
lock any more when its turn comes (its time was over, it was interrupted, it died), the notification goes to
the next one who *waited already when it was sent*; is there none, it is as if the waiter had gone before.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dsm.errors import Status
from dsm.sync.reply import Description, Gone, Owner, Reply
from dsm.sync.waiting import Waiter, parties, without_gone
from dsm.types import SyncObject
from dsm.wire.calls import NOTIFY_ALL

if TYPE_CHECKING:
    from dsm.sync.lock import Lock

_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class Condition:
    """One condition, at the home of its lock; `SyncObject.value` is the lock's number."""

    def __init__(self, described: SyncObject, lock: Lock) -> None:
        self.described = described
        self._lock = lock
        #: In order of arrival; `Waiter.arrivals` numbers them.
        self._waiting: deque[Waiter] = deque()
        #: How many have ever begun to wait.
        self._arrivals = 0
        lock.conditions[described.object] = self

    def add(self, node: int, ticket: int, owner: Owner, now: int) -> None:
        """Let a thread wait for a notification; it holds the lock, and gives it up now."""
        self._arrivals += 1
        self._waiting.append(Waiter(node, ticket, owner, now, self.described.object, self._arrivals))

    def notify(self, count: int, now: int) -> int:
        """Let `count` waiters (`NOTIFY_ALL`: all) wait for the lock instead; returns how many there were."""
        if count >= NOTIFY_ALL:
            count = len(self._waiting)
        count = min(count, len(self._waiting))
        for _ in range(count):
            self._move(self._arrivals, now)
        return count

    def pass_on(self, waiter: Waiter, now: int) -> None:
        """Give the notification of `waiter`, who does not want it, to who waited when it was sent."""
        if self._waiting and self._waiting[0].arrivals <= waiter.arrivals:
            self._move(waiter.arrivals, now)

    def _move(self, arrivals: int, now: int) -> None:
        first = self._waiting.popleft()
        self._lock.notified(
            Waiter(first.node, first.ticket, first.owner, now, self.described.object, arrivals)
        )

    def withdraw(self, node: int, ticket: int) -> bool:
        """End a wait; whether there was one."""
        for index, waiter in enumerate(self._waiting):
            if (waiter.node, waiter.ticket) == (node, ticket):
                del self._waiting[index]
                return True
        return False

    def forget(self, gone: Gone) -> None:
        """Forget waiters."""
        self._waiting = deque(without_gone(self._waiting, gone))

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Refuse: operations on a condition are asked of its lock."""
        return [Reply(node, ticket, _USAGE, object=self.described.value)]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """Refuse, as `request`."""
        return []

    def gone(self, gone: Gone) -> list[Reply]:
        """Nothing more: the lock has called `forget`."""
        return []

    def close(self) -> list[Reply]:
        """End every wait with CLOSED."""
        self._lock.conditions.pop(self.described.object, None)
        waiting, self._waiting = self._waiting, deque()
        return [Reply(each.node, each.ticket, _CLOSED, object=self.described.value) for each in waiting]

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        return Description(it.object, it.kind, it.name, waiting=parties(self._waiting), value=it.value)
