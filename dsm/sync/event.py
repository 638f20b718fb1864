"""Events: a flag that threads wait for.

Owns the flag and who waits.  As `threading.Event`: who waits when it is set goes on, also if it is cleared at
once afterwards.
"""

from __future__ import annotations

from dsm.errors import Status
from dsm.sync.reply import Description, Gone, Owner, Reply
from dsm.sync.waiting import Waiter, parties, without_call, without_gone
from dsm.types import SyncObject
from dsm.wire.calls import Op

_SET = int(Op.EVENT_SET)
_CLEAR = int(Op.EVENT_CLEAR)
_IS_SET = int(Op.EVENT_IS_SET)
_WAIT = int(Op.EVENT_WAIT)
_OK = int(Status.OK)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class Event:
    """One event, at its home."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        self._is_set = False
        #: In order of arrival; nobody while it is set.
        self._waiting: list[Waiter] = []

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Set it, clear it, look at it, or wait until it is set."""
        if op == _WAIT:
            if not self._is_set:
                self._waiting.append(Waiter(node, ticket, owner, now))
                return []
            return [self._reply(node, ticket)]
        if op == _SET:
            self._is_set = True
            return [*self._end(_OK), self._reply(node, ticket)]
        if op == _CLEAR:
            self._is_set = False
            return [self._reply(node, ticket)]
        if op == _IS_SET:
            return [self._reply(node, ticket, _OK, int(self._is_set))]
        return [self._reply(node, ticket, _USAGE)]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a wait with CANCELLED."""
        count = len(self._waiting)
        self._waiting = without_call(self._waiting, node, ticket)
        return [self._reply(node, ticket, _CANCELLED)] if len(self._waiting) < count else []

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget waiters; who is to set it is not known."""
        self._waiting = without_gone(self._waiting, gone)
        return []

    def close(self) -> list[Reply]:
        """End every wait with CLOSED."""
        return self._end(_CLOSED)

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        return Description(
            it.object, it.kind, it.name, waiting=parties(self._waiting), value=int(self._is_set)
        )

    def _reply(self, node: int, ticket: int, status: int = 0, result: int = 0) -> Reply:
        return Reply(node, ticket, status, result, self.described.object)

    def _end(self, status: int) -> list[Reply]:
        waiting, self._waiting = self._waiting, []
        return [self._reply(each.node, each.ticket, status) for each in waiting]
