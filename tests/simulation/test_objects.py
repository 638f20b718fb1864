"""Readers and writers, semaphores, events and conditions over the simulated network, with shared memory."""

import pytest

from dsm.errors import InternalError
from dsm.sync.condition import Condition
from dsm.sync.event import Event
from dsm.sync.rwlock import RWLock
from dsm.sync.semaphore import Semaphore
from dsm.sync.service import SyncHome
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.objects import ObjectNode, run_objects
from dsm.testing.simulation.sync import SyncThread
from dsm.testing.simulation.world import Violation
from dsm.wire.calls import Op

BLOCK = 15


@pytest.mark.parametrize("first", range(0, 60, BLOCK))
def test_checks_hold_for_seeds(first):
    notified = woken = 0
    for seed in range(first, first + BLOCK):
        truth = run_objects(seed)
        notified, woken = notified + truth.notified, woken + truth.woken
    assert woken > BLOCK // 3, (notified, woken)


def home_with(machine_class, method, replacement):
    """A home whose machines of that class have another method."""
    mutated = type("Mutated", (machine_class,), {method: replacement})

    class Home(SyncHome):
        def create(self, described):
            super().create(described)
            machine = self._machines[described.object]
            if type(machine) is machine_class:
                machine.__class__ = mutated

    return Home


def readers_beside_a_writer(self, op, node, ticket, owner, a, b, now):
    if op == Op.RW_READ and self._alone is not None and self._alone.owner != owner:
        self._reading[node, owner] = now
        return [self._reply(node, ticket)]
    return RWLock.request(self, op, node, ticket, owner, a, b, now)


def readers_are_forgotten(self, now):
    self._reading.clear()
    return RWLock._go_on(self, now)


def a_unit_too_many(self, op, node, ticket, owner, a, b, now):
    if op == Op.SEMAPHORE_RELEASE:
        self._free += 1
    return Semaphore.request(self, op, node, ticket, owner, a, b, now)


def set_without_waking(self, op, node, ticket, owner, a, b, now):
    if op == Op.EVENT_SET:
        self._is_set = True
        return [self._reply(node, ticket)]
    return Event.request(self, op, node, ticket, owner, a, b, now)


def set_from_the_beginning(self, op, node, ticket, owner, a, b, now):
    self._is_set = True
    return Event.request(self, op, node, ticket, owner, a, b, now)


def notified_twice(self, count, now):
    for waiter in list(self._waiting)[:1]:
        self._lock.notified(waiter)
    return Condition.notify(self, count, now)


@pytest.mark.parametrize(
    ("machine", "method", "mutant"),
    [
        (RWLock, "request", readers_beside_a_writer),
        (RWLock, "_go_on", readers_are_forgotten),
        (Semaphore, "request", a_unit_too_many),
        (Event, "request", set_without_waking),
        (Event, "request", set_from_the_beginning),
        (Condition, "notify", notified_twice),
    ],
)
def test_a_broken_home_is_caught(machine, method, mutant):
    node = type("Mutated", (ObjectNode,), {"home_class": home_with(machine, method, mutant)})
    with pytest.raises((Violation, InternalError)):
        for seed in range(30):
            run_objects(seed, Parts(node=node, thread=SyncThread))
