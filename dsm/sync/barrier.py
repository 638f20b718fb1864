"""Barriers: a fixed number of parties meet, again and again; what breaks one is told to all of them.

Owns who has arrived, and whether the barrier is broken.

As with `threading.Barrier`, a party whose wait ends early (its time is over, it was interrupted, its worker
died) breaks the barrier: whoever waits ends with BROKEN, and whoever arrives later ends with BROKEN at
once, since the party it would wait for has given up.  BARRIER_ABORT breaks it on purpose; BARRIER_RESET
makes it new, and ends with BROKEN whoever waits at that moment.

Unlike there, a broken barrier mends itself once as many *different* threads as it has parties know that
it broke (they were told BROKEN or CANCELLED, or broke it).  Then all of them may meet again, and none can
meet a party that still believes in the old round.  The dead do not count: with a party missing for good
it stays broken, rather than let the others wait for ever, until a replacement has been told or somebody
resets it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dsm.errors import InternalError, Status
from dsm.sync.reply import Description, Owner, Party, Reply
from dsm.types import SyncObject
from dsm.wire.calls import Op

_WAIT = int(Op.BARRIER_WAIT)
_RESET = int(Op.BARRIER_RESET)
_ABORT = int(Op.BARRIER_ABORT)
_OK = int(Status.OK)
_BROKEN = int(Status.BROKEN)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class _Arrival(msgspec.Struct, frozen=True, gc=False):
    node: int
    ticket: int
    owner: Owner
    since: int


class Barrier:
    """One barrier, at its home; `SyncObject.value` is the number of its parties."""

    def __init__(self, described: SyncObject) -> None:
        if described.value < 1:
            raise InternalError(f"barrier {described.name!r} was created with {described.value} parties")
        self.described = described
        self._parties = described.value
        #: Who has arrived, in order: fewer than the parties, none while it is broken.
        self._waiting: list[_Arrival] = []
        self._broken = False
        #: Living threads (node, owner) that know of the break; empty while it is not broken.
        self._told: set[tuple[int, Owner]] = set()

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Wait (OK with the index of arrival, once all are here; or BROKEN), reset or abort."""
        if op == _WAIT:
            if self._broken:
                self._tell(node, owner)
                return [Reply(node, ticket, _BROKEN)]
            waiting = self._waiting
            waiting.append(_Arrival(node, ticket, owner, now))
            if len(waiting) < self._parties:
                return []
            self._waiting = []
            return [Reply(each.node, each.ticket, _OK, index) for index, each in enumerate(waiting)]
        if op == _RESET:
            replies = self._break()
            self._mend()
            replies.append(Reply(node, ticket))
            return replies
        if op == _ABORT:
            replies = self._break()
            self._tell(node, owner)
            replies.append(Reply(node, ticket))
            return replies
        return [Reply(node, ticket, _USAGE)]

    def cancel(self, node: int, ticket: int) -> list[Reply]:
        """End a waiting call with CANCELLED, and the others with BROKEN."""
        for index, each in enumerate(self._waiting):
            if each.node == node and each.ticket == ticket:
                del self._waiting[index]
                replies = self._break()
                self._tell(node, each.owner)
                return [Reply(node, ticket, _CANCELLED), *replies]
        return []

    def gone(self, node: int, matches: Callable[[int], bool], now: int) -> list[Reply]:
        """Break the barrier if one of the dead waited here."""
        self._told = {each for each in self._told if each[0] != node or not matches(each[1][0])}
        alive = [each for each in self._waiting if each.node != node or not matches(each.owner[0])]
        if len(alive) == len(self._waiting):
            return []
        self._waiting = alive
        return self._break()

    def abort(self) -> list[Reply]:
        """Break the barrier because a party that does not wait here will never come."""
        return self._break()

    def close(self) -> list[Reply]:
        """End every waiting call with CLOSED."""
        waiting, self._waiting = self._waiting, []
        return [Reply(each.node, each.ticket, _CLOSED) for each in waiting]

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        waiting = tuple(Party(each.node, *each.owner, each.since) for each in self._waiting)
        return Description(
            it.object, it.kind, it.name, waiting=waiting, value=self._parties, damaged=self._broken
        )

    def _break(self) -> list[Reply]:
        """Break the barrier and return what those who wait are told."""
        waiting, self._waiting = self._waiting, []
        self._broken = True
        self._told.update((each.node, each.owner) for each in waiting)
        return [Reply(each.node, each.ticket, _BROKEN) for each in waiting]

    def _tell(self, node: int, owner: Owner) -> None:
        """Note that a thread knows of the break; the last one mends the barrier."""
        self._told.add((node, owner))
        if len(self._told) >= self._parties:
            self._mend()

    def _mend(self) -> None:
        self._broken = False
        self._told.clear()
