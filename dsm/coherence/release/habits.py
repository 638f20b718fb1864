"""What the last interval says of the next one: pages that were written, or read, together.

Owns one byte a page for each.  A page whose copy is given up, though it was used, is asked for again at once,
together with its neighbours and before anybody misses it; one that was brought so and not used is not.
(Use is seen by the piece: 4, 4, 8, 16 … pages, the first page of each traps once.)  A page that was changed
in the last interval becomes writable together with its neighbours that were: in an iteration that repeats
itself, one fault opens what took one fault a page the first time.  What that makes writable in vain is found
unchanged at the next release, is not noticed, and not opened so again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.messages import Kind
from dsm.coherence.release.runs import Pages, run_around, runs_of
from dsm.coherence.states import State
from dsm.limits import BULK_WINDOW_BYTES, READ_AHEAD_MAX_BYTES

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_INVALID, _SHARED = int(State.INVALID), int(State.SHARED)
_AHEAD = int(Kind.AHEAD)
#: Pages of the first pieces of what is brought again.
_PIECE = 4


class Habits:
    """Pages of one region that one node uses again and again."""

    __slots__ = ("_first", "_most", "_together", "region", "unused", "written")

    def __init__(self, region: ReleaseRegion, page_size: int) -> None:
        self.region = region
        #: Pages that were brought again, and not used since.
        self.unused = np.zeros(region.table.pages, np.bool_)
        #: Among these, the first of each piece.
        self._first = np.zeros(region.table.pages, np.bool_)
        #: Pages that were changed in the last interval in which they were writable.
        self.written = np.zeros(region.table.pages, np.bool_)
        #: Pages that are brought again after one acquire, and opened by one fault.
        self._most = max(1, BULK_WINDOW_BYTES // page_size)
        self._together = max(1, READ_AHEAD_MAX_BYTES // page_size)

    # -- reading -------------------------------------------------------------------------------------------

    def used(self, page: int) -> None:
        """A worker uses a page: then it uses what was brought with it."""
        if not self.unused[page]:
            return
        low = max(0, page - self._together)
        starts = np.flatnonzero(self._first[low : page + 1])
        ends = np.flatnonzero(
            self._first[page + 1 : page + self._together] | ~self.unused[page + 1 : page + self._together]
        )
        first = low + int(starts[-1]) if len(starts) else page
        end = page + 1 + int(ends[0]) if len(ends) else page + self._together
        self.unused[first:end] = False

    def bring_again(self, pages: Pages) -> None:
        """Copies of these pages (ascending) were given up: ask for those that were used."""
        region = self.region
        again = pages[(region.table.states[pages] == _INVALID) & ~self.unused[pages]][: self._most]
        self.unused[pages] = False
        for page, count in runs_of(again).tolist():
            for first, number in region.placement.requests(page, count):
                if region.placement.directory(first) not in region.engine.lost:
                    self._divide(first, first + number)
                    region.requester.post(_AHEAD, "ask-ahead", first, number, 0)

    def _divide(self, page: int, end: int) -> None:
        """Mark the pieces of what is brought again."""
        self.unused[page:end] = True
        self._first[page:end] = False
        piece, start = _PIECE, page
        while page < end:
            self._first[page] = True
            self.region.marks.add(page)
            page += piece
            piece = max(_PIECE, page - start)

    # -- writing -------------------------------------------------------------------------------------------

    def group(self, page: int) -> tuple[int, int]:
        """Return the pages (first, count) that are to become writable with `page`, all SHARED."""
        if not self.written[page]:
            return page, 1
        region = self.region
        first, end = max(0, page - self._together), min(region.table.pages, page + self._together)
        fit = self.written[first:end] & (region.table.states[first:end] == _SHARED)
        low, high = run_around(fit, page - first)
        return first + low, high - low

    def compared(self, pages: Pages, changed: Pages) -> None:
        """Of these writable pages those have been changed."""
        self.written[pages] = False
        self.written[changed] = True

    def closed(self, pages: Pages) -> None:
        """These pages count as changed, without a comparison."""
        self.written[pages] = True
