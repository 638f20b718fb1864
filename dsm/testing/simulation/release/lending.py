"""A node with locks that are lent to it, as a real manager drives them.

Owns what `dsm.manager.lending` does with a `LockCache`, and the real happens-before among those who pass a
lock on without its home: the clock of the lock is here while the lock is, and goes home with what it owes.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from dsm.coherence.messages import Released
from dsm.errors import Status
from dsm.sync.cache import Given, LockCache
from dsm.sync.reply import Reply
from dsm.sync.service import SyncHome
from dsm.sync.waiting import Waiter
from dsm.testing.simulation.release.calls import releases
from dsm.testing.simulation.release.clocks import Clock, joined
from dsm.testing.simulation.release.node import Pending, Stamp, TimedAsk, TimedNode, TimedReply
from dsm.testing.simulation.sync import Ask
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.worker import Worker
from dsm.testing.simulation.world import Violation
from dsm.vector_time import Time
from dsm.wire.calls import Cause, Op, Returned, SyncKind, cause_word, returned_of

_ACQUIRE, _RELEASE = int(Op.LOCK_ACQUIRE), int(Op.LOCK_RELEASE)
_RETURN = int(SyncKind.RETURN)
_CANCELLED, _NOT_OWNER = int(Status.CANCELLED), int(Status.NOT_OWNER)


class Recall(NamedTuple):
    """A home to the node that a lock is lent to: it is wanted back."""

    object: int


class LendingNode(TimedNode):
    """A node that lends its locks, and to which locks are lent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.home = SyncHome(self.may_lend)
        self.cache = LockCache(self.number)
        #: Of each lock that is lent to this node: what has happened before its next holder.
        self._clocks: dict[int, Clock] = {}
        #: Calls whose home was asked, and has not answered, in order; those that it was told to cancel.
        self._asked_for: dict[int, Ask] = {}
        self._cancelled: set[int] = set()
        #: ticket of a release -> lock that is owed it.
        self._paying: dict[int, int] = {}

    def may_lend(self, node: int) -> bool:
        """Whether a lock of this home may be lent to a node: to any."""
        return True

    @property
    def rests(self) -> bool:
        """Whether no call is under way here."""
        return super().rests and not self._paying

    # -- calls of workers --------------------------------------------------------------------------

    def _begin(self, queue: deque[Pending]) -> None:
        """Send the calls of a worker, up to one that releases; what a lent lock owes is paid later."""
        while queue:
            call = queue[0].call
            if call.kind == _RELEASE and call.object in self.cache:
                self._send(queue.popleft(), self.engine.fence.time)
            elif releases(call):
                super()._begin(queue)
                return
            else:
                self._send(queue.popleft(), None)

    def _send(self, pending: Pending, time: Time | None) -> None:
        thread, call = pending.thread, pending.call
        number, owner = call.object, (thread.worker.number, thread.number)
        if number not in self.cache:
            if call.kind == _ACQUIRE:
                ask = Ask(_ACQUIRE, number, self.number, pending.waiter, owner, call.a)
                self._asked_for[pending.waiter] = ask
            super()._send(pending, time)
            return
        if call.kind == _ACQUIRE:
            replies = self.cache.acquire(number, pending.waiter, owner, self.world.now)
        else:
            replies = self.cache.release(number, pending.waiter, owner, False, self.world.now)
            if replies[-1].status == _NOT_OWNER:
                raise Violation(f"node {self.number}: {owner} releases lock {number}, which it does not hold")
            self._clocks[number] = joined(self._clocks[number], pending.clock)
        self._deliver_here(replies)

    def _deliver_here(self, replies: list[Reply]) -> None:
        for reply in replies:
            self._ends(reply.object, reply.ticket, reply.status)

    def _ends(self, number: int, ticket: int, status: int) -> None:
        """A call that waits here is over."""
        thread = self.slots.get(ticket)
        if thread is None or thread.finished or not thread.waiting:
            return
        if status != _CANCELLED:
            thread.acquired = self._clocks[number]  # type: ignore[attr-defined]
        self._replied(Reply(self.number, ticket, status, object=number))

    def cancel(self, waiter: int) -> None:
        """A worker wants its call to end."""
        ask = self._asked_for.get(waiter)
        for number in self.cache:
            if self.cache.cancel(number, waiter):
                self._ends(number, waiter, _CANCELLED)
                return
        if ask is not None:
            self._cancelled.add(waiter)
        super().cancel(waiter)

    # -- lending -----------------------------------------------------------------------------------

    def deliver(self, what: tuple[int, Any]) -> None:
        """A message arrives."""
        if isinstance(what[1], Recall):
            self.post((self._recalled_by, what))
        else:
            super().deliver(what)

    def _answer(self, replies: list[Reply]) -> None:
        for reply in replies:
            if not reply.recall:
                super()._answer([reply])
            elif reply.node == self.number:
                self.recalled(reply.object)
            elif reply.node not in self.closed:
                self.network.send(self.number, reply.node, Recall(reply.object))

    def answered(self, sender: int, answer: TimedReply) -> None:
        """A reply arrives."""
        reply = answer.reply
        ask = self._asked_for.pop(reply.ticket, None)
        self._cancelled.discard(reply.ticket)
        if reply.lent:
            assert answer.stamp is not None
            self._lent(reply, ask, answer.stamp)
        super().answered(sender, answer)

    def _lent(self, reply: Reply, ask: Ask | None, stamp: Stamp) -> None:
        number = reply.object
        self.world.note(What.SYNC, self.number, number, 0, 0, f"lock {number} is lent to node {self.number}")
        dropped = [each for each in self._asked_for.values() if each.object == number]
        for each in dropped:
            del self._asked_for[each.ticket]
        waiting = [
            Waiter(self.number, each.ticket, each.owner, self.world.now)
            for each in dropped
            if each.ticket not in self._cancelled and each.ticket in self.slots
        ]
        thread = self.slots.get(reply.ticket)
        alive = ask is not None and thread is not None and thread.waiting
        self._clocks[number] = stamp.clock
        self.cache.lend(number, ask.owner if ask is not None and alive else None, waiting, self.world.now)
        if not alive:
            self.give_back(number)
        for each in dropped:
            if each.ticket in self._cancelled:
                self._cancelled.discard(each.ticket)
                self._ends(number, each.ticket, _CANCELLED)

    def _recalled_by(self, what: tuple[int, Recall]) -> None:
        if what[0] not in self.closed:
            self.recalled(what[1].object)

    def recalled(self, number: int) -> None:
        """A lock is wanted back; what its releases here owe comes first."""
        if not self.cache.recall(number):
            return
        if self.cache.owes(number):
            self.pay(number)
        else:
            self.give_back(number)

    def pay(self, number: int) -> None:
        """Perform the release that is owed; the lock follows it."""
        self._tickets += 1
        self._paying[self._tickets] = number
        self.fence_release(self._tickets)

    def do_released(self, effect: Released) -> None:
        """The writes of this node are at their homes."""
        number = self._paying.pop(effect.ticket, None)
        if number is None:
            super().do_released(effect)
        else:
            self.give_back(number)
            self.collect()

    def give_back(self, number: int) -> None:
        """Send a lock home, and behind it the calls that wait for it."""
        given = self.cache.give_back(number)
        if given is None:
            return
        self.world.note(What.SYNC, self.number, number, 0, 0, f"lock {number} leaves node {self.number}")
        clock = self._clocks.pop(number)
        held = bool(returned_of(given.word)[0] & Returned.HELD)
        # A holder takes the clock along with its own release.
        self._return(given, self.engine.fence.time, () if held else clock)
        for waiter in given.waiting:
            if number in self.cache:  # this home lent it to the first of them
                replies = self.cache.acquire(number, waiter.ticket, waiter.owner, self.world.now)
                self._deliver_here(replies)
                continue
            ask = Ask(_ACQUIRE, number, self.number, waiter.ticket, waiter.owner, waiter.owner[1])
            self._asked_for[waiter.ticket] = ask
            self._ask_home(self.objects[number].home, TimedAsk(ask, None, False))

    def _return(self, given: Given, time: Time, clock: Clock) -> None:
        number = given.object
        home = self.objects[number].home
        ask = Ask(_RETURN, number, self.number, 0, given.owner, given.owner[1], given.word)
        if home in self.closed:
            return
        self._ask_home(home, TimedAsk(ask, self.stamp(home, time, clock), False))

    # -- deaths ------------------------------------------------------------------------------------

    def _bury(self, worker: Worker) -> None:
        self.cache.forget(worker.number)
        super()._bury(worker)
        self._asked_for = {t: ask for t, ask in self._asked_for.items() if t in self.slots}

    def _tell_gone(self, worker: Worker, time: Time) -> None:
        cause = cause_word(Cause.DIED, self.number, worker.number)
        for number in self.cache:
            owner = self.cache.owner(number)
            if owner is not None and owner[0] == worker.number:
                for thread in worker.threads:
                    self._clocks[number] = joined(self._clocks[number], self.clocks.release(thread.number))
        self._deliver_here(self.cache.gone(worker.number, cause, self.world.now))
        super()._tell_gone(worker, time)
        for number in self.cache:
            if self.cache.owner(number) is None:
                self.recalled(number)

    def lost(self, number: int) -> None:
        """The coordinator declared a node dead, and this node hears of it."""
        for lock in self.cache:
            if self.objects[lock].home == number:
                self.cache.drop(lock)
        super().lost(number)
