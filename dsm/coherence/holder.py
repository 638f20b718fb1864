"""Holder side of sequential coherence: giving a page up, or a copy of it away.

Owns the requests of directories that this node has not answered yet.  What takes access away from
this node's workers waits for the hold time and for pins; then the workers lose access, all of them
acknowledge, and only then is the frame read or discarded (order of operations, 12).  Requests for
the same page are answered in order of arrival.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from dsm.coherence.messages import Discard, Flag, Kind, Level, Lower, Message, SendPages
from dsm.coherence.states import HOLDING, READABLE, State
from dsm.limits import UNAPPLIED_MAX_NS

if TYPE_CHECKING:
    from dsm.coherence.sequential import SequentialRegion

_WRITE, _SPECULATIVE = int(Flag.WRITE), int(Flag.SPECULATIVE)
_FETCH, _INVALIDATE, _INVALIDATED, _DATA = (
    int(k) for k in (Kind.FETCH, Kind.INVALIDATE, Kind.INVALIDATED, Kind.DATA)
)
_LEVEL_NONE, _LEVEL_READ = int(Level.NONE), int(Level.READ)
_AHEAD = int(State.AHEAD)
_CONFIRM = int(Flag.CONFIRM)
_PRESENT, _ABSENT = int(Kind.PRESENT), int(Kind.ABSENT)
_READABLE = frozenset(int(s) for s in READABLE)
_SHAREABLE = frozenset({int(State.SHARED), int(State.UPGRADING)})
_HOLDING = frozenset(int(s) for s in HOLDING)
#: How often to look whether a granted page has been mapped by the thread that waited for it.
_POLL_NS = 20_000

assert _POLL_NS < UNAPPLIED_MAX_NS


class Demand:
    """A FETCH or INVALIDATE that is not answered yet."""

    __slots__ = ("count", "message", "page", "started")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.page = message.page
        self.count = message.count
        #: The workers are losing access; `Holder.lowered` ends it.
        self.started = False


class Holder:
    """What other nodes want of this one, in one region."""

    __slots__ = ("deadline", "demands", "lowering", "region")

    #: States of a page here from which it can be had again, if its owner died.
    surviving = _READABLE

    def __init__(self, region: SequentialRegion) -> None:
        self.region = region
        self.demands: list[Demand] = []
        #: token of a Lower effect -> the demand that waits for it.
        self.lowering: dict[int, Demand] = {}
        #: Next time at which a demand that is held back may go on.
        self.deadline: int | None = None

    def revoke(self, message: Message) -> None:
        """A FETCH or INVALIDATE arrived."""
        demand = Demand(message)
        if self.demands and any(_overlap(demand, other) for other in self.demands):
            self.demands.append(demand)
        elif not self._held_back(message):
            self._start(demand)
        else:
            self.demands.append(demand)

    def look_soon(self) -> None:
        """Look again soon at what is held back, at the latest."""
        soon = self.region.engine.now + _POLL_NS
        if self.deadline is not None and soon < self.deadline:
            self.deadline = soon

    def resume(self) -> None:
        """Time has passed, a pin was released or a demand ended: start what may start now."""
        if self.deadline is not None:
            self.deadline = None
            self.region.engine.held_back.discard(self.region.number)
        if not self.demands:
            return
        waiting = [demand for demand in self.demands if not demand.started]
        # The started ones stay in front: whoever overlaps one of them must wait.
        self.demands = [demand for demand in self.demands if demand.started]
        for demand in waiting:
            if any(_overlap(demand, other) for other in self.demands) or self._held_back(demand.message):
                self.demands.append(demand)
            else:
                self._start(demand)

    def directory_lost(self, node: int) -> None:
        """Nobody waits any more for what the dead directory node has asked, unless it has begun."""
        directory = self.region.placement.directory
        kept = [demand for demand in self.demands if demand.started or directory(demand.page) != node]
        if len(kept) != len(self.demands):
            self.demands = kept
            self.region.engine.resume_later(self.region)

    def locate(self, message: Message) -> None:
        """The directory asks which of these pages are here: their owner, or who was to get them, died."""
        region = self.region
        state = region.table.state
        page, end = message.page, message.page + message.count
        self.withdraw(page, message.count)
        while page < end:
            present = state[page] in self.surviving
            stop = page + 1
            while stop < end and (state[stop] in self.surviving) == present:
                stop += 1
            if not present:
                self._forget_ahead(page, stop)
            kind = _PRESENT if present else _ABSENT
            answer = Message(kind, region.number, page, stop - page, message.request, region.node)
            region.send(region.placement.directory(page), answer)
            if not present:
                region.requester.settle(page, stop - page)
            page = stop

    def withdraw(self, page: int, count: int) -> bool:
        """Forget the demand for these pages, which was for a dead node; False when it has begun."""
        kept = [
            demand
            for demand in self.demands
            if demand.started
            or demand.message.flags & _SPECULATIVE
            or demand.page >= page + count
            or page >= demand.page + demand.count
        ]
        if len(kept) == len(self.demands):
            return False
        self.demands = kept
        self.region.engine.resume_later(self.region)
        return True

    def _forget_ahead(self, page: int, end: int) -> None:
        """What a dead node was to send of these pages does not come."""
        region = self.region
        for p in range(page, end):
            if region.table.state[p] == _AHEAD:
                region.requester.void(p, 1)
                region.table.shift("declined", p, 1)
                region.take_mark(p, 1)

    def _held_back(self, message: Message) -> bool:
        """Whether a hold or pin keeps this demand waiting; notes when to look again."""
        region = self.region
        page, count = message.page, message.count
        takes_all = message.kind == _INVALIDATE or message.flags & _WRITE
        if not takes_all and self._shareable(page, count):
            return False
        if region.is_pinned(page, count, bool(takes_all)):
            return True
        now = region.engine.now
        until = region.hold.until(region.base + page, count, now)
        if not until:
            return False
        if region.hold.unapplied:
            until = min(until, now + _POLL_NS)
        if self.deadline is None or until < self.deadline:
            self.deadline = until
            region.engine.held_back.add(region.number)
        return True

    def _shareable(self, page: int, count: int) -> bool:
        """Whether no worker may write these pages, so that a copy can be sent as they are.

        Such a demand must not wait: this node may be UPGRADING, and the grant comes behind it.
        """
        state = self.region.table.state
        if count == 1:
            return state[page] in _SHAREABLE
        return _SHAREABLE.issuperset(state[page : page + count])

    def _shareable_runs(self, page: int, count: int) -> list[tuple[int, int]]:
        """Split a range where pages that a worker may write begin or end."""
        state = self.region.table.state
        cuts = [
            p
            for p in range(page + 1, page + count)
            if (state[p] in _SHAREABLE) != (state[p - 1] in _SHAREABLE)
        ]
        return [(low, high - low) for low, high in itertools.pairwise((page, *cuts, page + count))]

    def _start_parts(self, message: Message, runs: list[tuple[int, int]]) -> None:
        """Start a speculative FETCH run by run.

        The directory is not busy with these pages: some may be UPGRADING, and their grant must not
        meet a `Lower`.  (A FETCH of a transaction has one answer and one confirmation, and no grant
        can come before that.)
        """
        for page, count in runs:
            part = Message(_FETCH, message.region, page, count, message.request, message.node, message.flags)
            self._start(Demand(part))

    def _start(self, demand: Demand) -> None:
        region = self.region
        message = demand.message
        page, count = demand.page, demand.count
        table = region.table
        if message.kind == _FETCH and not message.flags & _WRITE:
            if self._shareable(page, count):
                self._answer(demand)
                return
            if message.flags & _SPECULATIVE and count > 1:
                runs = self._shareable_runs(page, count)
                if len(runs) > 1:
                    self._start_parts(message, runs)
                    return
            table.shift("downgrade", page, count)
            level = _LEVEL_READ
        else:
            before = (table.state[page],) if count == 1 else bytes(table.state[page : page + count])
            if _AHEAD in before:
                region.requester.void(page, count)
            table.shift("invalidate", page, count)
            if _HOLDING.isdisjoint(before):
                self._answer(demand)
                region.requester.settle(page, count)
                return
            level = _LEVEL_NONE
        demand.started = True
        self.demands.append(demand)
        if region.bulks.under_way:
            region.bulks.fall_back(page, count)
        token = region.engine.next_token(region)
        self.lowering[token] = demand
        region.effects.append(Lower(region.number, page, count, level, token))

    def lowered(self, token: int) -> None:
        """Every worker of this node has lost that access."""
        demand = self.lowering.pop(token)
        self.demands.remove(demand)
        region = self.region
        message = demand.message
        page, count = demand.page, demand.count
        if message.kind == _FETCH and not message.flags & _WRITE:
            region.table.shift("downgraded", page, count)
            self._answer(demand)
        else:
            region.table.shift("invalidated", page, count)
            self._answer(demand)
            region.effects.append(Discard(region.number, page, count))
        region.requester.settle(page, count)
        self.resume()

    def _answer(self, demand: Demand) -> None:
        region = self.region
        asked = demand.message
        if asked.kind == _INVALIDATE:
            region.invalidations += asked.count
            done = Message(_INVALIDATED, region.number, asked.page, asked.count, asked.request, region.node)
            region.send(region.placement.directory(asked.page), done)
            return
        page, count, flags = asked.page, asked.count, asked.flags
        by_directory = flags & _SPECULATIVE or region.placement.directory(page) == region.node
        if not by_directory:
            flags |= _CONFIRM
        data = Message(_DATA, region.number, page, count, asked.request, asked.node, flags)
        region.effects.append(SendPages(asked.node, data))
        if by_directory and not flags & _SPECULATIVE:
            region.directory.sent(page, count)


def _overlap(a: Demand, b: Demand) -> bool:
    return a.page < b.page + b.count and b.page < a.page + a.count
