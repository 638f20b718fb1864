"""Deliberate bugs of locks that are lent to nodes.

Owns the classes; `mutants` names them and says what is wrong.
"""

from __future__ import annotations

from random import Random
from typing import Any

from dsm.sync.lock import Lock
from dsm.sync.reply import Reply
from dsm.sync.service import SyncHome
from dsm.sync.waiting import Waiter
from dsm.testing.simulation.release.lending import LendingNode
from dsm.testing.simulation.release.node import Stamp
from dsm.testing.simulation.release.plan import Manners
from dsm.testing.simulation.sync import Ask
from dsm.types import SyncObject


class ReturnsUnpaid(LendingNode):
    """Gives a lock back without the release that it owes."""

    def pay(self, number: int) -> None:
        self.give_back(number)


class ForgetsRecalls(LendingNode):
    """Does not give a lock back."""

    def recalled(self, number: int) -> None:
        pass


class ForgetsCrossed(LendingNode):
    """Does not take the calls that its home has dropped."""

    def _lent(self, reply: Reply, ask: Ask | None, stamp: Stamp) -> None:
        self._asked_for.clear()
        super()._lent(reply, ask, stamp)


class _LendsTwice(Lock):
    def _wanted(self, waiter: Waiter) -> list[Reply]:
        if waiter.node == self._lent:
            return super()._wanted(waiter)
        return [self._grant(waiter.node, waiter.ticket, waiter.owner, waiter.since)]


class _TwiceHome(SyncHome):
    def create(self, described: SyncObject) -> None:
        super().create(described)
        machine = self._machines[described.object]
        if isinstance(machine, Lock):
            machine.__class__ = _LendsTwice


class LendsTwice(LendingNode):
    """Grants a lock that is lent to another node."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.home = _TwiceHome(self.may_lend)


class Locking(Manners):
    """Programs that use locks most of all."""

    @classmethod
    def draw(cls, random: Random) -> Manners:
        manners = super().draw(random)
        manners.write_chance = 0.7
        manners.weights = (1, 0, 0, 0, 0)
        return manners
