"""Locks, barriers and atomic cells over the simulated network, with shared memory under their protection."""

from typing import ClassVar

import pytest

from dsm.errors import InternalError
from dsm.sync.barrier import Barrier
from dsm.sync.lock import Lock
from dsm.sync.service import Reply, SyncHome
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.sync import SyncNode, SyncThread, run_sync
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


class Unfair(SyncHome):
    """A lock stays on its node for as long as somebody there wants it."""

    def create(self, described):
        super().create(described)
        machine = self._machines[described.object]
        if isinstance(machine, Lock):
            machine.__class__ = _Greedy


class _Greedy(Lock):
    def _pass_on(self, now):
        self._local = 0
        if len(self._waiting) > 1 and self._node in self._waiting:
            others = {n: q for n, q in self._waiting.items() if n != self._node}
            self._waiting = {self._node: self._waiting[self._node]}
            reply = super()._pass_on(now)
            self._waiting = {**self._waiting, **others}
            return reply
        return super()._pass_on(now)


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


def test_a_lost_reply_is_caught():
    with pytest.raises(Violation, match="stuck"):
        for seed in range(30):
            run_sync(seed, Parts(node=LostReply, thread=SyncThread))
