"""The page table of one region on one node.

Owns the arrays: state, directory owner, copyset and three counts: thirteen bytes a page, of which pages
never touched cost no memory.  Scalar access goes through memoryviews (30 ns), ranges through numpy on the
same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from dsm.coherence.counts import PageCounts
from dsm.coherence.states import ILLEGAL, MISSING_RUN, PRESENT_RUN, TABLES, State
from dsm.errors import InternalError
from dsm.limits import MAX_NODES

#: Owner of a page that went away with node n: this + n.
LOST: Final = 128
#: event -> state after, by state before.
_ARRAYS: Final = {event: np.frombuffer(table, np.uint8) for event, table in TABLES.items()}
#: Pages that are looked at together when all of a region are.
_SCAN = 1 << 20


class PageTable:
    """State of each page here, and (for pages whose directory is here) owner and copyset."""

    __slots__ = (
        "broken",
        "copyset",
        "copysets",
        "faults_read",
        "faults_write",
        "owner",
        "owners",
        "pages",
        "state",
        "states",
        "taken",
        "versions",
    )

    def __init__(self, pages: int) -> None:
        self.pages = pages
        #: Makes the error for a page, with whatever is known of it.
        self.broken: Callable[[int, str], InternalError] = lambda page, text: InternalError(text)
        # np.zeros is calloc: memory of untouched pages is never resident.
        #: `State` of every page on this node.
        self.states = np.zeros(pages, np.uint8)
        #: Directory: 0 unclaimed, 1 + the node that holds the page exclusively or did so last, or `LOST` +
        #: the node with which the page went away.
        self.owners = np.zeros(pages, np.uint8)
        #: Directory: bit n is set when node n may have a copy.  The owner's bit always is.
        self.copysets = np.zeros(pages, np.uint64)
        #: Faults of this node's workers that came to the engine.
        self.faults_read = PageCounts(pages)
        self.faults_write = PageCounts(pages)
        #: How often the contents, or the right to write them, came here or were merged here or from here.
        self.versions = PageCounts(pages)
        self.state = memoryview(self.states.data)
        self.owner = memoryview(self.owners.data)
        self.copyset = memoryview(self.copysets.data)
        #: (event, state before) -> times; kept only when a test sets it to a dict.
        self.taken: dict[tuple[str, int], int] | None = None

    def shift(self, event: str, page: int, count: int) -> None:
        """Apply a row of the transition table to a range; all pages of it or none."""
        table = TABLES[event]
        state = self.state
        if count == 1:
            before = state[page]
            after = table[before]
            if after == ILLEGAL:
                raise self.broken(page, f"page {page} is {State(before).name}: no transition for {event!r}")
            state[page] = after
        else:
            old = bytes(state[page : page + count])
            new = old.translate(table)
            bad = new.find(ILLEGAL)
            if bad >= 0:
                name = State(old[bad]).name
                raise self.broken(page + bad, f"page {page + bad} is {name}: no transition for {event!r}")
            state[page : page + count] = new
        if self.taken is not None:
            before_all = (before,) if count == 1 else old
            for value in before_all:
                key = (event, value)
                self.taken[key] = self.taken.get(key, 0) + 1

    def shift_pages(self, event: str, pages: npt.NDArray[np.int64]) -> None:
        """Apply a row of the transition table to pages that are no range; all of them or none."""
        old = self.states[pages]
        new = _ARRAYS[event][old]
        bad = np.flatnonzero(new == ILLEGAL)
        if len(bad):
            page, name = int(pages[bad[0]]), State(int(old[bad[0]])).name
            raise self.broken(page, f"page {page} is {name}: no transition for {event!r}")
        self.states[pages] = new
        if self.taken is not None:
            for value in old.tolist():
                self.taken[event, value] = self.taken.get((event, value), 0) + 1

    def missing_runs(self, page: int, end: int, write: bool) -> list[tuple[int, int]]:
        """Runs of [page, end) that are missing for that access and not asked for: (page, count)."""
        found = MISSING_RUN[write].finditer(self.state, page, end)
        return [(m.start(), m.end() - m.start()) for m in found]

    def present_end(self, page: int, end: int, write: bool) -> int:
        """First page of [page, end) that is not present for that access; `end` when all are."""
        match = PRESENT_RUN[write].match(self.state, page, end)
        assert match is not None  # the pattern matches the empty run
        return match.end()

    def directory_runs(self, page: int, count: int) -> list[tuple[int, int]]:
        """Split a range into runs of equal owner and copyset."""
        if count == 1:
            return [(page, 1)]
        owners = self.owners[page : page + count]
        sets = self.copysets[page : page + count]
        cuts = np.flatnonzero((owners[1:] != owners[:-1]) | (sets[1:] != sets[:-1])) + 1
        if not len(cuts):
            return [(page, count)]
        edges = [0, *cuts.tolist(), count]
        return [(page + a, b - a) for a, b in itertools.pairwise(edges)]

    def unreachable(self) -> npt.NDArray[np.uint8]:
        """States in which INVALID stands only for pages that no worker can reach."""
        return self.states

    def lose(self, page: int, count: int, node: int) -> None:
        """Directory: these pages went away with `node`."""
        self.owners[page : page + count] = LOST + node
        self.copysets[page : page + count] = 0

    def forget_holder(self, node: int) -> None:
        """Directory: `node` has no copies any more."""
        bit, others = np.uint64(1 << node), np.uint64((1 << MAX_NODES) - 1 - (1 << node))
        for low in range(0, self.pages, _SCAN):  # in parts: the masks of a large region are large, too
            copysets = self.copysets[low : low + _SCAN]
            copysets[np.flatnonzero(copysets & bit)] &= others

    def owned_by(self, node: int) -> list[tuple[int, int]]:
        """Directory: runs of pages whose owner is `node`, as (page, count)."""
        runs: list[tuple[int, int]] = []
        for low in range(0, self.pages, _SCAN):
            pages = np.flatnonzero(self.owners[low : low + _SCAN] == node + 1) + low
            if len(pages):
                cuts = np.flatnonzero(np.diff(pages) != 1) + 1
                runs += [(int(run[0]), len(run)) for run in np.split(pages, cuts)]
        return runs
