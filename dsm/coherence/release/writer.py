"""Writer side of release consistency: twins, diffs, and what the open interval has changed.

Owns the pages of this node that are tracked: those that another node's home keeps (they have a twin from
before the first write) and, of this home, those that others have copies of.  A release takes write access
to them away, and then, the frames being still, sends to each home what differs from the twins (order of
operations, 1); pages that turn out unchanged are not noticed.  A page that was flushed before the release
stays in the interval's notices (3), and an interval closes only after every home has acknowledged (6).

Pages that a program has pinned for writing stay writable: their diff is taken from one snapshot, which
becomes the new twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.messages import Diff, Level, LowerRuns, Message, Raise, Runs, Twin
from dsm.coherence.release.runs import NONE, Pages, pages_of, runs_of, union
from dsm.coherence.states import State
from dsm.limits import SOLE_WRITER_RELEASES

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_EXCLUSIVE, _DOWNGRADING = int(State.EXCLUSIVE), int(State.DOWNGRADING)
_READ_LEVEL, _WRITE_LEVEL = int(Level.READ), int(Level.WRITE)
#: Runs of written pages that are kept one by one before they are joined.
_GATHERED = 4096


class Flush:
    """Changes of some pages on their way to one home; to this node itself they are only found out."""

    __slots__ = ("home", "in_round", "left", "pages")

    def __init__(self, home: int, pages: Pages, in_round: bool) -> None:
        self.home = home
        self.pages = pages
        #: It belongs to the interval that is closing, not to the open one.
        self.in_round = in_round
        #: Pages that the home has not acknowledged.
        self.left = len(pages)


class Writer:
    """What one node's workers have written of one region."""

    __slots__ = ("_changed", "_closing", "_twinned", "_written", "flushes", "lowering", "region", "streaks")

    def __init__(self, region: ReleaseRegion) -> None:
        self.region = region
        #: Tracked pages that became writable since the last round began, as runs in any order.
        self._written: list[tuple[int, int]] = []
        #: Pages of the open interval that are known to be changed, and of the one that is closing.
        self._changed: list[Runs] = []
        self._closing: list[Runs] = []
        #: Pages of this home that have a twin, because they were made writable in case they are written.
        self._twinned = np.zeros(region.table.pages, np.bool_)
        #: token -> pages whose workers are losing write access for a round.
        self.lowering: dict[int, Pages] = {}
        #: Diffs under way, by number.
        self.flushes: dict[int, Flush] = {}
        #: Releases in a row in which this node alone has changed a page.
        self.streaks = np.zeros(region.table.pages, np.uint8)

    @property
    def is_busy(self) -> bool:
        """Whether a round, or a diff for an acquire, is under way."""
        return bool(self.lowering or self.flushes)

    # -- the first write -----------------------------------------------------------------------------------

    def wants_home(self, page: int) -> bool:
        """Whether to ask for the home of a page that is about to be written, since nobody else writes it."""
        return (
            self.streaks[page] >= SOLE_WRITER_RELEASES
            and not self.flushes  # a diff on its way must not be overtaken by the home
            and not self.region.placement.is_mine(page)
            and self.region.placement.directory(page) not in self.region.engine.lost
        )

    def open(self, page: int, count: int) -> None:
        """Make pages writable that are all SHARED; no message is needed."""
        region = self.region
        region.table.shift("upgrade", page, count)
        self.opened(page, count)
        region.effects.append(Raise(region.number, page, count, _WRITE_LEVEL))
        region.requester.settle(page, count)

    def opened(self, page: int, count: int) -> None:
        """Pages have become EXCLUSIVE: track them, unless they are private.  Their `Raise` follows."""
        region = self.region
        if count == 1:
            if not region.placement.is_mine(page):
                region.effects.append(Twin(region.number, page, 1))
            elif not region.table.copyset[page]:
                return
            self.track(page, 1)
            return
        pages = np.arange(page, page + count)
        mine = region.placement.mine(pages)
        tracked = ~mine | (region.table.copysets[pages] != 0)
        # Some of them, nobody may write: at home, too, they are compared.
        self._twinned[pages[tracked & mine]] = True
        for low, number in runs_of(pages[tracked]).tolist():
            region.effects.append(Twin(region.number, low, number))
            self.track(low, number)

    def track(self, page: int, count: int) -> None:
        """These pages are writable, and not private: the next round looks at them."""
        written = self._written
        if written and written[-1][0] + written[-1][1] == page:
            written[-1] = written[-1][0], written[-1][1] + count
            return
        written.append((page, count))
        if len(written) > _GATHERED:
            self._written = [(low, number) for low, number in self._take_written().tolist()]

    def _take_written(self) -> Runs:
        written, self._written = self._written, []
        return union([np.array(written, np.int64)]) if written else NONE

    # -- a round -------------------------------------------------------------------------------------------

    def begin_round(self) -> None:
        """Close the open interval: its writes are at their homes when this is busy no longer."""
        region = self.region
        table = region.table
        pages = pages_of(self._take_written())
        self._closing, self._changed = self._changed, []
        if not len(pages):
            return
        mine = region.placement.mine(pages)
        # What another node is just asking for is compared after this round: it counts as changed.
        asked_for = table.states[pages] == _DOWNGRADING
        noticed = pages[mine & (asked_for | ~self._twinned[pages])]
        if len(noticed):
            self._closing.append(runs_of(noticed))
            region.habits.closed(noticed)
            table.versions.each(noticed)
        # What was flushed early is not EXCLUSIVE any more; what became private again needs no tracking.
        private = mine & (table.copysets[pages] == 0) & ~self._twinned[pages]
        live = (table.states[pages] == _EXCLUSIVE) & ~private
        pinned = live & region.pinned(pages, write=True)
        self._keep(pages[pinned & (~mine | self._twinned[pages])], pages[pinned])
        lowered = pages[live & ~pinned]
        if not len(lowered):
            return
        table.shift_pages("downgrade", lowered)
        runs = runs_of(lowered)
        region.fall_back(runs)
        token = region.engine.next_token(region)
        self.lowering[token] = lowered
        region.effects.append(LowerRuns(region.number, runs, _READ_LEVEL, token))

    def _keep(self, twins: Pages, pages: Pages) -> None:
        """Send what pinned pages have changed so far, and go on tracking them."""
        if len(twins):
            self.send_diffs(twins, in_round=True, keep=True)
        for page, count in runs_of(pages).tolist():
            self.track(page, count)

    def lowered(self, token: int) -> None:
        """No worker can write these pages any more: send the diffs; then they may be written again."""
        pages = self.lowering.pop(token)
        region = self.region
        self.send_diffs(self.twinned(pages), in_round=True)
        region.table.shift_pages("downgraded", pages)
        region.home.resume(pages)
        region.settle_pages(pages)

    def twinned(self, pages: Pages) -> Pages:
        """Return those of these writable pages that have a twin."""
        return pages[~self.region.placement.mine(pages) | self._twinned[pages]]

    def send_diffs(self, pages: Pages, *, in_round: bool, keep: bool = False) -> list[tuple[int, Pages]]:
        """Send what differs from the twins to the homes; return the numbers that they will acknowledge."""
        region = self.region
        sent: list[tuple[int, Pages]] = []
        if len(pages):
            for home, runs in region.placement.split(runs_of(pages)):
                number = region.engine.next_request()
                flush = self.flushes[number] = Flush(home, pages_of(runs), in_round)
                region.effects.append(Diff(home, region.number, runs, number, keep))
                sent.append((number, flush.pages))
            if not keep:
                self._twinned[pages] = False
        return sent

    def diffed(self, request: int, changed: Runs, parts: int) -> None:
        """The driver has sent a diff: only what changed is noticed, and awaited."""
        flush = self.flushes.get(request)
        if flush is None:
            return
        pages = pages_of(changed)
        self.region.habits.compared(flush.pages, pages)
        if len(changed):
            streaks = self.streaks[pages]
            self.streaks[pages] = np.minimum(streaks, 254) + 1
            self.region.table.versions.each(pages)
            (self._closing if flush.in_round else self._changed).append(changed)
        flush.left = parts
        if not parts or flush.home in self.region.engine.lost:
            self._end(request)

    def acknowledged(self, message: Message) -> None:
        """A home has stored a diff, or a part of it."""
        flush = self.flushes.get(message.request)
        if flush is not None:
            flush.left -= message.value
            if flush.left <= 0:
                self._end(message.request)

    def _end(self, request: int) -> None:
        del self.flushes[request]
        self.region.acquirer.flushed(request)
        self.region.rehomings.look()
        self.region.engine.fence.look()

    def end_round(self) -> Runs:
        """Return the pages that the closed interval has changed."""
        closing, self._closing = self._closing, []
        return union(closing)

    def node_lost(self, node: int) -> None:
        """The home of some diffs is dead: nobody will acknowledge them."""
        for request, flush in list(self.flushes.items()):
            if flush.home == node:
                self._end(request)

    def gave(self, page: int, count: int) -> None:
        """The home of pages goes to another node: writes of the open interval stay in its notices."""
        pages = pages_of(self._take_written())
        given = (pages >= page) & (pages < page + count)
        if given.any():
            self._changed.append(runs_of(pages[given]))
        self._written = [(low, number) for low, number in runs_of(pages[~given]).tolist()]

    def forget_streak(self, pages: Pages) -> None:
        """Others have changed these pages."""
        self.streaks[pages] = 0
