"""Workers that die among locks, barriers and shared memory: what the others must meet.

Owns threads that are told so, nodes that pass the news on as managers do, and what must hold:

* who gets a lock whose owner died, or was released inconsistent, is told; nobody is told without a death;
* the counter under a lock is the number of its sections, or one more where a dead owner had written it;
* a barrier breaks only after a death, and then for everybody: nobody waits for ever, at a lock either.

Half of the runs meet at a barrier of all ranks (a worker is a rank), where deaths may come at any time; in
the others a worker belongs to the barrier once it has met the others there, and dies only then.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from dsm.errors import Status
from dsm.sync.service import Reply
from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.program import Call
from dsm.testing.simulation.sync import (
    LOCKS,
    ROUNDS,
    Ask,
    SyncCall,
    SyncNode,
    SyncThread,
    SyncTruth,
    prepare,
)
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.worker import Worker
from dsm.testing.simulation.world import Violation
from dsm.wire.calls import Op

_OK, _BROKEN, _OWNER_DIED = int(Status.OK), int(Status.BROKEN), int(Status.OWNER_DIED)
#: How often a thread that was told releases the lock as it found it.
_GIVES_UP = 0.3


class Gone(NamedTuple):
    """A node to every home: this worker is dead."""

    node: int
    worker: int


class Ranks(NamedTuple):
    """The coordinator to every home: ranks without a process, and where each was."""

    missing: dict[int, int]


class MortalTruth(SyncTruth):
    """What must hold when workers die.  (The order of waiters is checked where nobody does.)"""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.memory: Truth
        #: Locks whose owner died, or released it inconsistent.
        self.orphaned: set[int] = set()
        self.deaths = 0
        #: How often a thread was told that an owner died, and that the barrier is broken.
        self.told = self.broken = 0
        #: Additions of the dead whose answer nobody took.
        self.unheard_additions = 0
        #: Times that a thread left the barrier with all others.
        self.met = 0

    def at_home(self, ask: Ask, replies: list[Reply]) -> None:
        """See above."""

    def takes(self, thread: int, lock: int, told: bool) -> None:
        """A thread got a lock, and was `told` or not that its owner died."""
        if lock in self.holder:
            raise Violation(f"threads {self.holder[lock]} and {thread} hold lock {lock}")
        self.holder[lock] = thread
        if lock in self.orphaned and not told:
            raise Violation(f"thread {thread} got lock {lock} and was not told that its owner died")
        self.orphaned.discard(lock)
        if told:
            if not self.deaths:
                raise Violation(f"thread {thread} was told that the owner of lock {lock} died; nobody did")
            self.told += 1
            self.sections[lock] = self.check_counter(lock, 1)

    def gives_back(self, thread: int, lock: int) -> None:
        """A thread releases a lock as it got it from a dead owner."""
        if self.holder.pop(lock) != thread:
            raise Violation(f"thread {thread} releases lock {lock}, which another one took over")
        self.orphaned.add(lock)

    def check_counter(self, lock: int, more: int) -> int:
        """Return a lock's counter: the number of sections that were ended, or up to `more` above it."""
        counted, sections = self.memory.pages[lock][0], self.sections.get(lock, 0)
        if not sections <= counted <= sections + more:
            raise Violation(f"counter of lock {lock} says {counted} after {sections} sections")
        return counted

    def dies(self, worker: Worker) -> None:
        """A worker dies with all its threads."""
        self.deaths += 1
        for thread in worker.threads:
            for lock in [lock for lock, holder in self.holder.items() if holder == thread.number]:
                del self.holder[lock]
                self.orphaned.add(lock)
            for call in thread.program[thread.position : thread.position + 1]:
                self.unheard_additions += isinstance(call, SyncCall) and call.kind == Op.ATOMIC_ADD

    def check_additions(self) -> None:
        """Old values are all different; only additions of the dead are missing among them."""
        for number, done in self.additions.items():
            values = sorted(old for _, _, old in done)
            if len(set(values)) < len(values) or values[-1] >= len(values) + self.unheard_additions:
                raise Violation(f"cell {number}: old values {values}, {self.unheard_additions} not known")


class MortalNode(SyncNode):
    """A node whose workers die: it tells every home, and the coordinator tells them who is missing."""

    #: Whether the barrier's parties are the ranks of the job.
    of_ranks = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Calls of dead workers: their answers may still come.
        self._unheard: set[int] = set()
        #: At node 0: ranks without a process, and where they were.
        self._missing: dict[int, int] = {}

    @property
    def truth(self) -> MortalTruth:
        """What must hold."""
        assert isinstance(self.sync_truth, MortalTruth)
        return self.sync_truth

    def sync_call(self, what: tuple[SyncThread, SyncCall]) -> None:
        """A worker's call of an object arrives; that of a buried worker does not count."""
        thread, call = what
        if thread.waiter not in self.slots:
            return
        assert isinstance(thread, MortalThread)
        is_wait = call.kind == Op.BARRIER_WAIT
        b = self.of_ranks if is_wait else thread.gives_back
        owner = thread.worker.number, thread.number
        self._ask(Ask(call.kind, call.object, self.number, thread.waiter, owner, call.a, int(b)))

    def deliver(self, what: tuple[int, Any]) -> None:
        """A message arrives."""
        if isinstance(what[1], Gone | Ranks):
            self.post((self._told, what[1]))
        else:
            super().deliver(what)

    def _bury(self, worker: Worker) -> None:
        """A worker died."""
        self._unheard |= {waiter for waiter, thread in self.slots.items() if thread.worker is worker}
        super()._bury(worker)
        self._tell_all(Gone(self.number, worker.number))

    def _tell_all(self, message: Gone | Ranks) -> None:
        for node in range(len(self.network.nodes)):
            if node == self.number:
                self._told(message)
            else:
                self.network.send(self.number, node, message)

    def _told(self, message: Gone | Ranks) -> None:
        if isinstance(message, Ranks):
            self._answer(self.home.ranks_missing(message.missing))
            return
        self._answer(self.home.worker_gone(message.node, message.worker, self.world.now))
        if self.number == 0:
            self._missing[len(self._missing)] = message.node
            self._tell_all(Ranks(dict(self._missing)))

    def _replied(self, reply: Reply) -> None:
        thread = self.slots.get(reply.ticket)
        if reply.ticket not in self._unheard and not (thread is not None and thread.worker.dead):
            super()._replied(reply)


class MortalThread(SyncThread):
    """A thread that is told of deaths and goes on."""

    #: It was told that the owner of the lock it holds died, and releases it as it is.
    gives_back = False

    def _call(self, call: Call, region: Any) -> None:
        if self.gives_back and call.kind == Op.LOCK_RELEASE:
            assert isinstance(call, SyncCall)
            self.truth.gives_back(self.number, call.object)
            self._began = self.world.now
            self.post(self.site.sync_call, (call,))
            return
        self.gives_back = False
        super()._call(call, region)

    @property
    def truth(self) -> MortalTruth:
        """What must hold."""
        assert isinstance(self.site, MortalNode)
        return self.site.truth

    def _answered(self, call: Call) -> None:
        if not isinstance(call, SyncCall):
            super()._answered(call)
            return
        granted = self.status in (_OK, _OWNER_DIED) and call.kind == Op.LOCK_ACQUIRE
        if granted:
            self.truth.takes(self.number, call.object, self.status == _OWNER_DIED)
        if granted and self.status == _OWNER_DIED:
            self.gives_back = self.world.random.random() < _GIVES_UP
            self._go_on(2 if self.gives_back else 0)  # without touching what the lock protects
        elif granted:
            self._go_on(0)
        elif self.status == _BROKEN and call.kind == Op.BARRIER_WAIT:
            if not self.truth.deaths:
                raise Violation(f"thread {self.number}: the barrier breaks, and nobody has died")
            self.truth.broken += 1
            self._go_on(call.skip)
        else:
            self.truth.met += self.status == _OK and call.kind == Op.BARRIER_WAIT
            super()._answered(call)

    def _go_on(self, skip: int) -> None:
        self.node.release(self.waiter)
        self.waiter = 0
        self.position += skip
        self._next()

    def _fits(self, found: int, expected: int) -> bool:
        """Who was refused at the barrier goes on to the next round, while others still look."""
        return found >= expected


class RankNode(MortalNode):
    """Where the barrier is one of all ranks."""

    of_ranks = True


MORTAL_PARTS = Parts(node=MortalNode, thread=MortalThread)
RANK_PARTS = Parts(node=RankNode, thread=MortalThread)


def run_deaths(
    seed: int, parts: Parts | None = None, *, rounds: int = ROUNDS, max_events: int = 400_000
) -> Cluster:
    """Run programs that synchronize, while workers die, and check what the others meet.

    Parameters
    ----------
    seed
        Determines everything.
    parts
        Classes to build the simulation of; default: `MORTAL_PARTS` or `RANK_PARTS`.
    rounds, max_events
        As in `run_sync`.

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
    shape = Shape(random.choice((2, 2, 3, 4)), random.randint(1, 3), random.choice((1, 2)))
    if parts is None:
        parts = random.choice((MORTAL_PARTS, RANK_PARTS))
    truth = MortalTruth(shape.nodes)
    cluster, programs = prepare(seed, random, shape, parts, truth, rounds)
    truth.memory = next(iter(cluster.truths.values()))
    workers = [worker for node in cluster.nodes for worker in node.workers]
    for worker in random.sample(workers, random.randint(1, min(3, len(workers) - 1))):
        cluster.world.after(random.randrange(1, 3_000_000), _die, (cluster, truth, worker))
    cluster.run_programs(programs, max_events, spread=20_000)
    truth.check_additions()
    for lock in LOCKS:
        truth.check_counter(lock, int(lock in truth.orphaned))
    return cluster


def _die(what: tuple[Cluster, MortalTruth, Worker]) -> None:
    """Let a worker die, once all others know that it belongs to the barrier."""
    cluster, truth, worker = what
    if all(thread.finished for thread in cluster.threads):
        return
    node = worker.node
    assert isinstance(node, MortalNode)
    if not node.of_ranks and truth.met < len(cluster.threads) and not truth.deaths:
        cluster.world.after(cluster.world.now, _die, what)  # at twice the time: a hold may last long
        return
    truth.dies(worker)
    worker.die()
