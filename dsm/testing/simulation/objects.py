"""Readers and writers, semaphores, events and conditions in the simulation: programs and their checkers.

Owns what must hold of them, beside what `dsm.testing.simulation.sync` checks of locks and barriers:

* *rwlocks*: one holds it alone or many read; a counter that is read and written under it loses nothing;
* *semaphores*: never more units are taken than there are;
* *events*: what was written before one was set is read by whoever waited for it;
* *conditions*: who waits has given the lock up and holds it again when it was notified; nobody is notified
  more often than somebody notifies, and nobody waits for ever for a lock that is free.
"""

from __future__ import annotations

from random import Random

from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.program import SUCCESSOR, Operation, Touch
from dsm.testing.simulation.sync import Ask, Expect, SyncCall, SyncNode, SyncThread, SyncTruth
from dsm.testing.simulation.world import Violation
from dsm.types import Region, RegionOptions, SyncObject
from dsm.wire.calls import NOTIFY_ALL, Op, notify_word

_REGION = 1
#: Numbers of the objects; those of locks are of the pages with their counters, too.
LOCK, RWLOCK, CONDITION, SEMAPHORE, BOUNDED = 1, 2, 3, 4, 5
UNITS = 2
#: Each thread's event, and the page that it publishes with it.
EVENT, PUBLISHED = 10, 10


class ObjectCall(SyncCall):
    """A call with its second operand."""

    __slots__ = ("b",)

    def __init__(self, op: Op, number: int, a: int = 0, b: int = 0, patience: int = 0, skip: int = 0) -> None:
        super().__init__(op, number, a, patience, skip)
        self.b = b


class ObjectTruth(SyncTruth):
    """What must hold of the objects."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        #: rwlock -> threads that read under it.
        self.readers: dict[int, set[int]] = {}
        #: semaphore -> units that threads have.
        self.taken: dict[int, int] = {}
        #: Threads that were notified, as homes and as they themselves say.
        self.notified = self.woken = 0

    def _end_section(self, thread: int, number: int) -> None:
        if self.holder.pop(number, -1) != thread:
            raise Violation(f"thread {thread} gives lock {number} up, which another one took over")
        self.sections[number] = self.sections.get(number, 0) + 1

    def begins(self, thread: int, call: SyncCall) -> None:
        """A thread makes a call."""
        number = call.object
        if call.kind == Op.RW_RELEASE and thread in self.readers.get(number, ()):
            self.readers[number].remove(thread)
        elif call.kind in (Op.RW_RELEASE, Op.CONDITION_WAIT):
            self._end_section(thread, number)
        elif call.kind == Op.SEMAPHORE_RELEASE and isinstance(call, ObjectCall):
            self.taken[number] -= call.b
        else:
            super().begins(thread, call)

    def ends(self, thread: int, call: SyncCall, began: int, now: int, result: int, parties: int) -> None:
        """A call of a thread was answered with OK."""
        number = call.object
        if call.kind in (Op.RW_READ, Op.RW_WRITE, Op.CONDITION_WAIT):
            if number in self.holder:
                raise Violation(f"threads {self.holder[number]} and {thread} hold lock {number}")
            readers = self.readers.setdefault(number, set())
            if call.kind == Op.RW_READ:
                readers.add(thread)
                return
            if readers:
                raise Violation(f"thread {thread} writes under rwlock {number} while {readers} read")
            self.holder[number] = thread
            self.woken += call.kind == Op.CONDITION_WAIT
        elif call.kind == Op.SEMAPHORE_ACQUIRE and isinstance(call, ObjectCall):
            self.taken[number] = taken = self.taken.get(number, 0) + call.b
            if taken > UNITS:
                raise Violation(f"{taken} units of semaphore {number} are taken; it has {UNITS}")
        elif call.kind == Op.CONDITION_NOTIFY:
            self.notified += result
        else:
            super().ends(thread, call, began, now, result, parties)

    def check(self, counters: dict[int, int]) -> None:
        """Everything has come to rest; `counters` are what stands on the locks' pages."""
        if self.woken > self.notified:
            raise Violation(f"{self.woken} threads were woken by {self.notified} notifications")
        if self.holder or any(self.readers.values()) or any(self.taken.values()):
            raise Violation(f"held at rest: {self.holder}, {self.readers}, {self.taken}")
        for number, counted in counters.items():
            if counted != self.sections.get(number, 0):
                raise Violation(
                    f"counter of lock {number} says {counted} after {self.sections.get(number, 0)} sections"
                )


class ObjectNode(SyncNode):
    """A node that is home of some objects."""

    def sync_call(self, what: tuple[SyncThread, SyncCall]) -> None:
        """A worker's call of an object arrives."""
        thread, call = what
        owner = thread.worker.number, thread.number
        b = call.b if isinstance(call, ObjectCall) else 0
        self._ask(Ask(call.kind, call.object, self.number, thread.waiter, owner, call.a, b))


OBJECT_PARTS = Parts(node=ObjectNode, thread=SyncThread)


def run_objects(
    seed: int, parts: Parts = OBJECT_PARTS, *, rounds: int = 6, max_events: int = 400_000
) -> ObjectTruth:
    """Run programs that use the objects, and check them.

    Parameters
    ----------
    seed
        Determines everything.
    parts
        Classes to build the simulation of, derived from those of `OBJECT_PARTS`.
    rounds
        Length of the threads' programs.
    max_events
        A run that has not come to rest after so many is a failure.

    Returns
    -------
    ObjectTruth
        What was counted.

    Raises
    ------
    Violation
        If a checker objects.
    """
    random = Random(seed)
    shape = Shape(random.choice((2, 2, 3, 4)), random.randint(1, 3), random.choice((1, 2)))
    options = RegionOptions(nbytes=64 * 65536, page_size=65536, home="cyclic")
    shape.regions.append(Region(_REGION, options, ADDRESS_LOW, tuple(range(shape.nodes))))
    cluster, truth = Cluster(seed, shape, parts), ObjectTruth(shape.nodes)
    threads = len(cluster.threads)
    objects = _objects(random, shape.nodes, threads)
    for node in cluster.nodes:
        assert isinstance(node, SyncNode)
        node.sync_truth = truth
        for described in objects:
            node.add_object(described)
    programs = {number: _program(random, number, threads, rounds) for number in range(threads)}
    cluster.run_programs(programs, max_events, spread=20_000)
    pages = cluster.truths[_REGION].pages
    truth.check({number: pages[number][0] for number in (LOCK, RWLOCK)})
    return truth


def _objects(random: Random, nodes: int, threads: int) -> list[SyncObject]:
    homes = [random.randrange(nodes) for _ in range(BOUNDED + 1)]
    return [
        SyncObject(LOCK, "lock", "lock", homes[LOCK]),
        SyncObject(RWLOCK, "rwlock", "rwlock", homes[RWLOCK]),
        SyncObject(CONDITION, "condition", "condition", homes[LOCK], LOCK),
        SyncObject(SEMAPHORE, "semaphore", "semaphore", homes[SEMAPHORE], UNITS),
        SyncObject(BOUNDED, "semaphore", "bounded", homes[BOUNDED], UNITS, True),
        *(
            SyncObject(EVENT + number, "event", f"event {number}", random.randrange(nodes))
            for number in range(threads)
        ),
    ]


def _count(number: int, random: Random) -> list[Operation]:
    """Return what adds one to a lock's counter, in two instructions."""
    return [
        Touch(_REGION, ((number, 0, None),), 1),
        Touch(_REGION, ((number, 0, SUCCESSOR),), 2, random.choice((0, 5_000))),
    ]


def _program(random: Random, number: int, threads: int, rounds: int) -> list[Operation]:
    """Return a thread's program; every wait that needs somebody else may be given up."""
    program: list[Operation] = []
    for _ in range(rounds):
        patience = random.choice((0, 0, 20_000, 500_000))
        match random.choice(("write", "read", "read", "units", "wait", "notify", "notify")):
            case "write":
                program += [
                    ObjectCall(Op.RW_WRITE, RWLOCK, number, 0, patience, skip=3),
                    *_count(RWLOCK, random),
                    ObjectCall(Op.RW_RELEASE, RWLOCK, number),
                ]
            case "read":
                program += [
                    ObjectCall(Op.RW_READ, RWLOCK, number, 0, patience, skip=2),
                    Touch(_REGION, ((RWLOCK, 0, None),), 3, random.choice((0, 5_000))),
                    ObjectCall(Op.RW_RELEASE, RWLOCK, number),
                ]
            case "units":
                semaphore, units = random.choice((SEMAPHORE, BOUNDED)), random.randint(1, UNITS)
                program += [
                    ObjectCall(Op.SEMAPHORE_ACQUIRE, semaphore, number, units, patience, skip=2),
                    Touch(_REGION, ((8, 0, None),), 4, random.choice((0, 5_000))),
                    ObjectCall(Op.SEMAPHORE_RELEASE, semaphore, number, units),
                ]
            case "wait":
                program += [
                    ObjectCall(Op.LOCK_ACQUIRE, LOCK, number, 0, patience, skip=6),
                    *_count(LOCK, random),
                    ObjectCall(
                        Op.CONDITION_WAIT, LOCK, number, CONDITION, random.choice((30_000, 800_000)), skip=3
                    ),
                    *_count(LOCK, random),
                    ObjectCall(Op.LOCK_RELEASE, LOCK, number),
                ]
            case _:
                count = random.choice((1, 1, 2, NOTIFY_ALL))
                program += [
                    ObjectCall(Op.LOCK_ACQUIRE, LOCK, number, 0, patience, skip=4),
                    *_count(LOCK, random),
                    ObjectCall(Op.CONDITION_NOTIFY, LOCK, number, notify_word(CONDITION, count)),
                    ObjectCall(Op.LOCK_RELEASE, LOCK, number),
                ]
    other = random.randrange(threads)
    program += [
        Touch(_REGION, ((PUBLISHED + number, 1, 7 + number),), 5),
        ObjectCall(Op.EVENT_SET, EVENT + number, number),
        ObjectCall(Op.EVENT_WAIT, EVENT + other, number),
        Expect((PUBLISHED + other, 1, None), 7 + other),
    ]
    return program
