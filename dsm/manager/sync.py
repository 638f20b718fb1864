"""Driver of the synchronization machines: calls of workers and of other nodes, to their homes.

Owns the way of a call (how far each has come: `dsm.manager.calls`).  It is decided by its object's home: this
node's own machine, at once, or another node, in one message and one answer.  A lock that its home has lent to
this node is decided here (`dsm.manager.lending`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from dsm.errors import InternalError, Status, UsageError, WireError
from dsm.limits import MAX_WORKERS_PER_NODE
from dsm.manager.calls import NO_TICKET, Call, Calls
from dsm.manager.lending import Lending
from dsm.manager.link import Link
from dsm.manager.metadata.options import check_sync
from dsm.manager.ordering import Ordering
from dsm.sync.cache import LockCache
from dsm.sync.reply import Reply
from dsm.sync.service import SyncHome
from dsm.types import SyncObject
from dsm.vector_time import Time
from dsm.wire.calls import (
    ACQUIRING,
    NO_RANK,
    RELEASING,
    Cause,
    Op,
    SyncKind,
    cause_word,
    undoing,
)
from dsm.wire.header import Family, Fields, pack

#: Seconds that a home may take to confirm that a call was withdrawn; then its thread goes on without that.
WITHDRAW_S = 0.5

_SYNC = int(Family.SYNC)
_OPS = frozenset(int(op) for op in Op if op >= Op.LOCK_ACQUIRE)
_CANCEL, _REPLY, _WORKER_GONE = int(Op.CANCEL), int(SyncKind.REPLY), int(SyncKind.WORKER_GONE)
_RECALL, _RETURN = int(SyncKind.RECALL), int(SyncKind.RETURN)
#: Operand a of a REPLY that lends the lock.
_LENT = 1
_BARRIER_OPS = (Op.BARRIER_WAIT, Op.BARRIER_RESET, Op.BARRIER_ABORT)


class Sync:
    """Synchronization objects of one node.

    Parameters
    ----------
    node
        This node's number.
    links
        Live links by node number; the membership keeps it.
    wake
        Ends the wait of a slot: ``wake(waiter, status, result)``.
    after
        The loop's timer: ``after(seconds, do)``.
    ordering
        Carries consistency along.
    patience
        How many calls of `age` a call survives that is answered at once; 0: as many as come.
    """

    def __init__(
        self,
        node: int,
        links: dict[int, Link],
        wake: Callable[[int, int, int], None],
        after: Callable[[float, Callable[[], None]], None],
        ordering: Ordering,
        patience: int = 0,
    ) -> None:
        self.node = node
        self.patience = patience
        self.epoch = 0
        self.ordering = ordering
        self.calls = Calls()
        #: Locks that are lent to this node.
        self.cache = LockCache(node)
        self.lending = Lending(self)
        self.home = SyncHome(self.lending.may_lend)
        self._links = links
        self._wake = wake
        self._after = after
        #: Home of each object that a worker of this node has opened, dead or alive.
        self.homes: dict[int, int] = {}
        #: The same objects with their names, for status; also those whose home is lost.
        self.known: dict[int, SyncObject] = {}
        #: Objects that were released here, whose home has not been told yet; with how often.
        self._untold: Counter[int] = Counter()

    def create(self, described: SyncObject) -> None:
        """Let this node decide about an object; nothing happens when it does so already."""
        self.home.create(described)

    def told(self, described: SyncObject) -> None:
        """The coordinator says that this node is the home of an object."""
        if described.home != self.node or not 0 < described.object < 1 << 32:
            raise WireError(f"object {described.object} of node {described.home} was told to {self.node}")
        try:
            check_sync(described.kind, described.name, described.value, described.bounded)
            self.home.create(described)
        except (UsageError, InternalError) as error:  # nothing was changed
            raise WireError(f"the coordinator described an object that cannot be: {error}") from None

    def opened(self, described: SyncObject) -> None:
        """A worker of this node will use the object."""
        self.homes[described.object] = described.home
        self.known[described.object] = described

    def call(self, op: int, number: int, a: int, b: int, waiter: int, worker: int, c: int = 0) -> None:
        """A worker's thread asks; ends with `wake`."""
        if op not in _OPS:  # the board is the worker's memory, too
            self._wake(waiter, Status.USAGE, 0)
            return
        home = self.homes.get(number)
        if home is None:
            self._wake(waiter, Status.UNKNOWN_NAME, 0)
            return
        call = Call(waiter, number, worker, op, a, b, self.calls.ages, c == 1)
        ticket = self.calls.add(call)
        if not self.calls.must_wait(call):
            self._begin(ticket, call)

    def _begin(self, ticket: int, call: Call) -> None:
        """Ask the home, once this node has released if the call does."""

        def ask() -> None:
            if self.calls.waiting.get(ticket) is call:  # it was not withdrawn meanwhile
                self.calls.unasked.discard(ticket)
                self.ask(
                    self.homes[call.number], call.op, call.number, ticket, call.worker, call.a, call.b,
                    call.relaxed,
                )  # fmt: skip

        if call.op in RELEASING and not call.relaxed:
            self.ordering.release(call.worker, ask, partial(self.lending.is_owed, call.op, call.number))
        else:
            self.ordering.in_order(call.worker, ask)

    def tell(self, op: int, number: int, a: int, b: int, worker: int) -> None:
        """A worker's thread has done something and waits for no answer."""
        home = self.homes.get(number)
        if home is not None and op in _OPS:
            ask = partial(self.ask, home, op, number, NO_TICKET, worker, a, b)
            if op in RELEASING:
                self._untold[number] += 1
                then = partial(self._tell_at_last, number, ask)
                self.ordering.release(worker, then, partial(self.lending.is_owed, op, number))
            else:
                self.ordering.in_order(worker, ask)

    def _tell_at_last(self, number: int, ask: Callable[[], None]) -> None:
        self._untold[number] -= 1
        if not self._untold[number]:
            del self._untold[number]
        ask()

    def released_here(self) -> tuple[int, ...]:
        """Return the objects whose homes are to hear of a release that this node has yet to finish."""
        return tuple(sorted(self._untold))

    def cancel(self, waiter: int) -> bool:
        """A thread does not want to wait any more; False when it does not wait here.

        The home says whether it was too late.  It may be out of reach: then the thread goes on without that.
        """
        calls = self.calls
        ticket = calls.ticket_of(waiter)
        if ticket == NO_TICKET:
            return False
        call = calls.waiting[ticket]
        if ticket in calls.unasked:
            calls.unasked.discard(ticket)
            del calls.waiting[ticket]
            self._wake(waiter, Status.CANCELLED, 0)
            return True
        if self.cache.cancel(call.number, ticket):
            self.ended(ticket, Status.CANCELLED, 0)
            return True
        calls.cancelled.add(ticket)
        self.ask(self.homes[call.number], _CANCEL, call.number, ticket, call.worker, ticket, 0)
        if ticket in calls.waiting:
            self._after(WITHDRAW_S, lambda: self._go_on_without(ticket))
        return True

    def _go_on_without(self, ticket: int) -> None:
        call = self.calls.withdraw(ticket)
        if call is not None:
            self._wake(call.waiter, Status.CANCELLED, 0)

    def age(self) -> None:
        """A fixed part of the time has passed in which a home must answer what needs no wait."""
        for call, stage in self.calls.grow_old(self.patience):
            self._wake(call.waiter, Status.PAGE_TIMEOUT, stage)

    def _resolve(self, ticket: int, status: int) -> None:
        """The home has answered a call that was withdrawn: undo it, and ask what came behind it."""
        call = self.calls.withdrawn.pop(ticket, None)
        if call is None:
            return
        home, number = self.homes[call.number], call.number
        if status in (Status.OK, Status.OWNER_DIED):
            for op, a, b in undoing(call.op, call.a, call.b, status == Status.OWNER_DIED):
                self.ask(home, op, number, NO_TICKET, call.worker, a, b)
        for later, other in list(self.calls.waiting.items()):
            if other.comes_behind(call):
                self._begin(later, other)

    def worker_gone(self, worker: int, rank: int, died: bool) -> None:
        """A worker of this node died, or left on its own: every home forgets it.  `rank` -1: it had none."""
        self.calls.forget(worker)
        self.cache.forget(worker)
        # What it wrote is in this node's frames: who gets its locks sees it.
        self.ordering.release(worker, lambda: self._tell_gone(worker, rank & NO_RANK, died))

    def _tell_gone(self, worker: int, rank: int, died: bool) -> None:
        self.ordering.times.join_all(self.ordering.time)
        now = time.monotonic_ns()
        cause = cause_word(Cause.DIED if died else Cause.LEFT, self.node, rank)
        self.lending.deliver(self.cache.gone(worker, cause, now))
        self._deliver(self.home.worker_gone(self.node, worker, now, died=died, rank=rank))
        for home in set(self.homes.values()) - {self.node}:
            self._send(home, _WORKER_GONE, 0, worker, 0, rank, died, self.ordering.for_call(home))
        # This node may have come to its end with it: its locks are not to seem held by a dead one.
        self.lending.recall_free()

    def node_gone(self, node: int) -> None:
        """Another node is lost: its threads wait and hold no more, its objects are gone."""
        self.ordering.node_gone(node)
        for number in self.cache:
            if self.homes[number] == node:
                self.cache.drop(number)
        self._deliver(self.home.node_gone(node, time.monotonic_ns()))
        for ticket, call in [*self.calls.waiting.items(), *self.calls.withdrawn.items()]:
            if self.homes[call.number] == node:
                self._lost(ticket, node)

    def ranks_missing(self, missing: Mapping[int, int]) -> None:
        """Which ranks of the job have no process, and the node where each was."""
        self._deliver(self.home.ranks_missing(missing))

    def message(self, link: Link, fields: Fields, payload: memoryview) -> None:
        """A message of the sync family arrived."""
        _, _, _, kind, _, _, _, _, number, count, ticket, a, b = fields
        if kind == _REPLY:
            call = self.calls.waiting.get(ticket)
            if call is not None and self.homes.get(call.number) != link.node:
                raise WireError(f"node {link.node} answers a call that another node was asked")
            told = self.ordering.of_reply(link.node, payload)
            if a == _LENT:
                if self.homes.get(number) != link.node or number in self.cache:
                    raise WireError(f"node {link.node} lends lock {number}, which it cannot")
                self.lending.begin(number, ticket)
            self._answered(ticket, count, b, told)
        elif count >= MAX_WORKERS_PER_NODE:
            raise WireError(f"a call of worker {count}; workers have numbers below {MAX_WORKERS_PER_NODE}")
        elif kind == _WORKER_GONE:
            self.ordering.times.join_all(self.ordering.of_call(link.node, payload))
            now = time.monotonic_ns()
            self._deliver(self.home.worker_gone(link.node, count, now, died=b != 0, rank=a & NO_RANK))
        elif kind == _RECALL:
            if self.homes.get(number) != link.node:
                raise WireError(f"node {link.node} wants lock {number} back, which is not its own")
            self.lending.recalled(number)
        elif kind in _OPS or kind == _RETURN:
            told = self.ordering.of_call(link.node, payload)
            self._request(kind, number, link.node, ticket, count, a, b, told)
        else:
            raise WireError(f"a synchronization message of unknown kind {kind}")

    def ask(
        self, home: int, op: int, number: int, ticket: int, worker: int, a: int, b: int, relaxed: bool = False
    ) -> None:
        if number in self.cache and self.lending.ask(op, number, ticket, worker, a, b):
            return
        if home == self.node:
            self._request(op, number, home, ticket, worker, a, b, () if relaxed else self.ordering.time)
        elif home in self._links:
            payload = b"" if relaxed else self.ordering.for_call(home)
            self._send(home, op, number, worker, ticket, a, b, payload)
        else:
            self._lost(ticket, home)

    def _request(
        self, op: int, number: int, node: int, ticket: int, worker: int, a: int, b: int, told: Time
    ) -> None:
        """Let this home decide; `told` is the time of the node that asks, empty for what is relaxed."""
        if told and (op in RELEASING or op == _RETURN):
            self.ordering.times.join(number, told)
        self._deliver(self.home.request(op, number, node, ticket, (worker, a), a, b, time.monotonic_ns()))

    def _send(
        self, node: int, kind: int, number: int, count: int, ticket: int, a: int, b: int, payload: bytes
    ) -> None:
        link = self._links.get(node)
        if link is not None:
            about = node if kind == _REPLY else self.node
            header = pack(_SYNC, kind, 0, about, self.epoch, len(payload), number, count, ticket, a, b)
            link.send(header, payload or None)

    def _lost(self, ticket: int, home: int) -> None:
        """End a call whose object died with its home."""
        self.calls.withdrawn.pop(ticket, None)
        call = self.calls.end(ticket)
        if call is not None:
            status = Status.BROKEN if call.op in _BARRIER_OPS else Status.PAGE_LOST
            self._wake(call.waiter, status, cause_word(Cause.HOME_DIED, home))

    def _answered(self, ticket: int, status: int, result: int, told: Time) -> None:
        """The home has decided; the thread goes on when this node has acquired the object's time."""
        calls = self.calls
        if ticket in calls.acquiring:
            return  # what was granted is on its way to the thread: this says that a CANCEL came too late
        call = calls.waiting.get(ticket)
        if told and call is not None and call.op in ACQUIRING and not call.relaxed:
            calls.acquiring.add(ticket)
            self.ordering.acquire(told, lambda: self.ended(ticket, status, result))
        else:
            self.ended(ticket, status, result)

    def ended(self, ticket: int, status: int, result: int) -> None:
        """A call is over: its thread goes on, or what it had given up is undone."""
        call = self.calls.end(ticket)
        if call is not None:
            self._wake(call.waiter, status, result)
        else:
            self._resolve(ticket, status)

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            here = reply.node == self.node
            if reply.recall:
                if here:
                    self.lending.recalled(reply.object)
                else:
                    self._send(reply.node, _RECALL, reply.object, 0, 0, 0, 0, b"")
            elif here and reply.ticket != NO_TICKET:
                told = self.ordering.times.of(reply.object)
                if reply.lent:
                    self.lending.begin(reply.object, reply.ticket)
                self._answered(reply.ticket, reply.status, reply.result, told)
            elif reply.ticket != NO_TICKET:
                payload = self.ordering.for_reply(reply.node, reply.object)
                lent, number = (_LENT, reply.object) if reply.lent else (0, 0)
                self._send(
                    reply.node, _REPLY, number, reply.status, reply.ticket, lent, reply.result, payload
                )
