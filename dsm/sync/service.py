"""The home of synchronization objects: one door for every operation on any of them.

Owns the objects whose home is this node.  Pure: the manager carries operations here (from its own
workers and from other nodes, in the order in which each node sent them) and replies back; times are
only noted, for status.

A call is identified by its node and `ticket`, which the node chooses and does not use again while the
call waits.  A thread is identified by its node and `owner`: number of the worker, token of the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dsm.errors import InternalError, Status
from dsm.sync.atomic import Atomic
from dsm.sync.barrier import Barrier
from dsm.sync.condition import Condition
from dsm.sync.event import Event
from dsm.sync.lock import Lock
from dsm.sync.reply import Description, Gone, Machine, Owner, Party, Reply
from dsm.sync.rwlock import RWLock
from dsm.sync.semaphore import Semaphore
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, Cause, Op, cause_word

__all__ = ["Description", "Owner", "Party", "Reply", "SyncHome"]

#: A condition needs its lock, too.
_KINDS: dict[str, Callable[[SyncObject], Machine]] = {
    "lock": Lock,
    "rwlock": RWLock,
    "semaphore": Semaphore,
    "event": Event,
    "barrier": Barrier,
    "atomic": Atomic,
}

_CANCEL = int(Op.CANCEL)
_OK = int(Status.OK)
_CLOSED = int(Status.CLOSED)
_TOO_LATE = int(Status.TOO_LATE)
_UNKNOWN_NAME = int(Status.UNKNOWN_NAME)


class SyncHome:
    """Every synchronization object whose home is this node.

    All methods return the replies that are due, in the order in which they must be sent to each node.
    What a caller does wrong is a reply with a status; exceptions mean that the driver is wrong.

    Parameters
    ----------
    may_lend
        Whether locks may be lent to a node; without it, none is.
    """

    def __init__(self, may_lend: Callable[[int], bool] = lambda node: False) -> None:
        self._may_lend = may_lend
        self._machines: dict[int, Machine] = {}
        #: Highest number ever created here: what is missing below it was dropped.
        self._highest = 0
        #: Ranks of the job that have no process, and the node where each was.
        self._missing: Mapping[int, int] = {}

    def create(self, described: SyncObject) -> None:
        """Become the home of an object; nothing happens when it is here already.

        Raises
        ------
        InternalError
            Its kind is unknown, its number belongs to another object, or it is a condition whose lock is
            not here.
        """
        number = described.object
        machine = self._machines.get(number)
        if machine is not None:
            if machine.described != described:
                raise InternalError(f"number {number} belongs to {machine.described}, not to {described}")
            return
        self._machines[number] = machine = self._machine(described)
        if isinstance(machine, Barrier):
            machine.ranks_missing(self._missing)
        elif isinstance(machine, Lock):
            machine.may_lend = self._may_lend
        self._highest = max(self._highest, number)

    def _machine(self, described: SyncObject) -> Machine:
        if described.kind == "condition":
            lock = self._machines.get(described.value)
            if not isinstance(lock, Lock):
                raise InternalError(f"condition {described.name!r} has lock {described.value}, not here")
            return Condition(described, lock)
        kind = _KINDS.get(described.kind)
        if kind is None:
            raise InternalError(f"no synchronization object is of kind {described.kind!r}")
        return kind(described)

    def drop(self, number: int) -> list[Reply]:
        """Forget an object; who waits for it ends with CLOSED, and so does who asks for it later."""
        machine = self._machines.pop(number, None)
        return [] if machine is None else machine.close()

    def request(
        self, op: int, object: int, node: int, ticket: int, owner: Owner, a: int = 0, b: int = 0, now: int = 0
    ) -> list[Reply]:
        """Handle one operation of a thread.

        Parameters
        ----------
        op
            An `Op` of the object's kind, or CANCEL: then `a` is the ticket of the call to end; or
            `SyncKind.RETURN` of a lock that is lent to the node.
        object
            Number of the object.
        node, ticket
            The call; its reply bears both.
        owner
            The thread: number of its worker, token of the thread.
        a, b
            Operands, unsigned 64-bit.
        now
            Time in nanoseconds, for `describe`.

        Returns
        -------
        list of Reply
            Maybe without one for this call, which then waits; maybe with replies to calls that waited.
            CANCEL is always answered: OK when the call was ended, after its own reply CANCELLED;
            TOO_LATE when it had been answered before, and that answer stands.
            UNKNOWN_NAME or CLOSED: the object was never here, or was dropped.
        """
        machine = self._machines.get(object)
        if machine is None:
            status = _CLOSED if object <= self._highest else _UNKNOWN_NAME
            return [Reply(node, ticket, status, object=object)]
        if op == _CANCEL:
            replies = machine.cancel(node, a, now)
            replies.append(Reply(node, ticket, _OK if replies else _TOO_LATE, object=object))
            return replies
        return machine.request(op, node, ticket, owner, a, b, now)

    def worker_gone(
        self, node: int, worker: int, now: int = 0, *, died: bool = True, rank: int = NO_RANK
    ) -> list[Reply]:
        """Forget a worker: its calls have ended, its locks pass on, barriers it belonged to break.

        Parameters
        ----------
        node, worker
            Who it was.
        now
            Time in nanoseconds, for `describe`.
        died
            False when it left on its own: then only barriers in which it waits break.
        rank
            Its rank, for messages.
        """
        cause = cause_word(Cause.DIED if died else Cause.LEFT, node, rank)
        return self._gone(Gone(node, worker, died, cause, now))

    def node_gone(self, node: int, now: int = 0) -> list[Reply]:
        """Forget all workers of a node, which died.  Replies to it no longer have a receiver."""
        return self._gone(Gone(node, None, True, cause_word(Cause.NODE_DIED, node), now))

    def ranks_missing(self, missing: Mapping[int, int]) -> list[Reply]:
        """Say which ranks of the job have no process, all of them; by rank, the node where each was.

        Barriers of all ranks are broken as long as there is one.
        """
        self._missing = dict(missing)
        replies: list[Reply] = []
        for machine in self._machines.values():
            if isinstance(machine, Barrier):
                replies += machine.ranks_missing(self._missing)
        return replies

    def describe(self) -> list[Description]:
        """Return the state of every object, in the order of their numbers."""
        return [machine.describe() for _, machine in sorted(self._machines.items())]

    def _gone(self, gone: Gone) -> list[Reply]:
        replies: list[Reply] = []
        for machine in self._machines.values():
            replies += machine.gone(gone)
        return replies
