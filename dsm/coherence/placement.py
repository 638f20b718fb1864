"""Which node keeps the directory entry of a page.

Owns the arithmetic of `first-touch` (a fixed arbiter by hash for each block of pages), `block`,
`cyclic` and one node.  The answer depends on the region alone, so that every node computes the same
one for the region's whole life (fixed distributed manager: Li and Hudak, 1989, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dsm.limits import DIRECTORY_BLOCK_BYTES
from dsm.types import Region


class Placement:
    """Directory nodes of one region, dealt out in runs of pages."""

    __slots__ = ("_members", "_pages", "_rule", "chunk_pages", "run_pages")

    def __init__(self, region: Region) -> None:
        #: No request is longer, and none crosses a multiple of it.
        self.chunk_pages = max(1, DIRECTORY_BLOCK_BYTES // region.options.page_size)
        #: Pages in a row that have one directory node.
        self.run_pages = self.chunk_pages
        self._rule = region.options.home
        self._members = region.members
        self._pages = region.pages
        if self._rule == "block":
            self.run_pages = max(1, -(-region.pages // len(region.members)))

    def directory(self, page: int) -> int:
        """Return the node that keeps the entry of `page`."""
        members = self._members
        if len(members) == 1:
            return members[0]
        rule = self._rule
        if isinstance(rule, int):
            return rule
        run = page // self.run_pages
        if rule == "first-touch":
            # Fibonacci hashing: neighbouring blocks go to different nodes, in no simple stride.
            return members[((run * 0x9E3779B1) >> 7) % len(members)]
        return members[run % len(members)]

    def directories(self, pages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the nodes that keep the entries of `pages`."""
        members = np.array(self._members, np.int64)
        rule = self._rule
        if len(members) == 1 or isinstance(rule, int):
            return np.full(len(pages), Placement.directory(self, 0), np.int64)  # not where a home moved to
        run = pages // self.run_pages
        if rule == "first-touch":
            run = (run * 0x9E3779B1) >> 7
        return members[run % len(members)]

    def request_end(self, page: int) -> int:
        """Return the first page after `page` that must be asked for by another message."""
        chunk, run = self.chunk_pages, self.run_pages
        end = (page // chunk + 1) * chunk
        if run != chunk:
            end = min(end, (page // run + 1) * run)
        return min(end, self._pages)

    def requests(self, page: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield the pages (first, count) of each message that it takes to ask for these."""
        end = page + count
        while page < end:
            stop = page + 1 if page + 1 == end else min(end, self.request_end(page))
            yield page, stop - page
            page = stop
