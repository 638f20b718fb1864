"""A node whose synchronization carries consistency, as a real manager does it.

Owns the calls of its workers between slot and link.  A call that releases waits for the engine's `Released`
before it is sent, with the time and the notices that the home may lack; later calls of the same worker stay
behind it.  Nobody waits for the release of a lock: its thread goes on at once.  A reply that acquires is
given to the engine first; its thread is woken when `Acquired` comes.  At a home, what a call brings is joined
into the object's time before the object's machine sees the call, and replies carry that time.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from dsm.coherence.messages import Acquired, Released
from dsm.coherence.release.intervals import decode, encode
from dsm.errors import Status
from dsm.sync.service import Reply
from dsm.sync.times import ObjectTimes
from dsm.testing.simulation.program import REHOME, Call, Operation
from dsm.testing.simulation.release.calls import TimedCall, acquires, releases
from dsm.testing.simulation.release.clocks import Clock, Clocks, joined
from dsm.testing.simulation.release.effects import ReleasePerformer
from dsm.testing.simulation.sync import Ask, SyncCall, SyncThread
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.trace import What, time_text
from dsm.testing.simulation.worker import Worker
from dsm.testing.simulation.world import Violation
from dsm.vector_time import Time, join
from dsm.wire.calls import Op

_CANCELLED = int(Status.CANCELLED)


class Stamp(NamedTuple):
    """What a message carries of consistency."""

    time: Time
    #: Encoded intervals that the receiver may lack.
    notices: bytes
    #: The real one, for the oracle.
    clock: Clock


class TimedAsk(NamedTuple):
    """A call on its way to the home of its object; without a stamp it does not release."""

    ask: Ask
    stamp: Stamp | None
    relaxed: bool


class TimedReply(NamedTuple):
    """A reply on its way; without a stamp nothing is acquired from it."""

    reply: Reply
    stamp: Stamp | None


class TimedGone(NamedTuple):
    """A node to the homes: this worker is dead, and what it wrote is at its homes."""

    worker: int
    stamp: Stamp


class Pending(NamedTuple):
    """A call that was not sent yet."""

    thread: SyncThread
    waiter: int
    call: TimedCall
    #: Of the thread, when it made the call.
    clock: Clock


class TimedNode(ReleasePerformer):
    """A node that is home of objects with times."""

    #: The real happens-before; the cluster's.
    clocks: Clocks

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._actions[Released] = self.do_released
        self._actions[Acquired] = self.do_acquired
        self.times = ObjectTimes()
        #: What other nodes are known to have learned, or will have by the time that the next message comes.
        self.informed: dict[int, Time] = {}
        #: Calls of each worker that were not sent yet; the first one waits for its `Released`.
        self.queues: dict[int, deque[Pending]] = {}
        self._tickets = 0
        #: ticket -> number of the worker whose first call waits for it.
        self.releasing: dict[int, int] = {}
        #: ticket -> reply that waits for it.
        self.acquiring: dict[int, Reply] = {}
        #: ticket -> worker that died, whose writes are on their way home.
        self.burying: dict[int, Worker] = {}
        #: Ranks without a process, and where they were.
        self.missing: dict[int, int] = {}
        #: Calls at this home whose replies acquire nothing.
        self._relaxed: set[tuple[int, int]] = set()

    @property
    def rests(self) -> bool:
        """Whether no call is under way here."""
        return not (self.releasing or self.acquiring or self.burying or any(self.queues.values()))

    # -- from workers -----------------------------------------------------------------------------

    def sync_call(self, what: tuple[SyncThread, SyncCall]) -> None:
        """A worker's call of an object arrives."""
        thread, call = what
        if thread.worker.dead:
            return
        assert isinstance(call, TimedCall)
        queue = self.queues.setdefault(thread.worker.number, deque())
        queue.append(Pending(thread, thread.waiter, call, thread.clock))  # type: ignore[attr-defined]
        if call.kind == Op.LOCK_RELEASE:
            thread.woken(int(Status.OK))
        if len(queue) == 1:
            self._begin(queue)

    def call(self, what: tuple[Thread, Call]) -> None:
        """A worker's prefetch, pin, unpin or rehome arrives."""
        thread, call = what
        if call.kind != REHOME or thread.worker.dead:
            super().call(what)
            return
        thread.asked = self.ages
        if self.regions[call.region].dropped:
            thread.woken(int(Status.CLOSED))
        else:
            self.engine.rehome(call.region, call.page, call.count, thread.waiter, self.world.now)

    def _begin(self, queue: deque[Pending]) -> None:
        """Send the calls of a worker, up to one that releases."""
        while queue:
            pending = queue[0]
            if releases(pending.call):
                self._tickets += 1
                self.releasing[self._tickets] = pending.thread.worker.number
                self.world.note(What.FENCE, self.number, self._tickets, 0, 0, f"releases as {self._tickets}")
                self.fence_release(self._tickets)
                return
            self._send(queue.popleft(), None)

    def fence_release(self, ticket: int) -> None:
        """Let the engine release."""
        self.engine.fence.release(ticket, self.world.now)

    def do_released(self, effect: Released) -> None:
        """The writes of a worker are at their homes: its call may go."""
        buried = self.burying.pop(effect.ticket, None)
        if buried is not None:
            self._tell_gone(buried, effect.time)
        else:
            queue = self.queues.get(self.releasing.pop(effect.ticket))
            if queue is not None:
                self._send(queue.popleft(), effect.time)
                self._begin(queue)
        self.collect()

    def _send(self, pending: Pending, time: Time | None) -> None:
        thread, call = pending.thread, pending.call
        owner = thread.worker.number, thread.number
        # A barrier is one of all ranks: a rank without a process breaks it, whether it was there or not.
        of_ranks = int(call.kind == Op.BARRIER_WAIT)
        ask = Ask(call.kind, call.object, self.number, pending.waiter, owner, call.a, of_ranks)
        home = self.objects[call.object].home
        stamp = None if time is None else self.stamp(home, time, pending.clock)
        self._ask_home(home, TimedAsk(ask, stamp, call.relaxed))

    def _ask_home(self, home: int, asked: TimedAsk) -> None:
        if home == self.number:
            self.asked(asked)
        else:
            self.network.send(self.number, home, asked)

    def cancel(self, waiter: int) -> None:
        """A worker wants its call to end."""
        thread = self.slots.get(waiter)
        call = thread.program[thread.position] if thread is not None else None
        if thread is None or not isinstance(call, TimedCall):
            super().cancel(waiter)
            return
        queue = self.queues.get(thread.worker.number, deque())
        for pending in list(queue)[1:]:
            if pending.waiter == waiter:
                queue.remove(pending)
                thread.woken(_CANCELLED)
                return
        if any(pending.waiter == waiter for pending in queue) or waiter in self._answered_tickets():
            return  # it is releasing or acquiring: too late
        self._cancels += 1
        ask = Ask(int(Op.CANCEL), call.object, self.number, 1_000_000 + self._cancels, (0, 0), waiter)
        self._ask_home(self.objects[call.object].home, TimedAsk(ask, None, True))

    def _answered_tickets(self) -> set[int]:
        return {reply.ticket for reply in self.acquiring.values()}

    # -- stamps -----------------------------------------------------------------------------------

    def stamp(self, node: int, time: Time, clock: Clock) -> Stamp:
        """Return what a message to `node` carries so that what is before `time` can be acquired there."""
        if node == self.number:
            return Stamp(time, b"", clock)
        known = self.informed.get(node, ())
        notices = encode(self.engine.fence.log.since(known, time))
        self.informed[node] = join(known, time)
        return Stamp(time, notices, clock)

    def learn(self, node: int, stamp: Stamp) -> None:
        """Take the notices of a message from `node`."""
        if node != self.number:
            self.informed[node] = join(self.informed.get(node, ()), stamp.time)
            self.engine.fence.log.learn(decode(memoryview(stamp.notices)))

    # -- at the home ------------------------------------------------------------------------------

    def deliver(self, what: tuple[int, Any]) -> None:
        """A message arrives."""
        if isinstance(what[1], TimedGone):
            self.post((self._told_gone, what))
        elif isinstance(what[1], TimedAsk):
            self.post((self._asked_by, what))
        elif isinstance(what[1], TimedReply):
            self.post((self._replied_by, what))
        else:
            super().deliver(what)

    def _asked_by(self, what: tuple[int, TimedAsk]) -> None:
        if what[0] not in self.closed:
            self.asked(what[1])

    def asked(self, what: TimedAsk) -> None:
        """Handle a call at the home of its object."""
        ask, stamp, relaxed = what
        if stamp is not None:
            self.learn(ask.node, stamp)
            self.joins(ask.object, stamp)
            self.clocks.arrives(ask.object, stamp.clock)
        if relaxed:
            self._relaxed.add((ask.node, ask.ticket))
        self._asked(ask)

    def joins(self, number: int, stamp: Stamp) -> None:
        """Join the time of a call into the object's."""
        self.times.join(number, stamp.time)

    def _answer(self, replies: list[Reply]) -> None:
        for reply in replies:
            stamp = None
            if (reply.node, reply.ticket) in self._relaxed:
                self._relaxed.discard((reply.node, reply.ticket))
            else:
                stamp = self.stamp(reply.node, self.times.of(reply.object), self.clocks.of(reply.object))
            answer = TimedReply(reply, stamp)
            if reply.node == self.number:
                self.answered(self.number, answer)
            elif reply.node not in self.closed:
                self.network.send(self.number, reply.node, answer)

    # -- deaths -----------------------------------------------------------------------------------

    def _bury(self, worker: Worker) -> None:
        """A dead worker calls nothing any more; what it wrote is released like everything else."""
        super()._bury(worker)
        self.queues.pop(worker.number, None)
        self._tickets += 1
        self.burying[self._tickets] = worker
        self.fence_release(self._tickets)

    def _tell_gone(self, worker: Worker, time: Time) -> None:
        clock: Clock = ()
        for thread in worker.threads:
            clock = joined(clock, self.clocks.release(thread.number))
        for node in sorted({each.home for each in self.objects.values()}):
            gone = TimedGone(worker.number, self.stamp(node, time, clock))
            if node == self.number:
                self._told_gone((self.number, gone))
            elif node not in self.closed:
                self.network.send(self.number, node, gone)

    def _told_gone(self, what: tuple[int, TimedGone]) -> None:
        node, gone = what
        if node in self.closed:
            return
        self.learn(node, gone.stamp)
        for described in self.objects.values():
            if described.home == self.number:
                self.joins(described.object, gone.stamp)
                self.clocks.arrives(described.object, gone.stamp.clock)
        self._answer(self.home.worker_gone(node, gone.worker, self.world.now))
        self._misses(node)

    def _misses(self, node: int) -> None:
        """A rank of that node has no process."""
        self.missing[len(self.missing)] = node
        self._answer(self.home.ranks_missing(dict(self.missing)))

    def begin_job(self) -> None:
        """From now on, nobody is missing."""
        self.missing.clear()
        self._answer(self.home.ranks_missing({}))

    def lost(self, number: int) -> None:
        """The coordinator declared a node dead, and this node hears of it."""
        super().lost(number)
        self._answer(self.home.node_gone(number, self.world.now))
        self._misses(number)

    # -- replies ----------------------------------------------------------------------------------

    def _replied_by(self, what: tuple[int, TimedReply]) -> None:
        if what[0] not in self.closed:
            self.answered(*what)

    def answered(self, sender: int, answer: TimedReply) -> None:
        """A reply arrives."""
        reply, stamp = answer
        if stamp is not None:
            self.learn(sender, stamp)
        thread = self.slots.get(reply.ticket)
        call: Operation | None = None
        if thread is not None and not thread.finished:
            call = thread.program[thread.position]
        if not isinstance(call, TimedCall) or thread is None or not thread.waiting:
            return  # of a lock that was released, a cancelled call, or a dead worker
        if stamp is None or not acquires(call, reply.status):
            self._replied(reply)
            return
        thread.acquired = stamp.clock  # type: ignore[attr-defined]
        self._tickets += 1
        self.acquiring[self._tickets] = reply
        text = f"acquires {time_text(stamp.time)} as {self._tickets}"
        self.world.note(What.FENCE, self.number, self._tickets, 0, 0, text)
        self.fence_acquire(self._tickets, stamp.time)

    def fence_acquire(self, ticket: int, time: Time) -> None:
        """Let the engine acquire."""
        self.engine.fence.acquire(ticket, time, self.world.now)

    def do_acquired(self, effect: Acquired) -> None:
        """No worker here can read what is old: the thread may go on."""
        reply = self.acquiring.pop(effect.ticket, None)
        if reply is None:
            raise Violation(f"node {self.number}: {effect}, but nobody acquires as {effect.ticket}")
        thread = self.slots.get(reply.ticket)
        if thread is not None and not thread.worker.dead:
            self._replied(reply)
        self.collect()
