"""What the effects of an engine do to a node's frames, tables, slots and links.

Owns the frames and the wanted table of each region of a node, its slots and its granted pins.  Does what
one effect says, at once; in which order, and what else the manager does, is `node`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm.coherence.messages import Discard, Effect, Fill, Lower, Raise, Send, SendPages, Wake
from dsm.errors import Status
from dsm.testing.simulation.frames import NodeRegion
from dsm.testing.simulation.losses import Losses
from dsm.testing.simulation.network import Network
from dsm.testing.simulation.program import PIN, Call
from dsm.testing.simulation.trace import message_text
from dsm.testing.simulation.worker import LEVEL, MARK, Worker
from dsm.testing.simulation.world import Violation, World

if TYPE_CHECKING:
    from dsm.testing.simulation.thread import Thread


class Performer:
    """Memory of one node, and every effect but the second half of `Lower`."""

    #: What the loss of nodes does to pages, and may do; the cluster's.
    losses: Losses

    def __init__(self, world: World, network: Network, number: int) -> None:
        self.world = world
        self.network = network
        self.number = number
        self.regions: dict[int, NodeRegion] = {}
        self.workers: list[Worker] = []
        #: Slots in use, by waiter.
        self.slots: dict[int, Thread] = {}
        #: Pins that were granted and not released, by worker.
        self.pins: dict[Worker, list[Call]] = {}
        #: Nodes of which this one heard that they are dead: nothing goes there, nothing comes from there.
        self.closed: set[int] = set()
        #: Calls of `Engine.age` that a wait survives (0: any number), and how many there were.
        self.patience = 0
        self.ages = 0
        self._actions: dict[type, Callable[[Any], None]] = {
            Send: self.do_send,
            SendPages: self.do_send_pages,
            Fill: self.do_fill,
            Raise: self.do_raise,
            Wake: self.do_wake,
            Discard: self.do_discard,
        }

    def perform(self, effect: Effect) -> None:
        """Do what any effect but `Lower` says."""
        self._actions[type(effect)](effect)

    def live(self, number: int, effect: object) -> NodeRegion:
        """Return the region of an effect, which must not have been dropped."""
        home = self.regions[number]
        if home.dropped:
            raise Violation(f"node {self.number}: {effect} after the region was dropped")
        return home

    def do_send(self, effect: Send) -> None:
        """Send a message."""
        if effect.node == self.number:
            raise Violation(f"node {self.number} sends to itself: {message_text(effect.message)}")
        if self.losses.gone:
            self.losses.sends(self.number, effect)
        if effect.node not in self.closed and self.network.reaches(effect.node):
            self.network.send(self.number, effect.node, effect.message)

    def do_send_pages(self, effect: SendPages) -> None:
        """Send frames."""
        if effect.node == self.number:
            raise Violation(f"node {self.number} sends pages to itself: {message_text(effect.message)}")
        home = self.live(effect.message.region, effect)
        if self.losses.gone:
            self.losses.sends(self.number, effect)
        if effect.node not in self.closed and self.network.reaches(effect.node):
            self.network.send_pages(self.number, effect.node, effect.message, home)

    def do_fill(self, effect: Fill) -> None:
        """Fill frames with the region's pattern."""
        home = self.live(effect.region, effect)
        for page in range(effect.page, effect.page + effect.count):
            home.truth.overwritten(self.number, page, "fills")
            home.changed(page)
            home.doomed.discard(page)
            home.frames[page][:] = [home.fill] * home.words

    def do_raise(self, effect: Raise) -> None:
        """Let workers map pages."""
        home = self.live(effect.region, effect)
        wanted = home.wanted
        for page in range(effect.page, effect.page + effect.count):
            home.truth.raised(self.number, page, effect.level, home.frames[page])
            wanted[page] |= effect.level
        if effect.mark != -1:
            wanted[effect.mark] |= MARK

    def do_wake(self, effect: Wake) -> None:
        """Complete a slot."""
        thread = self.slots.get(effect.waiter)
        if thread is None or not thread.waiting or thread.waiter != effect.waiter:
            if thread is not None and thread.worker.dead:
                self._pinned(thread, effect.status)
                return
            raise Violation(f"node {self.number}: {effect}, but nobody waits as {effect.waiter}")
        self._pinned(thread, effect.status)
        if effect.status == Status.PAGE_LOST:
            self.losses.check(self.number, thread, effect)
        elif effect.status == Status.PAGE_TIMEOUT and not 0 < self.patience <= self.ages - thread.asked:
            raise Violation(f"node {self.number}: {effect} early, at age {self.ages}: {thread.describe()}")
        elif effect.status == Status.PAGE_TIMEOUT:
            self.losses.tally["waits that were too long"] += 1
        thread.woken(effect.status)

    def _pinned(self, thread: Thread, status: int) -> None:
        """Note a granted pin, which the manager must release if its worker dies."""
        operation = thread.program[thread.position]
        if status == Status.OK and isinstance(operation, Call) and operation.kind == PIN:
            self.pins.setdefault(thread.worker, []).append(operation)

    def do_discard(self, effect: Discard) -> None:
        """Return the memory of frames, once they are sent."""
        home = self.live(effect.region, effect)
        for page in range(effect.page, effect.page + effect.count):
            home.truth.overwritten(self.number, page, "discards")
            if page in home.sending:
                home.doomed.add(page)
            else:
                home.destroy(page)

    def begin_lower(self, effect: Lower) -> None:
        """First half: what is wanted."""
        home = self.live(effect.region, effect)
        wanted = home.wanted
        level = int(effect.level)
        for page in range(effect.page, effect.page + effect.count):
            wanted[page] = min(wanted[page] & LEVEL, level)
            home.truth.lowered(self.number, page, level)
