"""Locks, barriers and atomic cells over the simulated network, with shared memory under their protection."""

from typing import ClassVar

import pytest

from dsm.errors import InternalError
from dsm.sync.barrier import Barrier
from dsm.sync.service import Reply, SyncHome
from dsm.sync.turns import LOCAL_HANDOVERS
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.sync import Ask, SyncNode, SyncThread, SyncTruth, run_sync
from dsm.testing.simulation.world import Violation
from dsm.wire.calls import Op

BLOCK = 10


@pytest.mark.parametrize("first", range(0, 60, BLOCK))
def test_checks_hold_for_seeds(first):
    for seed in range(first, first + BLOCK):
        cluster = run_sync(seed)
        assert cluster.world.events > 300


def test_the_same_seed_does_the_same_things():
    assert run_sync(3).world.digest == run_sync(3).world.digest != run_sync(4).world.digest


class TwoHolders(SyncHome):
    """Now and then a lock is granted to whoever asks."""

    def request(self, op, object, node, ticket, owner, a=0, b=0, now=0):
        if op == Op.LOCK_ACQUIRE and ticket % 5 == 0:
            return [Reply(node, ticket)]
        return super().request(op, object, node, ticket, owner, a, b, now)


class EarlyBarrier(SyncHome):
    """Barriers open one party too early."""

    def create(self, described):
        super().create(described)
        machine = self._machines[described.object]
        if isinstance(machine, Barrier):
            machine._parties -= 1


class TwiceTheSame(SyncHome):
    """Two additions get the same old value."""

    seen: ClassVar[int] = 0

    def request(self, op, object, node, ticket, owner, a=0, b=0, now=0):
        replies = super().request(op, object, node, ticket, owner, a, b, now)
        if op == Op.ATOMIC_ADD and replies[0].result == 3:
            return [Reply(node, ticket, 0, 2)]
        return replies


class LostReply(SyncNode):
    """A reply is lost."""

    def _replied(self, reply):
        if self.world.random.random() > 0.03:
            super()._replied(reply)


def node_with(home):
    return type("Mutated", (SyncNode,), {"home_class": home})


@pytest.mark.parametrize("home", [TwoHolders, EarlyBarrier, TwiceTheSame])
def test_a_broken_home_is_caught(home):
    parts = Parts(node=node_with(home), thread=SyncThread)
    with pytest.raises((Violation, InternalError)):
        for seed in range(30):
            run_sync(seed, parts)


def test_a_lock_that_stays_on_one_node_is_caught():
    truth = SyncTruth(2)
    acquire = int(Op.LOCK_ACQUIRE)
    truth.at_home(Ask(acquire, 1, 0, 1, (0, 0), 0), [])
    for ticket in range(2, 2 + LOCAL_HANDOVERS + 1):
        truth.at_home(Ask(acquire, 1, 1, ticket, (0, 0), 0), [Reply(1, ticket)])
    with pytest.raises(Violation, match="starves"):
        truth.at_home(Ask(acquire, 1, 1, 99, (0, 0), 0), [Reply(1, 99)])


def test_a_lost_reply_is_caught():
    with pytest.raises(Violation, match="stuck"):
        for seed in range(30):
            run_sync(seed, Parts(node=LostReply, thread=SyncThread))
