"""Driver of the synchronization machines: calls of workers and of other nodes, to their homes.

Owns the tickets of calls under way.  A call is decided by its object's home: this node's own machine,
at once, or another node, in one message and one answer.  A lock that its home has lent to this node is
decided here (`dsm.sync.cache`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from dsm.errors import InternalError, Status, UsageError, WireError
from dsm.limits import MAX_WORKERS_PER_NODE
from dsm.manager.link import Link
from dsm.manager.metadata.options import check_sync
from dsm.manager.ordering import Ordering
from dsm.sync.cache import LockCache
from dsm.sync.reply import Description, Party, Reply
from dsm.sync.service import SyncHome
from dsm.sync.waiting import Waiter
from dsm.types import SyncObject
from dsm.vector_time import Time
from dsm.wire.calls import (
    ACQUIRING,
    LOCKING,
    NO_RANK,
    RELEASING,
    UNASKED,
    UNSEEN,
    WAITING,
    Cause,
    Op,
    SyncKind,
    cause_word,
    undoing,
)
from dsm.wire.header import Family, Fields, pack

#: Ticket of what nobody waits for; it is not answered.
NO_TICKET = 0
#: Seconds that a home may take to confirm that a call was withdrawn; then its thread goes on without that.
WITHDRAW_S = 0.5

_SYNC = int(Family.SYNC)
_OPS = frozenset(int(op) for op in Op if op >= Op.LOCK_ACQUIRE)
_CANCEL, _REPLY, _WORKER_GONE = int(Op.CANCEL), int(SyncKind.REPLY), int(SyncKind.WORKER_GONE)
_RECALL, _RETURN = int(SyncKind.RECALL), int(SyncKind.RETURN)
_ACQUIRE, _RELEASE = int(Op.LOCK_ACQUIRE), int(Op.LOCK_RELEASE)
#: Operand a of a REPLY that lends the lock.
_LENT = 1
_BARRIER_OPS = (Op.BARRIER_WAIT, Op.BARRIER_RESET, Op.BARRIER_ABORT)


class _Call(NamedTuple):
    """A call of a worker's thread."""

    waiter: int
    number: int
    worker: int
    op: int
    a: int
    b: int
    #: `Sync.age` when it began.
    age: int
    #: Of an atomic: it carries no consistency.
    relaxed: bool = False

    def comes_behind(self, other: _Call) -> bool:
        """Whether the same thread asks for the same lock: its home must be done with `other` first."""
        mine = (self.number, self.worker, self.a)
        both = self.op in LOCKING and other.op in LOCKING
        return both and mine == (other.number, other.worker, other.a)


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
        self._ages = 0
        self.home = SyncHome(self._may_lend)
        #: Locks that are lent to this node.
        self.cache = LockCache(node)
        self.epoch = 0
        self._links = links
        self._wake = wake
        self._after = after
        self._ordering = ordering
        #: Home of each object that a worker of this node has opened, dead or alive.
        self._homes: dict[int, int] = {}
        #: The same objects with their names, for status; also those whose home is lost.
        self.known: dict[int, SyncObject] = {}
        self._tickets = 0
        #: Calls whose threads wait, by ticket.
        self._waiting: dict[int, _Call] = {}
        #: Those of them whose home has not been asked yet.
        self._unasked: set[int] = set()
        #: Those whose home has answered, and whose node has not acquired what goes with the answer.
        self._acquiring: set[int] = set()
        #: Objects that were released here, whose home has not been told yet; with how often.
        self._untold: Counter[int] = Counter()
        #: Calls that were withdrawn, whose home has not said yet what became of them.
        self._withdrawn: dict[int, _Call] = {}
        #: Calls that their home was told to cancel.
        self._cancelled: set[int] = set()

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
        self._homes[described.object] = described.home
        self.known[described.object] = described

    def call(self, op: int, number: int, a: int, b: int, waiter: int, worker: int, c: int = 0) -> None:
        """A worker's thread asks; ends with `wake`."""
        if op not in _OPS:  # the board is the worker's memory, too
            self._wake(waiter, Status.USAGE, 0)
            return
        home = self._homes.get(number)
        if home is None:
            self._wake(waiter, Status.UNKNOWN_NAME, 0)
            return
        self._tickets = ticket = self._tickets % 0xFFFFFFFF + 1
        self._waiting[ticket] = call = _Call(waiter, number, worker, op, a, b, self._ages, c == 1)
        self._unasked.add(ticket)
        if not any(call.comes_behind(other) for other in self._withdrawn.values()):
            self._begin(ticket, call)

    def _begin(self, ticket: int, call: _Call) -> None:
        """Ask the home, once this node has released if the call does."""

        def ask() -> None:
            if self._waiting.get(ticket) is call:  # it was not withdrawn meanwhile
                self._unasked.discard(ticket)
                self._ask(
                    self._homes[call.number], call.op, call.number, ticket, call.worker, call.a, call.b,
                    call.relaxed,
                )  # fmt: skip

        if call.op in RELEASING and not call.relaxed:
            self._ordering.release(call.worker, ask, partial(self._is_owed, call.op, call.number))
        else:
            self._ordering.in_order(call.worker, ask)

    def tell(self, op: int, number: int, a: int, b: int, worker: int) -> None:
        """A worker's thread has done something and waits for no answer."""
        home = self._homes.get(number)
        if home is not None and op in _OPS:
            ask = partial(self._ask, home, op, number, NO_TICKET, worker, a, b)
            if op in RELEASING:
                self._untold[number] += 1
                then = partial(self._tell_at_last, number, ask)
                self._ordering.release(worker, then, partial(self._is_owed, op, number))
            else:
                self._ordering.in_order(worker, ask)

    def _tell_at_last(self, number: int, ask: Callable[[], None]) -> None:
        self._untold[number] -= 1
        if not self._untold[number]:
            del self._untold[number]
        ask()

    def fenced(self) -> set[int]:
        """Return the waiters whose calls wait for a release or acquire of this node."""
        own = self._unasked | self._acquiring
        return {call.waiter for ticket, call in self._waiting.items() if ticket in own}

    def released_here(self) -> tuple[int, ...]:
        """Return the objects whose homes are to hear of a release that this node has yet to finish."""
        return tuple(sorted(self._untold))

    def cancel(self, waiter: int) -> bool:
        """A thread does not want to wait any more; False when it does not wait here.

        The home says whether it was too late.  It may be out of reach: then the thread goes on without that.
        """
        ticket = next((ticket for ticket, call in self._waiting.items() if call.waiter == waiter), NO_TICKET)
        if ticket == NO_TICKET:
            return False
        call = self._waiting[ticket]
        if ticket in self._unasked:
            self._unasked.discard(ticket)
            del self._waiting[ticket]
            self._wake(waiter, Status.CANCELLED, 0)
            return True
        if self.cache.cancel(call.number, ticket):
            self._ended(ticket, Status.CANCELLED, 0)
            return True
        self._cancelled.add(ticket)
        self._ask(self._homes[call.number], _CANCEL, call.number, ticket, call.worker, ticket, 0)
        if ticket in self._waiting:
            self._after(WITHDRAW_S, lambda: self._go_on_without(ticket))
        return True

    def _go_on_without(self, ticket: int) -> None:
        call = self._waiting.pop(ticket, None)
        if call is not None:
            self._withdrawn[ticket] = call
            self._wake(call.waiter, Status.CANCELLED, 0)

    def age(self) -> None:
        """A fixed part of the time has passed in which a home must answer what needs no wait."""
        self._ages += 1
        for ticket, call in list(self._waiting.items()):
            if self.patience and call.op not in WAITING and call.age <= self._ages - self.patience:
                del self._waiting[ticket]
                stage = UNASKED if ticket in self._unasked else UNSEEN if ticket in self._acquiring else 0
                self._unasked.discard(ticket)
                self._wake(call.waiter, Status.PAGE_TIMEOUT, stage)

    def _resolve(self, ticket: int, status: int) -> None:
        """The home has answered a call that was withdrawn: undo it, and ask what came behind it."""
        call = self._withdrawn.pop(ticket, None)
        if call is None:
            return
        home, number = self._homes[call.number], call.number
        if status in (Status.OK, Status.OWNER_DIED):
            for op, a, b in undoing(call.op, call.a, call.b, status == Status.OWNER_DIED):
                self._ask(home, op, number, NO_TICKET, call.worker, a, b)
        for later, other in list(self._waiting.items()):
            if other.comes_behind(call):
                self._begin(later, other)

    def worker_gone(self, worker: int, rank: int, died: bool) -> None:
        """A worker of this node died, or left on its own: every home forgets it.  `rank` -1: it had none."""
        self._waiting = {t: call for t, call in self._waiting.items() if call.worker != worker}
        self._withdrawn = {t: call for t, call in self._withdrawn.items() if call.worker != worker}
        self._unasked.intersection_update(self._waiting)
        self._cancelled.intersection_update(self._waiting)
        self.cache.forget(worker)
        # What it wrote is in this node's frames: who gets its locks sees it.
        self._ordering.release(worker, lambda: self._tell_gone(worker, rank & NO_RANK, died))

    def _tell_gone(self, worker: int, rank: int, died: bool) -> None:
        self._ordering.times.join_all(self._ordering.time)
        now = time.monotonic_ns()
        cause = cause_word(Cause.DIED if died else Cause.LEFT, self.node, rank)
        self._deliver_here(self.cache.gone(worker, cause, now))
        self._deliver(self.home.worker_gone(self.node, worker, now, died=died, rank=rank))
        for home in set(self._homes.values()) - {self.node}:
            self._send(home, _WORKER_GONE, 0, worker, 0, rank, died, self._ordering.for_call(home))
        # This node may have come to its end with it: its locks are not to seem held by a dead one.
        for number in self.cache:
            if self.cache.owner(number) is None:
                self._recalled(number)

    def node_gone(self, node: int) -> None:
        """Another node is lost: its threads wait and hold no more, its objects are gone."""
        self._ordering.node_gone(node)
        for number in self.cache:
            if self._homes[number] == node:
                self.cache.drop(number)
        self._deliver(self.home.node_gone(node, time.monotonic_ns()))
        for ticket, call in [*self._waiting.items(), *self._withdrawn.items()]:
            if self._homes[call.number] == node:
                self._lost(ticket, node)

    def ranks_missing(self, missing: Mapping[int, int]) -> None:
        """Which ranks of the job have no process, and the node where each was."""
        self._deliver(self.home.ranks_missing(missing))

    def message(self, link: Link, fields: Fields, payload: memoryview) -> None:
        """A message of the sync family arrived."""
        _, _, _, kind, _, _, _, _, number, count, ticket, a, b = fields
        if kind == _REPLY:
            call = self._waiting.get(ticket)
            if call is not None and self._homes.get(call.number) != link.node:
                raise WireError(f"node {link.node} answers a call that another node was asked")
            told = self._ordering.of_reply(link.node, payload)
            if a == _LENT:
                if self._homes.get(number) != link.node or number in self.cache:
                    raise WireError(f"node {link.node} lends lock {number}, which it cannot")
                self._lent(number, ticket)
            self._answered(ticket, count, b, told)
        elif count >= MAX_WORKERS_PER_NODE:
            raise WireError(f"a call of worker {count}; workers have numbers below {MAX_WORKERS_PER_NODE}")
        elif kind == _WORKER_GONE:
            self._ordering.times.join_all(self._ordering.of_call(link.node, payload))
            now = time.monotonic_ns()
            self._deliver(self.home.worker_gone(link.node, count, now, died=b != 0, rank=a & NO_RANK))
        elif kind == _RECALL:
            if self._homes.get(number) != link.node:
                raise WireError(f"node {link.node} wants lock {number} back, which is not its own")
            self._recalled(number)
        elif kind in _OPS or kind == _RETURN:
            told = self._ordering.of_call(link.node, payload)
            self._request(kind, number, link.node, ticket, count, a, b, told)
        else:
            raise WireError(f"a synchronization message of unknown kind {kind}")

    def _ask(
        self, home: int, op: int, number: int, ticket: int, worker: int, a: int, b: int, relaxed: bool = False
    ) -> None:
        if number in self.cache and self._ask_here(op, number, ticket, worker, a, b):
            return
        if home == self.node:
            self._request(op, number, home, ticket, worker, a, b, () if relaxed else self._ordering.time)
        elif home in self._links:
            payload = b"" if relaxed else self._ordering.for_call(home)
            self._send(home, op, number, worker, ticket, a, b, payload)
        else:
            self._lost(ticket, home)

    def _request(
        self, op: int, number: int, node: int, ticket: int, worker: int, a: int, b: int, told: Time
    ) -> None:
        """Let this home decide; `told` is the time of the node that asks, empty for what is relaxed."""
        if told and (op in RELEASING or op == _RETURN):
            self._ordering.times.join(number, told)
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
        self._withdrawn.pop(ticket, None)
        self._cancelled.discard(ticket)
        call = self._waiting.pop(ticket, None)
        if call is not None:
            status = Status.BROKEN if call.op in _BARRIER_OPS else Status.PAGE_LOST
            self._wake(call.waiter, status, cause_word(Cause.HOME_DIED, home))

    def _answered(self, ticket: int, status: int, result: int, told: Time) -> None:
        """The home has decided; the thread goes on when this node has acquired the object's time."""
        if ticket in self._acquiring:
            return  # what was granted is on its way to the thread: this says that a CANCEL came too late
        call = self._waiting.get(ticket)
        if told and call is not None and call.op in ACQUIRING and not call.relaxed:
            self._acquiring.add(ticket)
            self._ordering.acquire(told, lambda: self._ended(ticket, status, result))
        else:
            self._ended(ticket, status, result)

    def _ended(self, ticket: int, status: int, result: int) -> None:
        self._acquiring.discard(ticket)
        self._cancelled.discard(ticket)
        call = self._waiting.pop(ticket, None)
        if call is not None:
            self._wake(call.waiter, status, result)
        else:
            self._resolve(ticket, status)

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            here = reply.node == self.node
            if reply.recall:
                if here:
                    self._recalled(reply.object)
                else:
                    self._send(reply.node, _RECALL, reply.object, 0, 0, 0, 0, b"")
            elif here and reply.ticket != NO_TICKET:
                told = self._ordering.times.of(reply.object)
                if reply.lent:
                    self._lent(reply.object, reply.ticket)
                self._answered(reply.ticket, reply.status, reply.result, told)
            elif reply.ticket != NO_TICKET:
                payload = self._ordering.for_reply(reply.node, reply.object)
                lent, number = (_LENT, reply.object) if reply.lent else (0, 0)
                self._send(
                    reply.node, _REPLY, number, reply.status, reply.ticket, lent, reply.result, payload
                )

    # -- locks that are lent to this node ------------------------------------------------------------------

    def describe_lent(self) -> list[Description]:
        """Return what the homes of the locks that are lent to this node do not know."""
        return [self._describe_lent(number) for number in self.cache]

    def _describe_lent(self, number: int) -> Description:
        owner, since, waiting, died = self.cache.state(number)
        holder = Party(self.node, *owner, since) if owner is not None else None
        parties = tuple(waiter.party() for waiter in waiting)
        it = self.known[number]
        return Description(it.object, it.kind, it.name, holder, parties, damaged=died, lent=self.node)

    def _may_lend(self, node: int) -> bool:
        """Whether a lock may be lent: to this node itself only where that saves it a release."""
        return node != self.node or self._ordering.is_needed

    def _is_owed(self, op: int, number: int) -> bool:
        """Whether a call that releases needs no release of the node now."""
        return op == _RELEASE and number in self.cache

    def _lent(self, number: int, ticket: int) -> None:
        """A lock is lent to this node, along with the grant for a call; its home has dropped all others."""
        now = time.monotonic_ns()
        call = self._waiting.get(ticket)
        dropped = [
            (other, each)
            for other, each in self._waiting.items()
            if each.number == number
            and each.op == _ACQUIRE
            and other != ticket
            and other not in self._unasked
        ]
        ended = [other for other, _ in dropped if other in self._cancelled]
        ended += [t for t, each in self._withdrawn.items() if each.number == number and each.op == _ACQUIRE]
        waiting = [
            Waiter(self.node, other, (each.worker, each.a), now)
            for other, each in dropped
            if other not in self._cancelled
        ]
        self.cache.lend(number, (call.worker, call.a) if call is not None else None, waiting, now)
        if call is None:
            self._give_back(number)
        for other in ended:
            self._ended(other, Status.CANCELLED, 0)

    def _ask_here(self, op: int, number: int, ticket: int, worker: int, a: int, b: int) -> bool:
        """Decide a call of a lock that is lent to this node; False: its home has to."""
        now = time.monotonic_ns()
        if op == _ACQUIRE:
            self._deliver_here(self.cache.acquire(number, ticket, (worker, a), now))
        elif op == _RELEASE:
            self._deliver_here(self.cache.release(number, ticket, (worker, a), b == 1, now))
        elif op == _CANCEL:
            pass  # granted already
        elif self.cache.owner(number) == (worker, a):
            self._give_back(number)
            return False
        else:
            self._ended(ticket, Status.NOT_OWNER, 0)
        return True

    def _deliver_here(self, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.ticket != NO_TICKET:
                self._ended(reply.ticket, reply.status, reply.result)

    def _recalled(self, number: int) -> None:
        """A lock is wanted back; what its releases here owe comes first."""
        if not self.cache.recall(number):
            return
        if self.cache.owes(number):
            self._ordering.owed(partial(self._give_back, number))
        else:
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        """Send a lock home, and behind it the calls that wait for it."""
        given = self.cache.give_back(number)
        if given is None:
            return
        home, (worker, token) = self._homes[number], given.owner
        self._unasked.update(waiter.ticket for waiter in given.waiting)
        if home == self.node:
            self._request(_RETURN, number, home, NO_TICKET, worker, token, given.word, self._ordering.time)
        else:
            payload = self._ordering.for_call(home)
            self._send(home, _RETURN, number, worker, NO_TICKET, token, given.word, payload)
        for waiter in given.waiting:
            self._unasked.discard(waiter.ticket)
            self._ask(home, _ACQUIRE, number, waiter.ticket, waiter.owner[0], waiter.owner[1], 0)
