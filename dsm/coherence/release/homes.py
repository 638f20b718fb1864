"""Where the home of each page is, as far as this node knows.

Owns one byte a page.  A page's first home follows from the region's placement; with `first-touch` that is
only the arbiter, which gives the home of a block to the first node that asks for a page of it (order of
operations, 16).  Homes move: who gave a home away knows to whom, so that asking along these pointers always
ends at the home (each pointer leads to somebody who was, or is, the home later than the one who has it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dsm.coherence.messages import Runs
from dsm.coherence.placement import Placement
from dsm.coherence.release.runs import Pages, pages_of, runs_of
from dsm.limits import CLAIM_BYTES
from dsm.types import Region


class Homes(Placement):
    """Homes of the pages of one region, as one node knows them."""

    __slots__ = ("_claim_pages", "_first_touch", "_homes", "home", "node")

    def __init__(self, node: int, region: Region) -> None:
        super().__init__(region)
        self.node = node
        self._first_touch = region.options.home == "first-touch" and len(region.members) > 1
        self._claim_pages = max(1, CLAIM_BYTES // region.options.page_size)
        #: 1 + the home; 0: as the placement says.
        self._homes = np.zeros(region.pages, np.uint8)
        self.home = memoryview(self._homes.data)

    def directory(self, page: int) -> int:
        """Return the node to ask about a page: its home, or who knows more."""
        home = self.home[page]
        return home - 1 if home else super().directory(page)

    def is_mine(self, page: int) -> bool:
        """Whether this node is the home of a page."""
        home = self.home[page]
        if home:
            return home == self.node + 1
        return not self._first_touch and super().directory(page) == self.node

    def is_unclaimed(self, page: int) -> bool:
        """Whether this node, its arbiter, has not given the home of a page to anybody."""
        return self._first_touch and not self.home[page] and super().directory(page) == self.node

    def request_end(self, page: int) -> int:
        """Return the first page behind `page` that must be asked for by another message."""
        end = super().request_end(page)
        differs = np.flatnonzero(self._homes[page:end] != self._homes[page])
        return page + int(differs[0]) if len(differs) else end

    def directories(self, pages: Pages) -> npt.NDArray[np.int64]:
        """Return the node to ask about each of `pages`."""
        homes = self._homes[pages].astype(np.int64) - 1
        unknown = homes < 0
        if unknown.any():
            homes[unknown] = super().directories(pages[unknown])
        return homes

    def mine(self, pages: Pages) -> npt.NDArray[np.bool_]:
        """Return, for each of `pages`, whether this node is its home."""
        if self._first_touch:
            return np.equal(self._homes[pages], self.node + 1)
        return np.equal(self.directories(pages), self.node)

    def split(self, runs: Runs) -> list[tuple[int, Runs]]:
        """Return the node to ask, and the runs that it is to be asked about."""
        pages = pages_of(runs)
        homes = self.directories(pages)
        first = int(homes[0]) if len(homes) else 0
        if (homes == first).all():
            return [(first, runs)] if len(homes) else []
        return [(int(home), runs_of(pages[homes == home])) for home in np.unique(homes)]

    def block(self, page: int) -> tuple[int, int]:
        """Return the pages (first, end) that are claimed together with `page`, claimed or not."""
        first = page - page % self._claim_pages
        return first, min(first + self._claim_pages, len(self._homes))

    def set(self, page: int, count: int, home: int) -> None:
        """Note the home of some pages."""
        self._homes[page : page + count] = home + 1

    def claim(self, page: int, count: int, home: int) -> list[tuple[int, int]]:
        """Give the home of the blocks around these pages, where unclaimed, to a node; return what it got."""
        first, end = self.block(page)[0], self.block(page + count - 1)[1]
        free = runs_of(np.flatnonzero(self._homes[first:end] == 0) + first)
        self._homes[first:end][self._homes[first:end] == 0] = home + 1
        return [(int(low), int(pages)) for low, pages in free]
