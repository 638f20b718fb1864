"""Locks, barriers and atomic cells in the simulation: threads that use them, homes, and their checkers.

Owns programs that synchronize with `dsm.sync` and share memory under its protection, and what must
hold of them:

* *locks*: never two holders; of nodes that wait, none is overtaken more often than the lock promises;
  a counter that is read and written in two instructions under the lock loses nothing;
* *barriers*: nobody leaves before all have arrived, and what was written before is read after;
* *atomic cells*: each old value of an addition is returned once, and what returned before another
  operation began has the smaller one (linearizability of counters).

Calls and replies travel on the links of the coherence messages.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, NamedTuple

from dsm.coherence.engine import Engine
from dsm.errors import Status
from dsm.limits import ADDRESS_LOW
from dsm.sync.service import Reply, SyncHome
from dsm.sync.turns import LOCAL_HANDOVERS
from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.network import Network
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.program import SUCCESSOR, Access, Call, Operation, Touch
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.worker import WorkerRegion
from dsm.testing.simulation.world import Violation, World
from dsm.types import Region, RegionOptions, SyncObject
from dsm.wire.calls import Op, SyncKind

_REGION = 1
#: Numbers of the objects; a lock's is that of the page with its counter, too.
LOCKS = (1, 2)
BARRIER = 3
_OK, _CANCELLED = int(Status.OK), int(Status.CANCELLED)


class SyncCall(Call):
    """A call of a synchronization object."""

    __slots__ = ("a", "object")

    def __init__(self, op: Op, number: int, a: int = 0, patience: int = 0, skip: int = 0) -> None:
        super().__init__(int(op), _REGION, 0, 1, False, patience, skip)
        self.object = number
        self.a = a


class Expect(Touch):
    """A read that must return `value`."""

    __slots__ = ("value",)

    def __init__(self, access: Access, value: int) -> None:
        super().__init__(_REGION, (access,), 3)
        self.value = value


class Ask(NamedTuple):
    """A call on its way to the home of its object."""

    op: int
    object: int
    node: int
    ticket: int
    owner: tuple[int, int]
    a: int
    b: int = 0


class SyncTruth:
    """What must hold of the synchronization objects."""

    def __init__(self, nodes: int) -> None:
        self._bound = (nodes - 1) * (LOCAL_HANDOVERS + 1)
        #: lock -> thread that holds it, as the threads see it.
        self.holder: dict[int, int] = {}
        #: lock -> node -> tickets that wait at the home; (lock, node) -> how often its first was overtaken.
        self._waiting: dict[int, dict[int, deque[int]]] = {}
        self._overtaken: dict[tuple[int, int], int] = {}
        #: lock -> node that it is lent to.
        self._lent: dict[int, int] = {}
        #: barrier -> arrivals so far; (barrier, thread) -> how often it arrived.
        self._arrived: dict[int, int] = {}
        self._times: dict[tuple[int, int], int] = {}
        #: cell -> (began, ended, old value) of each addition.
        self.additions: dict[int, list[tuple[int, int, int]]] = {}
        #: counter -> sections that were run under its lock.
        self.sections: dict[int, int] = {}

    def begins(self, thread: int, call: SyncCall) -> None:
        """A thread makes a call."""
        if call.kind == Op.LOCK_RELEASE:
            if self.holder.pop(call.object) != thread:
                raise Violation(f"thread {thread} releases lock {call.object}, which another one took over")
            self.sections[call.object] = self.sections.get(call.object, 0) + 1
        elif call.kind == Op.BARRIER_WAIT:
            self._arrived[call.object] = self._arrived.get(call.object, 0) + 1
            key = call.object, thread
            self._times[key] = self._times.get(key, 0) + 1

    def ends(self, thread: int, call: SyncCall, began: int, now: int, result: int, parties: int) -> None:
        """A call of a thread was answered with OK."""
        if call.kind == Op.LOCK_ACQUIRE:
            if call.object in self.holder:
                raise Violation(f"threads {self.holder[call.object]} and {thread} hold lock {call.object}")
            self.holder[call.object] = thread
        elif call.kind == Op.BARRIER_WAIT:
            times = self._times[call.object, thread]
            if self._arrived[call.object] < times * parties:
                raise Violation(f"thread {thread} leaves barrier {call.object} early, in round {times}")
        elif call.kind == Op.ATOMIC_ADD:
            self.additions.setdefault(call.object, []).append((began, now, result))

    def at_home(self, ask: Ask, replies: list[Reply]) -> None:
        """The home of a lock handled a call: whose turn was it?"""
        waiting = self._waiting.setdefault(ask.object, {})
        if ask.op == SyncKind.RETURN:
            self._lent.pop(ask.object, None)
        elif ask.op == Op.LOCK_ACQUIRE and self._lent.get(ask.object) != ask.node:
            waiting.setdefault(ask.node, deque()).append(ask.ticket)
        for reply in replies:
            queue = waiting.get(reply.node, deque())
            if reply.ticket not in queue:
                continue
            first = queue[0] == reply.ticket
            queue.remove(reply.ticket)
            if reply.lent:  # the node has those who wait there, too
                queue.clear()
                self._lent[ask.object] = reply.node
            if first:
                self._overtaken[ask.object, reply.node] = 0
            if reply.status != _OK:
                continue
            if not first:
                raise Violation(f"lock {ask.object}: node {reply.node} is not served in order")
            for node, others in waiting.items():
                if others and node != reply.node:
                    key = ask.object, node
                    self._overtaken[key] = self._overtaken.get(key, 0) + 1
                    if self._overtaken[key] > self._bound:
                        raise Violation(f"lock {ask.object}: node {node} starves")

    def check_additions(self) -> None:
        """Old values are all different, and in an order that fits the times."""
        for number, done in self.additions.items():
            done.sort(key=lambda each: each[2])
            if [old for _, _, old in done] != list(range(len(done))):
                raise Violation(f"cell {number}: old values {[old for _, _, old in done]}")
            latest = 0
            for began, ended, old in done:
                latest = max(latest, began)
                if ended < latest:
                    raise Violation(f"cell {number}: old value {old} came before a smaller one was asked for")


class SyncNode(Node):
    """A node that is home of some objects."""

    home_class = SyncHome

    def __init__(self, world: World, network: Network, number: int, engine: Engine) -> None:
        super().__init__(world, network, number, engine)
        self.home = self.home_class()
        self.objects: dict[int, SyncObject] = {}
        self.sync_truth: SyncTruth
        self._cancels = 0

    def add_object(self, described: SyncObject) -> None:
        """Make an object known here."""
        self.objects[described.object] = described
        if described.home == self.number:
            self.home.create(described)

    def sync_call(self, what: tuple[SyncThread, SyncCall]) -> None:
        """A worker's call of an object arrives."""
        thread, call = what
        owner = thread.worker.number, thread.number
        self._ask(Ask(call.kind, call.object, self.number, thread.waiter, owner, call.a))

    def cancel(self, waiter: int) -> None:
        """A worker wants its call to end."""
        thread = self.slots.get(waiter)
        call = thread.program[thread.position] if thread is not None else None
        if isinstance(call, SyncCall):
            # Its own ticket: nobody waits for that answer here.
            self._cancels += 1
            self._ask(
                Ask(int(Op.CANCEL), call.object, self.number, 1_000_000 + self._cancels, (0, 0), waiter)
            )
        elif thread is not None:
            super().cancel(waiter)

    def deliver(self, what: tuple[int, Any]) -> None:
        """A message arrives."""
        if isinstance(what[1], Ask):
            self.post((self._asked, what[1]))
        elif isinstance(what[1], Reply):
            self.post((self._replied, what[1]))
        else:
            super().deliver(what)

    def _ask(self, ask: Ask) -> None:
        home = self.objects[ask.object].home
        if home == self.number:
            self._asked(ask)
        else:
            self.network.send(self.number, home, ask)

    def _asked(self, ask: Ask) -> None:
        self.world.note(What.SYNC, self.number, ask.op, ask.object, ask.node, f"handles {ask}")
        replies = self.home.request(
            ask.op, ask.object, ask.node, ask.ticket, ask.owner, ask.a, ask.b, self.world.now
        )
        if self.objects[ask.object].kind == "lock":
            self.sync_truth.at_home(ask, replies)
        self._answer(replies)

    def _answer(self, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.node == self.number:
                self._replied(reply)
            else:
                self.network.send(self.number, reply.node, reply)

    def _replied(self, reply: Reply) -> None:
        thread = self.slots.get(reply.ticket)
        if isinstance(thread, SyncThread) and thread.waiting:
            thread.result = reply.result
            thread.woken(reply.status)
        elif reply.ticket < 1_000_000:
            raise Violation(f"node {self.number}: {reply}, but nobody waits for it")


class SyncThread(Thread):
    """A thread that calls synchronization objects."""

    result = 0
    _began = 0

    @property
    def site(self) -> SyncNode:
        """The node, with its objects."""
        assert isinstance(self.node, SyncNode)
        return self.node

    def _call(self, call: Call, region: WorkerRegion) -> None:
        if not isinstance(call, SyncCall):
            super()._call(call, region)
            return
        what = f"thread {self.number}: {Op(call.kind).name} {call.object}"
        self.world.note(What.SYNC, self.node.number, self.number, call.kind, call.object, what)
        self.site.sync_truth.begins(self.number, call)
        self._began = self.world.now
        self.post(self.site.sync_call, (call,))
        if call.patience:
            self.world.after(call.patience, self._cancel, self.waiter)

    def _answered(self, call: Call) -> None:
        if isinstance(call, SyncCall) and self.status == _OK:
            site = self.site
            parties = site.objects[call.object].value
            site.sync_truth.ends(self.number, call, self._began, self.world.now, self.result, parties)
        super()._answered(call)

    def _access(self, operation: Touch, region: WorkerRegion) -> None:
        super()._access(operation, region)
        if isinstance(operation, Expect) and not self._fits(self.register, operation.value):
            raise Violation(
                f"thread {self.number} reads {self.register} after a barrier, not {operation.value}"
            )

    def _fits(self, found: int, expected: int) -> bool:
        return found == expected


SYNC_PARTS = Parts(node=SyncNode, thread=SyncThread)
#: Rounds of a synchronizing program, unless told otherwise.
ROUNDS = 6


def run_sync(
    seed: int, parts: Parts = SYNC_PARTS, *, rounds: int = ROUNDS, max_events: int = 400_000
) -> Cluster:
    """Run programs that synchronize, and check them.

    Parameters
    ----------
    seed
        Determines everything.
    parts
        Classes to build the simulation of, derived from those of `SYNC_PARTS`.
    rounds
        Length of the threads' programs; every other round ends with a meeting at the barrier.
    max_events
        A run that has not come to rest after so many is a failure.

    Returns
    -------
    Cluster
        At rest.

    Raises
    ------
    Violation
        If a checker objects.
    """
    random = Random(seed)
    shape = Shape(random.choice((2, 2, 3, 4, 6)), random.randint(1, 3), random.choice((1, 2)))
    truth = SyncTruth(shape.nodes)
    cluster, programs = prepare(seed, random, shape, parts, truth, rounds)
    cluster.run_programs(programs, max_events, spread=20_000)
    truth.check_additions()
    for lock in LOCKS:
        counted = cluster.truths[_REGION].pages[lock][0]
        if counted != truth.sections.get(lock, 0):
            raise Violation(
                f"counter of lock {lock} says {counted} after {truth.sections.get(lock, 0)} sections"
            )
    return cluster


def prepare(
    seed: int, random: Random, shape: Shape, parts: Parts, truth: SyncTruth, rounds: int
) -> tuple[Cluster, dict[int, list[Operation]]]:
    """Return a cluster with two locks, a barrier of all threads and an atomic, and a program a thread."""
    options = RegionOptions(nbytes=64 * 65536, page_size=65536, home="cyclic")
    shape.regions.append(Region(_REGION, options, ADDRESS_LOW, tuple(range(shape.nodes))))
    cluster = Cluster(seed, shape, parts)
    threads = len(cluster.threads)
    objects = [
        SyncObject(number, kind, f"{kind} {number}", random.randrange(shape.nodes), value)
        for number, kind, value in (
            (1, "lock", 0),
            (2, "lock", 0),
            (BARRIER, "barrier", threads),
            (4, "atomic", 0),
        )
    ]
    for node in cluster.nodes:
        assert isinstance(node, SyncNode)
        node.sync_truth = truth
        for described in objects:
            node.add_object(described)
    return cluster, {number: _program(random, number, threads, rounds) for number in range(threads)}


def _program(random: Random, number: int, threads: int, rounds: int) -> list[Operation]:
    """Return a program: sections under locks, additions, and now and then a meeting of all."""
    program: list[Operation] = []
    for round_ in range(1, rounds + 1):
        for _ in range(random.randint(1, 5)):
            if random.random() < 0.4:
                program.append(SyncCall(Op.ATOMIC_ADD, 4, 1))
                continue
            lock = random.choice(LOCKS)
            patience = random.choice((0, 0, 0, 20_000, 500_000))
            program += [
                SyncCall(Op.LOCK_ACQUIRE, lock, number, patience, skip=3),
                Touch(_REGION, ((lock, 0, None),), 1),
                Touch(_REGION, ((lock, 0, SUCCESSOR),), 2, random.choice((0, 5_000))),
                SyncCall(Op.LOCK_RELEASE, lock, number),
            ]
        if round_ % 2 == 0:
            other = random.randrange(threads)
            program += [
                Touch(_REGION, ((10 + number, 1, round_),), 4),
                SyncCall(Op.BARRIER_WAIT, BARRIER, number, skip=2),
                Expect((10 + other, 1, None), round_),
                SyncCall(Op.BARRIER_WAIT, BARRIER, number),
            ]
    return program
