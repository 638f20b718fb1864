"""Calls of this node's threads to synchronization objects: how far each has come.

Owns their tickets.  A call waits until this node may ask (*unasked*), then for its home, then until this node
has acquired what goes with the answer (*acquiring*); its thread may give it up before (*cancelled*), or go on
without the home's word about that (*withdrawn*).
"""

from __future__ import annotations

from typing import NamedTuple

from dsm.wire.calls import LOCKING, UNASKED, UNSEEN, WAITING, Op

#: Ticket of what nobody waits for; it is not answered.
NO_TICKET = 0

_ACQUIRE = int(Op.LOCK_ACQUIRE)


class Call(NamedTuple):
    """A call of a worker's thread."""

    waiter: int
    number: int
    worker: int
    op: int
    a: int
    b: int
    #: `Calls.ages` when it began.
    age: int
    #: Of an atomic: it carries no consistency.
    relaxed: bool = False

    def comes_behind(self, other: Call) -> bool:
        """Whether the same thread asks for the same lock: its home must be done with `other` first."""
        mine = (self.number, self.worker, self.a)
        both = self.op in LOCKING and other.op in LOCKING
        return both and mine == (other.number, other.worker, other.a)


class Calls:
    """Calls of one node's threads under way."""

    def __init__(self) -> None:
        #: How often `grow_old` was called.
        self.ages = 0
        #: Calls whose threads wait, by ticket.
        self.waiting: dict[int, Call] = {}
        #: Those of them whose home has not been asked yet.
        self.unasked: set[int] = set()
        #: Those whose home has answered, and whose node has not acquired what goes with the answer.
        self.acquiring: set[int] = set()
        #: Those that their home was told to cancel.
        self.cancelled: set[int] = set()
        #: Calls that were withdrawn, whose home has not said yet what became of them.
        self.withdrawn: dict[int, Call] = {}
        self._tickets = 0

    def add(self, call: Call) -> int:
        """Note a call whose home has not been asked; return its ticket."""
        self._tickets = ticket = self._tickets % 0xFFFFFFFF + 1
        self.waiting[ticket] = call
        self.unasked.add(ticket)
        return ticket

    def ticket_of(self, waiter: int) -> int:
        """Return the ticket of the call for which a thread waits; `NO_TICKET` when there is none."""
        return next((ticket for ticket, call in self.waiting.items() if call.waiter == waiter), NO_TICKET)

    def fenced(self) -> set[int]:
        """Return the waiters whose calls wait for a release or acquire of this node."""
        own = self.unasked | self.acquiring
        return {call.waiter for ticket, call in self.waiting.items() if ticket in own}

    def must_wait(self, call: Call) -> bool:
        """Whether its home must not be asked before it has answered one that was withdrawn."""
        return any(call.comes_behind(other) for other in self.withdrawn.values())

    def crossing(self, number: int, granted: int) -> tuple[list[int], list[int]]:
        """Return the calls that cross a lock on its way here, which its home has dropped as it lent the lock.

        All but the one that was granted: first those that go on waiting, then those that were given up.
        """
        asked = [
            ticket
            for ticket, call in self.waiting.items()
            if call.number == number
            and call.op == _ACQUIRE
            and ticket != granted
            and ticket not in self.unasked
        ]
        withdrawn = [t for t, call in self.withdrawn.items() if call.number == number and call.op == _ACQUIRE]
        given_up = [ticket for ticket in asked if ticket in self.cancelled]
        return [ticket for ticket in asked if ticket not in self.cancelled], given_up + withdrawn

    # -- the end of calls ----------------------------------------------------------------------------------

    def end(self, ticket: int) -> Call | None:
        """Forget a call that is answered; return it if its thread waits."""
        self.acquiring.discard(ticket)
        self.cancelled.discard(ticket)
        return self.waiting.pop(ticket, None)

    def withdraw(self, ticket: int) -> Call | None:
        """Let a thread go on that has given its call up; return the call if it waited."""
        call = self.waiting.pop(ticket, None)
        if call is not None:
            self.withdrawn[ticket] = call
        return call

    def forget(self, worker: int) -> None:
        """Forget all calls of a worker."""
        self.waiting = {t: call for t, call in self.waiting.items() if call.worker != worker}
        self.withdrawn = {t: call for t, call in self.withdrawn.items() if call.worker != worker}
        self.unasked.intersection_update(self.waiting)
        self.cancelled.intersection_update(self.waiting)

    def grow_old(self, patience: int) -> list[tuple[Call, int]]:
        """A fixed part of the time has passed in which a home must answer what needs no wait.

        Forget the calls whose time is over, after `patience` parts (0: never), and return them, each with the
        stage that it had reached.
        """
        self.ages += 1
        late = []
        for ticket, call in list(self.waiting.items()):
            if patience and call.op not in WAITING and call.age <= self.ages - patience:
                del self.waiting[ticket]
                stage = UNASKED if ticket in self.unasked else UNSEEN if ticket in self.acquiring else 0
                late.append((call, stage))
                self.unasked.discard(ticket)
        return late
