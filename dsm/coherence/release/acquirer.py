"""Acquire side of release consistency: giving up copies that write notices name.

Owns the copies of this node that are being given up.  What is on its way to a named page is void and asked
for again (order of operations, 5); a clean copy goes as soon as no worker can read it; a page that this
node's workers are writing is first flushed, as in a release, and goes when its home has acknowledged (2).
Only when all of that is done is the acquire (4).

A page that is named and was not used since it was last given up is dropped: its home forgets this node,
and may at last keep the page private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.messages import Discard, Kind, Level, LowerRuns, Message, Runs
from dsm.coherence.release.runs import Pages, below, pages_of, runs_of
from dsm.coherence.states import State

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_INVALID, _EXCLUSIVE = int(State.INVALID), int(State.EXCLUSIVE)
_ON_THE_WAY = (int(State.READING), int(State.WRITING), int(State.AHEAD))
_HERE = (int(State.SHARED), int(State.EXCLUSIVE), int(State.UPGRADING))
#: A page that is given up, or is on its way here again.
_GOING = (int(State.INVALIDATING), _INVALID, *_ON_THE_WAY)
_NONE_LEVEL = int(Level.NONE)
_DROP = int(Kind.DROP)


class Acquirer:
    """Copies of one region that one node gives up."""

    __slots__ = ("_pinned", "flushing", "listed", "lowering", "region")

    def __init__(self, region: ReleaseRegion) -> None:
        self.region = region
        #: Pages in whose copyset, at their home elsewhere, this node may stand.
        self.listed = np.zeros(region.table.pages, np.bool_)
        #: token -> pages that workers are losing: the clean ones, and those that are to be flushed.
        self.lowering: dict[int, tuple[Pages, Pages]] = {}
        #: Number of a diff -> pages that go when it is acknowledged.
        self.flushing: dict[int, Pages] = {}
        #: Pages to be given up once they are not pinned any more.
        self._pinned: Pages | None = None

    @property
    def is_busy(self) -> bool:
        """Whether some copy has not been given up yet."""
        return bool(self.lowering or self.flushing) or self._pinned is not None

    @property
    def waits_for_pins(self) -> bool:
        """Whether some copy can only be given up when a pin has ended."""
        return self._pinned is not None

    def invalidate(self, runs: Runs | None) -> None:
        """Give up the copies of these pages; None: of all pages whose home is elsewhere."""
        region = self.region
        table = region.table
        pages = np.flatnonzero(table.states) if runs is None else pages_of(below(runs, table.pages))
        pages = pages[~region.placement.mine(pages)]
        if not len(pages):
            return
        region.writer.forget_streak(pages)
        states = table.states[pages]
        unused = pages[(states == _INVALID) & self.listed[pages]]
        self._give_up(pages[np.isin(states, _HERE)])
        on_the_way = pages[np.isin(states, _ON_THE_WAY)]
        if len(on_the_way):
            region.requester.void_pages(on_the_way)
            region.settle_pages(on_the_way)
        if len(unused):
            self._drop(unused)

    def _give_up(self, pages: Pages) -> None:
        region = self.region
        table = region.table
        pinned = region.pinned(pages)
        if pinned.any():
            self._pinned = pages[pinned]
            pages = pages[~pinned]
        if not len(pages):
            return
        dirty = table.states[pages] == _EXCLUSIVE
        table.shift_pages("invalidate", pages)
        runs = runs_of(pages)
        region.fall_back(runs)
        region.invalidations += len(pages)
        token = region.engine.next_token(region)
        self.lowering[token] = pages[~dirty], pages[dirty]
        region.effects.append(LowerRuns(region.number, runs, _NONE_LEVEL, token))

    def lowered(self, token: int) -> None:
        """No worker can touch these pages any more."""
        clean, dirty = self.lowering.pop(token)
        for request, pages in self.region.writer.send_diffs(dirty, in_round=False):
            self.flushing[request] = pages
        if len(clean):
            self._gone(clean)

    def flushed(self, request: int) -> None:
        """The home of a diff has acknowledged; nothing happens when it was not for an acquire."""
        pages = self.flushing.pop(request, None)
        if pages is not None:
            self._gone(pages)

    def _gone(self, pages: Pages) -> None:
        region = self.region
        # A page whose home has come here meanwhile stays: what comes with a home is never old.
        pages = pages[np.isin(region.table.states[pages], _GOING)]
        region.table.shift_pages("invalidated", pages)
        for page, count in runs_of(pages[region.table.states[pages] == _INVALID]).tolist():
            region.effects.append(Discard(region.number, page, count))
        region.settle_pages(pages)
        region.habits.bring_again(pages)

    def unpinned(self) -> None:
        """A pin has ended: what waited for it may go."""
        pages, self._pinned = self._pinned, None
        if pages is not None:
            here = np.isin(self.region.table.states[pages], _HERE)
            self._give_up(pages[here & ~self.region.placement.mine(pages)])  # its home may have come

    def _drop(self, pages: Pages) -> None:
        region = self.region
        self.listed[pages] = False
        for page, count in runs_of(pages).tolist():
            for first, number in region.placement.requests(page, count):
                home = region.placement.directory(first)
                if home not in (region.node, *region.engine.lost):
                    region.send(home, Message(_DROP, region.number, first, number, 0, region.node))
