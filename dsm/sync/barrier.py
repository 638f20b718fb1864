"""Barriers: a fixed number of parties meet, again and again; what breaks one is told to all of them.

Owns who has arrived, who belongs to the barrier, and whether it is broken.

As with `threading.Barrier`, a party whose wait ends early (its time is over, it was interrupted, its worker
is gone) breaks the barrier: whoever waits ends with BROKEN, and whoever arrives later ends with BROKEN at
once, since the party it would wait for has given up.  BARRIER_ABORT breaks it on purpose; BARRIER_RESET
makes it new, and ends with BROKEN whoever waits at that moment.  With BROKEN comes who is the cause.

*Members.*  A worker belongs to a barrier from its first arrival on.  When a member dies, waiting or not,
and others live, the barrier breaks: they would wait for it.  A member that leaves on its own breaks it only
if it waits.  When no member is left, the barrier is as new.

*Mending.*  Unlike `threading.Barrier`, a broken barrier mends itself once as many *different* threads as it
has parties know that it broke (they were told BROKEN or CANCELLED, or broke it).  Then all of them may meet
again, and none can meet a party that still believes in the old round.  The dead do not count: with a party
missing for good it stays broken, rather than let the others wait for ever, until a replacement has been told
or somebody resets it.

*Ranks.*  In a barrier of all ranks of a job (arrivals say so) it is known who is to come, arrived or not.
While a rank has no process, whoever waits or arrives ends with BROKEN, and a reset does not help; when the
rank is taken again, the barrier is as new.  That replaces the rule about members that do not wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsm.errors import InternalError, Status
from dsm.sync.reply import Description, Gone, Owner, Reply
from dsm.sync.waiting import Waiter, parties, without_gone
from dsm.types import SyncObject
from dsm.wire.calls import Cause, Op, cause_word

_WAIT = int(Op.BARRIER_WAIT)
_RESET = int(Op.BARRIER_RESET)
_ABORT = int(Op.BARRIER_ABORT)
_OK = int(Status.OK)
_BROKEN = int(Status.BROKEN)
_CANCELLED = int(Status.CANCELLED)
_CLOSED = int(Status.CLOSED)
_USAGE = int(Status.USAGE)


class Barrier:
    """One barrier, at its home; `SyncObject.value` is the number of its parties."""

    def __init__(self, described: SyncObject) -> None:
        if described.value < 1:
            raise InternalError(f"barrier {described.name!r} was created with {described.value} parties")
        self.described = described
        self._number = described.object
        self._parties = described.value
        #: Who has arrived, in order: fewer than the parties, none while it is broken or a rank is missing.
        self._waiting: list[Waiter] = []
        #: Living workers (node, worker) that have ever arrived.
        self._members: set[tuple[int, int]] = set()
        self._broken = False
        #: Why; stands until it breaks again.
        self._cause = 0
        #: Living threads (node, owner) that know of the break; empty while it is not broken.
        self._told: set[tuple[int, Owner]] = set()
        #: Its parties are the ranks of the job; those without a process, and where each was.
        self._is_of_ranks = False
        self._missing: Mapping[int, int] = {}

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Wait (OK with the index of arrival, once all are here; or BROKEN), reset or abort.

        Wait: `b` 1 says that the parties are the ranks of the job.
        """
        if op == _WAIT:
            return self._arrive(Waiter(node, ticket, owner, now), b == 1)
        if op == _RESET:
            replies = self._break(cause_word(Cause.RESET, node, owner[0]))
            self._mend()
            replies.append(self._reply(node, ticket))
            return replies
        if op == _ABORT:
            replies = self._break(cause_word(Cause.ABORTED, node, owner[0]))
            self._tell(node, owner)
            replies.append(self._reply(node, ticket))
            return replies
        return [self._reply(node, ticket, _USAGE)]

    def _arrive(self, arrival: Waiter, of_ranks: bool) -> list[Reply]:
        node, ticket, owner = arrival.node, arrival.ticket, arrival.owner
        self._members.add((node, owner[0]))
        replies: list[Reply] = []
        if of_ranks and not self._is_of_ranks:
            self._is_of_ranks = True
            replies = self._refuse_without_ranks()
        if self._broken:
            cause = self._why()
            self._tell(node, owner)
            return [*replies, self._reply(node, ticket, _BROKEN, cause)]
        if self._is_of_ranks and self._missing:
            return [*replies, self._reply(node, ticket, _BROKEN, self._why())]
        waiting = self._waiting
        waiting.append(arrival)
        if len(waiting) < self._parties:
            return replies
        self._waiting = []
        return [self._reply(each.node, each.ticket, _OK, index) for index, each in enumerate(waiting)]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a waiting call with CANCELLED, and the others with BROKEN."""
        for index, each in enumerate(self._waiting):
            if each.node == node and each.ticket == ticket:
                del self._waiting[index]
                replies = self._break(cause_word(Cause.GAVE_UP, node, each.owner[0]))
                self._tell(node, each.owner)
                return [self._reply(node, ticket, _CANCELLED), *replies]
        return []

    def gone(self, gone: Gone) -> list[Reply]:
        """Break the barrier if one of the gone waited here, or was a member and died."""
        members = {each for each in self._members if not gone.has(*each)}
        lost, self._members = len(members) < len(self._members), members
        self._told = {each for each in self._told if not gone.has(each[0], each[1][0])}
        alive = without_gone(self._waiting, gone)
        waited, self._waiting = len(alive) < len(self._waiting), alive
        if lost and not members:
            self._mend()
        elif waited or (lost and gone.died and not self._is_of_ranks):
            return self._break(gone.cause)
        return []

    def ranks_missing(self, missing: Mapping[int, int]) -> list[Reply]:
        """Note which ranks have no process; a barrier of all ranks is as new when the last one is back."""
        before, self._missing = self._missing, missing
        if self._is_of_ranks and before and not missing:
            self._mend()
        return self._refuse_without_ranks()

    def close(self) -> list[Reply]:
        """End every waiting call with CLOSED."""
        waiting, self._waiting = self._waiting, []
        return [self._reply(each.node, each.ticket, _CLOSED) for each in waiting]

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        missing = tuple(sorted(self._missing)) if self._is_of_ranks else ()
        return Description(
            it.object,
            it.kind,
            it.name,
            waiting=parties(self._waiting),
            value=self._parties,
            damaged=self._broken or bool(missing),
            missing=missing,
        )

    def _reply(self, node: int, ticket: int, status: int = 0, result: int = 0) -> Reply:
        return Reply(node, ticket, status, result, self._number)

    def _why(self) -> int:
        """Return the cause that a party is told: a missing rank before anything else."""
        if self._is_of_ranks and self._missing:
            rank = min(self._missing)
            return cause_word(Cause.RANK_MISSING, self._missing[rank], rank)
        return self._cause

    def _refuse_without_ranks(self) -> list[Reply]:
        """End with BROKEN whoever waits for a rank that has no process."""
        if not (self._is_of_ranks and self._missing):
            return []
        waiting, self._waiting = self._waiting, []
        return [self._reply(each.node, each.ticket, _BROKEN, self._why()) for each in waiting]

    def _break(self, cause: int) -> list[Reply]:
        """Break the barrier and return what those who wait are told."""
        waiting, self._waiting = self._waiting, []
        self._broken = True
        self._cause = cause
        self._told.update((each.node, each.owner) for each in waiting)
        return [self._reply(each.node, each.ticket, _BROKEN, cause) for each in waiting]

    def _tell(self, node: int, owner: Owner) -> None:
        """Note that a thread knows of the break; the last one mends the barrier."""
        self._told.add((node, owner))
        if len(self._told) >= self._parties:
            self._mend()

    def _mend(self) -> None:
        self._broken = False
        self._told.clear()
