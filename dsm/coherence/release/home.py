"""Home side of release consistency: the master copies, who has others, and what writers send.

Owns the copysets of the pages whose home is here (this node's own bit is never set in them), and the
requests that wait for a page.  Of such a page INVALID means *fresh*: nobody has touched it, there is
nothing to send.  EXCLUSIVE with an empty copyset is *private*: this node's workers write it and nothing
tracks that.  So the first request of another node waits until all of them have lost write access (order of
operations, 8); from then on writing here traps once an interval, is noticed, and needs no twin.

Pages that this node's workers are writing, tracked, are sent as they are: whoever may look at those bytes
has synchronized with the writer first.  For the same reason diffs are stored while workers write other
bytes (order of operations, 9).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dsm.coherence.messages import (
    Apply,
    Fill,
    Flag,
    Forward,
    Kind,
    Level,
    Lower,
    Message,
    Raise,
    Runs,
    SendPages,
)
from dsm.coherence.release.runs import NONE, Pages, count_of, pages_of, run_around, runs_of
from dsm.coherence.states import PENDING, State

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_INVALID, _SHARED, _EXCLUSIVE = int(State.INVALID), int(State.SHARED), int(State.EXCLUSIVE)
_DOWNGRADING = int(State.DOWNGRADING)
_PENDING = frozenset(int(state) for state in PENDING)
_HOME, _FRESH = int(Flag.HOME), int(Flag.FRESH)
_GRANT, _DATA, _LOST, _MOVED, _DIFF, _DIFFED = (
    int(k) for k in (Kind.GRANT, Kind.DATA, Kind.LOST, Kind.MOVED, Kind.DIFF, Kind.DIFFED)
)
_READ_LEVEL, _WRITE_LEVEL = int(Level.READ), int(Level.WRITE)


def part_of(message: Message, page: int, count: int) -> Message:
    """Return a request for some of its pages."""
    return Message(
        message.kind, message.region, page, count, message.request, message.node, message.flags, message.value
    )


class Home:
    """One node as the home of pages of one region."""

    __slots__ = ("_forwarded", "lowering", "queue", "region")

    def __init__(self, region: ReleaseRegion) -> None:
        self.region = region
        #: page -> requests, or parts of them, that wait for it, in order of arrival.
        self.queue: dict[int, list[Message]] = {}
        #: token -> pages whose workers are losing write access for the sake of a request.
        self.lowering: dict[int, tuple[int, int]] = {}
        #: Number of a diff passed on -> (node it went to, the diff as it came, pages left).
        self._forwarded: dict[int, tuple[int, Message, int]] = {}

    # -- pages that nobody has touched ---------------------------------------------------------------------

    def claims(self, page: int) -> bool:
        """Whether this node is the home of a page; its arbiter becomes that when nobody has claimed it."""
        placement = self.region.placement
        if placement.is_unclaimed(page):
            placement.claim(page, 1, self.region.node)
            return True
        return placement.is_mine(page)

    def open_fresh(self, page: int, end: int, write: bool) -> int:
        """Touch a fresh page of this home, and its fresh neighbours with it; return the first page behind."""
        region = self.region
        table = region.table
        if table.copyset[page]:  # granted to others before: they see what is written from now on as notices
            region.effects.append(Fill(region.number, page, 1))
            if write:
                table.shift("claim", page, 1)
                region.writer.opened(page, 1)
            else:
                table.shift("receive", page, 1)
            level = _WRITE_LEVEL if write else _READ_LEVEL
            region.effects.append(Raise(region.number, page, 1, level, region.take_mark(page, 1)))
            region.requester.settle(page, 1)
            return page + 1
        first, last = region.placement.block(page)
        last = max(last, min(end, page + region.placement.chunk_pages))
        pages = np.arange(first, min(last, table.pages))
        fresh = (
            (table.states[pages] == _INVALID) & (table.copysets[pages] == 0) & region.placement.mine(pages)
        )
        low, high = run_around(fresh, page - first)
        start, count = first + low, high - low
        region.effects.append(Fill(region.number, start, count))
        table.shift("claim", start, count)
        region.effects.append(Raise(region.number, start, count, _WRITE_LEVEL))
        while region.take_mark(start, count) >= 0:  # nothing was read ahead
            pass
        region.requester.settle(start, count)
        return start + count

    # -- requests ------------------------------------------------------------------------------------------

    def request(self, message: Message) -> None:
        """GET or AHEAD: serve what can be served, let the rest wait, pass on what is not here."""
        if message.node != self.region.node:
            self._request(message)
            return
        # This node asked itself; or it asked twice, and the first answer has made it the home.
        for page, count in self.region.requester.live_runs(message):
            self._request(part_of(message, page, count))

    def _request(self, message: Message) -> None:
        placement = self.region.placement
        for page, count in placement.requests(message.page, message.count):
            if placement.is_unclaimed(page):
                self._give_blocks(message, page, count)
            elif placement.is_mine(page):
                self._serve(message, page, count)
            else:
                self._pass_on(message, page, count)

    def _give_blocks(self, message: Message, page: int, count: int) -> None:
        """The first claim is final: the one that asks is the home of the blocks around what it asks for."""
        region = self.region
        asker = message.node
        for low, pages in region.placement.claim(page, count, asker):
            moved = Message(_MOVED, region.number, low, pages, message.request, asker, 0, asker)
            region.send(asker, moved)
        self._answer(message, page, count, fresh=True)

    def _pass_on(self, message: Message, page: int, count: int) -> None:
        region = self.region
        home = region.placement.directory(page)
        asker = message.node
        if home in region.engine.lost:
            region.send(asker, Message(_LOST, region.number, page, count, message.request, home))
            return
        if asker not in (home, region.node):
            moved = Message(_MOVED, region.number, page, count, message.request, asker, 0, home)
            region.send(asker, moved)
        region.send(home, part_of(message, page, count))

    def _serve(self, message: Message, page: int, count: int) -> None:
        """Serve runs of pages of this home that are alike."""
        states = self.region.table.states
        cuts = np.flatnonzero(np.diff(states[page : page + count])) + 1 if count > 1 else ()
        edges = [0, *(int(cut) for cut in cuts), count]
        for low, high in itertools.pairwise(edges):
            self._serve_run(message, page + low, high - low)

    def _serve_run(self, message: Message, page: int, count: int) -> None:
        region = self.region
        table = region.table
        state = table.state[page]
        if state == _EXCLUSIVE and region.pins:
            pinned = region.pinned(np.arange(page, page + count), write=True)
            if not pinned.all() and pinned.any():
                self._split_run(message, page, count, pinned)
                return
            if pinned.all():
                self._serve_pinned(message, page, count)
                return
        if state == _EXCLUSIVE:
            alone = table.copysets[page : page + count] == 0
            if message.flags & _HOME:
                alone[:] = True
            if alone.any():
                if not alone.all():
                    self._split_run(message, page, count, alone)
                    return
                self._track(page, count)
                self._wait(message, page, count)
                return
        elif state == _DOWNGRADING:
            self._wait(message, page, count)
            return
        self._answer(message, page, count, fresh=state == _INVALID or state in _PENDING)

    def _split_run(self, message: Message, page: int, count: int, alike: npt.NDArray[np.bool_]) -> None:
        cut = int(np.flatnonzero(alike != alike[0])[0])
        self._serve_run(message, page, cut)
        self._serve_run(message, page + cut, count - cut)

    def _serve_pinned(self, message: Message, page: int, count: int) -> None:
        """Pages stay writable: they count as written from now on.  Their home stays until the pin ends."""
        if message.flags & _HOME:
            self._wait(message, page, count)
            return
        self.region.writer.track(page, count)
        self._answer(message, page, count, fresh=False)

    def unpinned(self) -> None:
        """A pin has ended: who waits for the home of its pages may get it."""
        if self.queue:
            self.resume(np.array([min(self.queue), max(self.queue)]))

    def _track(self, page: int, count: int) -> None:
        """Take write access to pages away, before their frames are read."""
        region = self.region
        region.table.shift("downgrade", page, count)
        region.bulks.fall_back(page, count)
        token = region.engine.next_token(region)
        self.lowering[token] = page, count
        region.effects.append(Lower(region.number, page, count, _READ_LEVEL, token))

    def lowered(self, token: int) -> None:
        """No worker of this node can write these pages any more."""
        page, count = self.lowering.pop(token)
        pages = np.arange(page, page + count)
        self.region.writer.send_diffs(self.region.writer.twinned(pages), in_round=False)
        self.region.table.shift("downgraded", page, count)
        self.resume(pages)
        self.region.requester.settle(page, count)

    def _wait(self, message: Message, page: int, count: int) -> None:
        self.queue.setdefault(page, []).append(part_of(message, page, count))

    def resume(self, pages: Pages) -> None:
        """These pages (ascending) are SHARED now: serve who waits for them."""
        if not self.queue:
            return
        low, high = int(pages[0]), int(pages[-1])
        for page in sorted(page for page in self.queue if low <= page <= high):
            if self.region.table.state[page] != _DOWNGRADING:
                for message in self.queue.pop(page):
                    self.request(message)

    def _answer(self, message: Message, page: int, count: int, fresh: bool) -> None:
        """Send pages, or say that there is nothing to send; with the home, if that was asked for."""
        region = self.region
        asker, flags = message.node, message.flags
        if flags & _HOME and asker != region.node:
            self._give(message, page, count, fresh)
            return
        value = region.node + 1 if region.placement.is_mine(page) else asker + 1
        if value != asker + 1:
            region.table.copysets[page : page + count] |= np.uint64(1 << asker)
        self._send(message, page, count, fresh, flags & ~_HOME, value)

    def _give(self, message: Message, page: int, count: int, fresh: bool) -> None:
        """Send pages with their home; this node keeps a copy and knows whom to pass others on to."""
        region = self.region
        table = region.table
        asker = message.node
        own = 0 if fresh else 1 << region.node
        region.writer.gave(page, count)
        for low, pages in table.directory_runs(page, count):
            copyset = (table.copyset[low] | own) & ~(1 << asker)
            region.placement.set(low, pages, asker)
            table.copysets[low : low + pages] = 0
            if not fresh:
                region.acquirer.listed[low : low + pages] = True
            self._send(message, low, pages, fresh, message.flags, copyset)

    def _send(self, message: Message, page: int, count: int, fresh: bool, flags: int, value: int) -> None:
        """Send pages of a request to the one that asks; of fresh ones only the word that they are."""
        region = self.region
        asker = message.node
        kind, flags = (_GRANT, flags | _FRESH) if fresh else (_DATA, flags)
        answer = Message(kind, region.number, page, count, message.request, asker, flags, value)
        if fresh:
            region.send(asker, answer)
        else:
            region.effects.append(SendPages(asker, answer))

    def take(self, page: int, count: int, copyset: int) -> None:
        """Be the home of pages from now on."""
        region = self.region
        region.placement.set(page, count, region.node)
        alive = copyset & ~(1 << region.node)
        for node in region.engine.lost:
            alive &= ~(1 << node)
        region.table.copysets[page : page + count] = alive

    def drop(self, message: Message) -> None:
        """A node has no copy any more.  One that passes this by, to an old home, is not missed."""
        table = self.region.table
        pages = np.arange(message.page, message.page + message.count)
        pages = pages[self.region.placement.mine(pages)]
        table.copysets[pages] &= np.uint64((1 << 64) - 1 - (1 << message.node))

    # -- diffs ---------------------------------------------------------------------------------------------

    def patch(self, message: Message, runs: Runs, payload: object) -> None:
        """Store what a writer changed, and pass on what belongs to pages whose home is elsewhere by now."""
        region = self.region
        parts = dict(region.placement.split(runs))
        mine = parts.pop(region.node, NONE)
        for home, part in parts.items():
            self._forward(home, message, part, payload)
        if not len(mine):
            return
        pages = pages_of(mine)
        fresh = self._begin_fresh(pages)
        region.table.copysets[pages] |= np.uint64(1 << message.node)
        region.effects.append(Apply(region.number, mine, payload))
        region.table.versions.each(pages)
        for page, count in fresh:
            region.effects.append(Raise(region.number, page, count, _READ_LEVEL))
            region.requester.settle(page, count)
        self._acknowledge(message, count_of(mine))

    def _begin_fresh(self, pages: Pages) -> list[tuple[int, int]]:
        """Let frames of fresh pages be what they stand for, before a part of them changes; return these."""
        region = self.region
        table = region.table
        pending = pages[np.isin(table.states[pages], sorted(_PENDING))]
        if len(pending):  # this node's own request is on its way here: by now there is something to send
            region.requester.void_pages(pending)
        fresh = [(page, count) for page, count in runs_of(pages[table.states[pages] == _INVALID]).tolist()]
        for page, count in fresh:
            region.effects.append(Fill(region.number, page, count))
            table.shift("receive", page, count)
        return fresh

    def _forward(self, home: int, message: Message, runs: Runs, payload: object) -> None:
        region = self.region
        if home in region.engine.lost:
            self._acknowledge(message, count_of(runs))
            return
        number = region.engine.next_request()
        self._forwarded[number] = home, message, count_of(runs)
        low, high = int(runs[0, 0]), int(runs[-1].sum())
        passed = Message(_DIFF, region.number, low, high - low, number, region.node)
        region.effects.append(Forward(home, passed, runs, payload))

    def _acknowledge(self, diff: Message, pages: int) -> None:
        """So many pages of a diff are stored."""
        writer = diff.node
        done = Message(_DIFFED, diff.region, diff.page, diff.count, diff.request, writer, 0, pages)
        self.region.send(writer, done)

    def diffed(self, message: Message) -> bool:
        """A diff that was passed on is stored; False when it was none."""
        passed = self._forwarded.get(message.request)
        if passed is None:
            return False
        home, diff, left = passed
        if left > message.value:
            self._forwarded[message.request] = home, diff, left - message.value
        else:
            del self._forwarded[message.request]
        self._acknowledge(diff, message.value)
        return True

    # -- the end of nodes ----------------------------------------------------------------------------------

    def node_lost(self, node: int) -> None:
        """A node is dead: it has no copies, waits for nothing, and what was passed on to it is gone."""
        self.region.table.forget_holder(node)
        for page, parts in list(self.queue.items()):
            self.queue[page] = [part for part in parts if part.node != node]
            if not self.queue[page]:
                del self.queue[page]
        for number, (home, diff, left) in list(self._forwarded.items()):
            if node in (home, diff.node):
                del self._forwarded[number]
            if node == home and diff.node != node:
                self._acknowledge(diff, left)
