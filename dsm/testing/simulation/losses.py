"""What the loss of nodes does to pages, and what it may do.

Owns the set of nodes that are gone (crashed, or declared dead) and the judgement of every page that is
reported lost.  A page may be lost when its directory is gone; otherwise only when a gone node was
*involved* with it (as its owner, or a requester), and at some time since then no survivor had a readable
copy.  Counts what the losses hit, so that one sees them bite.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.directory import Transaction
from dsm.coherence.engine import Engine
from dsm.coherence.messages import Effect, Kind, Message, Send, SendPages, Wake
from dsm.coherence.table import LOST
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.world import Violation

if TYPE_CHECKING:
    from dsm.coherence.region import ModelRegion
    from dsm.coherence.sequential import SequentialRegion
    from dsm.testing.simulation.thread import Thread

#: Requests, and what a directory sends on behalf of one: all name the requester.
_FOR_REQUESTER = frozenset({Kind.GET, Kind.AHEAD, Kind.FETCH, Kind.INVALIDATE, Kind.GRANT, Kind.DATA})


class Losses:
    """Nodes that are gone, and the pages that they were involved with."""

    def __init__(self) -> None:
        #: Nodes (as bits) that crashed or were declared dead.
        self.gone = 0
        self.engines: dict[int, Engine] = {}
        self.truths: dict[int, Truth] = {}
        #: How often each kind of fault hit something.
        self.tally: Counter[str] = Counter()
        self._involved: dict[int, set[int]] = {}
        #: region, page -> the gone owner of a page that has other copies.
        self._recovering: dict[tuple[int, int], int] = {}

    def add_region(self, number: int, truth: Truth) -> None:
        """Watch over a region."""
        self.truths[number] = truth
        truth.gone = self.gone
        if self.gone:
            truth.bare.update(range(len(truth.pages)))
        self._involved[number] = set()

    def is_gone(self, node: int) -> bool:
        """Whether a node crashed or was declared dead."""
        return bool(self.gone >> node & 1)

    # -- what happens ----------------------------------------------------------------------------

    def node_gone(self, node: int) -> None:
        """A node crashed, or was declared dead: note what it was involved with."""
        if self.is_gone(node):
            return
        self.gone |= 1 << node
        for truth in self.truths.values():
            truth.node_gone(node)
        for number, engine in self.engines.items():
            if number == node or not self.is_gone(number):
                for name, region in engine.sequential.items():
                    self._involve(region, name, node)

    def _involve(self, region: SequentialRegion, number: int, node: int) -> None:
        involved = self._involved[number]
        involved.update(np.flatnonzero(region.table.owners == node + 1).tolist())
        for page, transaction in region.directory.busy.items():
            if any(asked.node == node for asked, _, _ in transaction.queue or ()) or (
                isinstance(transaction, Transaction) and transaction.message.node == node
            ):
                involved.add(page)

    def sends(self, sender: int, effect: Send | SendPages) -> None:
        """A node sends something while some node is gone."""
        message = effect.message
        if self.is_gone(effect.node):
            self._involved[message.region].update(_pages(message))
        self.gets(message)
        if not self.is_gone(sender) and message.kind >= Kind.VOID:
            self.tally[f"{Kind(message.kind).name} sent"] += 1

    def gets(self, message: Message) -> None:
        """A node gets a message while some node is gone."""
        if message.kind in _FOR_REQUESTER and self.is_gone(message.node):
            self._involved[message.region].update(_pages(message))

    def answers(self, message: Message, effects: list[Effect]) -> None:
        """A node has handled a message; `effects` are what it wants done."""
        if message.kind == Kind.VOID:
            absent = any(isinstance(each, Send) and each.message.kind == Kind.ABSENT for each in effects)
            self.tally["VOID answered with ABSENT" if absent else "VOID that met a CONFIRM"] += 1

    def hears(self, engine: Engine, node: int) -> None:
        """A survivor hears of a loss: count what it hits there."""
        if self.is_gone(engine.node):
            return
        tally = self.tally
        bit = 1 << node
        for number, region in engine.sequential.items():
            if any(r for r in region.requester.requests.values() if _directory(region, r.page) == node):
                tally["requests to a dead directory"] += 1
            if any(_directory(region, d.page) == node for d in region.holder.demands):
                tally["demands of a dead directory"] += 1
            for t in set(region.directory.busy.values()):
                if not isinstance(t, Transaction):
                    tally["searches that go on"] += 1
                elif t.message.node == node:
                    tally["transactions with a dead requester"] += 1
                elif t.awaiting & bit:
                    tally["transactions that await a dead holder"] += 1
                elif t.source == node:
                    tally["transactions with a dead source"] += 1
            owned = np.flatnonzero(region.table.owners == node + 1).tolist()
            for page in owned:
                if region.table.copyset[page] & ~self.gone:
                    self._recovering[number, page] = node

    def rests(self) -> None:
        """Count pages that survivors kept though their owner died."""
        for number, page in self._recovering:
            directories = [
                engine.sequential[number]
                for name, engine in self.engines.items()
                if not self.is_gone(name) and number in engine.regions
            ]
            for region in directories:
                owner = region.table.owner[page]
                if _directory(region, page) == region.node:
                    self.tally["owners lost with their copies" if owner >= LOST else "owners replaced"] += 1
        self._recovering.clear()

    # -- what may happen -------------------------------------------------------------------------

    def check(self, node: int, thread: Thread, effect: Wake) -> None:
        """A thread of `node` is told that a page is lost: is it?"""
        if self.is_gone(node):
            return
        operation = thread.program[thread.position]
        number = operation.region
        wanted = thread.waits_for()
        if not any(self.may_be_lost(node, number, page) for page in wanted):
            raise Violation(
                f"node {node}: {effect}, but nothing of r{number} pages {wanted.start} to {wanted.stop - 1} "
                f"is lost (gone {self.gone:#x}): {thread.describe()}"
            )
        if effect.peer >= 0 and not self.is_gone(effect.peer):
            raise Violation(f"node {node}: {effect} blames node {effect.peer}, which lives")
        self.tally["accesses to lost pages"] += 1
        if len(wanted) == 1 and not self.has_dead_directory(node, number, wanted.start):
            self.truths[number].lost.add(wanted.start)

    def has_dead_directory(self, node: int, number: int, page: int) -> bool:
        """Whether the directory of a page is gone."""
        return self.is_gone(_directory(self.engines[node].regions[number], page))

    def may_be_lost(self, node: int, number: int, page: int) -> bool:
        """Whether the loss of a page is justified."""
        if self.has_dead_directory(node, number, page):
            return True
        return page in self._involved[number] and page in self.truths[number].bare


def _directory(region: ModelRegion, page: int) -> int:
    return region.placement.directory(page)


def _pages(message: Message) -> range:
    return range(message.page, message.page + message.count)
