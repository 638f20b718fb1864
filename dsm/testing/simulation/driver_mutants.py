"""Deliberate bugs of the manager, the shim and the network, put into their models.

Owns the classes; `mutants` names them and says what is wrong.  Some bugs, also of the engine, need slow
payloads, many windows or many faults of one kind to show: shape, timing, style and faults for them are here.
"""

from __future__ import annotations

from functools import cached_property
from random import Random
from typing import Any

from dsm.coherence.messages import Discard, Kind, Level, Lower, Message, Send, Wake
from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.cluster import Shape
from dsm.testing.simulation.faults import Stormy
from dsm.testing.simulation.membership import Members
from dsm.testing.simulation.network import Link, Network, Transfer
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.program import Call, Style
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.worker import LEVEL, LOCKED, MARK, PINNED, Worker, WorkerRegion
from dsm.testing.simulation.world import Timing
from dsm.types import Region, RegionOptions

#: How often a mutant that errs now and then does so.
RARELY = 0.05


def _store(node: Node, transfer: Transfer) -> None:
    """Put a payload into the frames, whatever has become of them."""
    frames = node.regions[transfer.message.region].frames
    for page, words in enumerate(transfer.payload, transfer.message.page):
        frames[page][:] = words


class SkipsInvalidation(Node):
    def do_send(self, effect: Send) -> None:
        message = effect.message
        if message.kind != Kind.INVALIDATE:
            super().do_send(effect)
            return
        done = Message(
            Kind.INVALIDATED, message.region, message.page, message.count, message.request, effect.node
        )
        self.deliver((effect.node, done))


class GrantsEarly(Node):
    def header(self, transfer: Transfer) -> None:
        super().header(transfer)
        if transfer.accepted:
            self.engine.received(transfer.message, self.world.now)

    def end(self, transfer: Transfer) -> None:
        if not transfer.accepted:
            super().end(transfer)
        else:
            _store(self, transfer)


class LosesInvalidated(Node):
    def do_send(self, effect: Send) -> None:
        if effect.message.kind != Kind.INVALIDATED or self.world.random.random() > RARELY:
            super().do_send(effect)


class LosesWake(Node):
    def do_wake(self, effect: Wake) -> None:
        if self.world.random.random() > RARELY:
            super().do_wake(effect)


class DoesNotWait(Node):
    def finish_lower(self, effect: Lower) -> None:
        super().finish_lower(effect)
        if self.lowering.pop(effect.token, None):
            self.inbox.append((self.lowered, effect.token))


class KeepsReading(Node):
    def _reading(self, effect: Lower) -> Lower:
        return Lower(effect.region, effect.page, effect.count, max(effect.level, Level.READ), effect.token)

    def begin_lower(self, effect: Lower) -> None:
        super().begin_lower(self._reading(effect))

    def finish_lower(self, effect: Lower) -> None:
        super().finish_lower(self._reading(effect))

    def do_discard(self, effect: Discard) -> None:
        pass


class ReadsFirst(Node):
    def begin_lower(self, effect: Lower) -> None:
        super().finish_lower(effect)

    def finish_lower(self, effect: Lower) -> None:
        super().begin_lower(effect)


class OverlooksLocks(Node):
    def finish_lower(self, effect: Lower) -> None:
        locked = []
        for region in self.regions[effect.region].workers:
            for page in range(effect.page, effect.page + effect.count):
                if region.applied[page] & LOCKED:
                    region.applied[page] &= ~LOCKED & 0xFF
                    locked.append((region, page))
        super().finish_lower(effect)
        for region, page in locked:
            region.applied[page] |= LOCKED


class PunchesWhileSending(Node):
    def do_discard(self, effect: Discard) -> None:
        home = self.live(effect.region, effect)
        for page in range(effect.page, effect.page + effect.count):
            home.destroy(page)


class StoresLateBytes(Node):
    def end(self, transfer: Transfer) -> None:
        if transfer.accepted:
            _store(self, transfer)
        super().end(transfer)


class DivertsOnMessageOnly(Node):
    """Looks again where a payload goes only when an INVALIDATE comes from another node."""

    def header(self, transfer: Transfer) -> None:
        super().header(transfer)
        if transfer.accepted:
            self.direct.add(transfer)

    @cached_property
    def direct(self) -> set[Transfer]:
        return set()

    def _message(self, what: tuple[int, Message | Members]) -> None:
        super()._message(what)
        if isinstance(what[1], Message) and what[1].kind == Kind.INVALIDATE:
            self.direct.difference_update([t for t in self.direct if not self.engine.accepts(t.message)])

    def end(self, transfer: Transfer) -> None:
        if transfer in self.direct:
            self.direct.remove(transfer)
            _store(self, transfer)
        super().end(transfer)


class Crashes(Stormy):
    """Nodes die in every seed; waits have no deadline."""

    choices: tuple[tuple[float, ...], ...] = ((1, 0, 0), (1, 1, 0))

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.patience = 0
        self.most = 4


class Stops(Stormy):
    """Processes are stopped for longer than waits may take."""

    choices = ((0, 0, 1),)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.patience = 1
        self.age_interval = 1_000_000
        self.most = 4


class Cuts(Crashes):
    """Links are cut in every seed: some heal, some nodes are declared dead and live on."""

    choices = ((0, 1, 0),)


class ActsOnSuspicion(Node):
    """Takes a node for dead before the coordinator says so."""

    def suspect(self, number: int) -> None:
        self.post((self.lost, number))


class HearsTheDead(Node):
    """Does not close its links to a node that was declared dead."""

    def close(self, number: int) -> None:
        pass


class SlowPages(Timing):
    """Payloads so slow that whole transactions fit between a header and its end."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.tail_chance = 0.0
        self.step_high = 1_000
        self.link_low, self.link_high = 2_000, 20_000
        self.page_high = 10_000_000


class OneBlock(Shape):
    """A few nodes and one region, in one block of which windows fit."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        nodes = random.choice((3, 4))
        options = RegionOptions(nbytes=24 * 4096, home=random.randrange(nodes))
        return Shape(nodes, 2, 1, [Region(1, options, ADDRESS_LOW, tuple(range(nodes)))], 40)


class Windows(Style):
    """Windows are read ahead all the time, in pages that others write."""

    def __init__(self, random: Random, pages: int) -> None:
        super().__init__(random, pages)
        self.weights = (8, 0, 1, 0, 0, 0)
        self.write_chance = 0.5
        self.scan_pages = self.hot = min(pages, 24)
        self.hot_chance = 1.0
        self.think = 10_000


class ReadsBeforeLock(Thread):
    _seen = 0

    def _woken(self, argument: Any) -> None:
        if not isinstance(self.program[self.position], Call):
            self._seen = self._region().home.wanted[self._page]
        super()._woken(argument)

    def _granted(self, argument: Any) -> None:
        self._take(self._seen)


class HandlerWithoutLock(Thread):
    def _lock(self, then: Any) -> None:
        self.world.after(self.world.pause(), then)


class NeighboursWithoutLock(Thread):
    def _neighbour(self, region: WorkerRegion, page: int) -> bool:
        wanted = region.home.wanted[page]
        applied = region.applied[page]
        if applied & PINNED or wanted & MARK or applied & LEVEL >= wanted & LEVEL:
            return False
        self._held.append((page, wanted & LEVEL))
        return True


class LosesAcknowledgement(Worker):
    def acknowledge(self, sequence: int) -> None:
        if self.world.random.random() > RARELY:
            super().acknowledge(sequence)


class ServiceWithoutLock(Worker):
    def _lock(self, argument: Any) -> None:
        _, _, page, count = self.commands[0]
        self._run = [(self._cursor, min(page + count, self._cursor + 16))]
        self.world.after(self.world.pause(), self._read)


class AcknowledgesEarly(Worker):
    def _begin(self, argument: Any) -> None:
        super().acknowledge(self.commands[0][0])
        super()._begin(argument)

    def acknowledge(self, sequence: int) -> None:
        pass


class _ReorderingLink(Link):
    def send(self, message: Message) -> None:
        self._arrival = 0
        super().send(message)

    def send_transfer(self, transfer: Transfer) -> None:
        self._arrival = 0
        super().send_transfer(transfer)


class ReorderingNetwork(Network):
    link_class = _ReorderingLink
