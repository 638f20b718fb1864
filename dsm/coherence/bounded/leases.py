"""The page table of a bounded region: a copy that is read ends by itself.

Owns the ends of all leases, and the rule that a copy whose lease is over is none: its state becomes
INVALID when somebody next asks (`expire`), without a message and without anything being taken away, for
the workers have done that themselves.  So INVALID does not mean here that no worker can reach the frame:
one that is late still reads old bytes of it, which is why such frames are never returned to the system.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dsm.coherence.states import State
from dsm.coherence.table import PageTable

_SHARED, _UPGRADING = int(State.SHARED), int(State.UPGRADING)


class LeaseTable(PageTable):
    """`PageTable` with the end of each page's lease.

    Parameters
    ----------
    pages
        How many there are.
    now
        Tells the engine's time, in nanoseconds.
    """

    __slots__ = ("_now", "end", "ends")

    def __init__(self, pages: int, now: Callable[[], int]) -> None:
        super().__init__(pages)
        self._now = now
        #: Nanoseconds at which this node's copy of a page ends; 0: no worker can have one.
        self.ends = np.zeros(pages, np.uint64)
        self.end = memoryview(self.ends.data)

    def expire(self, page: int, end: int) -> None:
        """Pages of [page, end) whose lease is over are not here any more."""
        now = self._now()
        if end - page == 1:
            if self.end[page] <= now and self.state[page] in (_SHARED, _UPGRADING):
                self.shift("expire", page, 1)
            return
        states = self.states[page:end]
        leased = (states == _SHARED) | (states == _UPGRADING)
        over = np.flatnonzero(leased & (self.ends[page:end] <= np.uint64(now)))
        if len(over):
            for run in np.split(over, np.flatnonzero(np.diff(over) != 1) + 1):
                self.shift("expire", page + int(run[0]), len(run))

    def missing_runs(self, page: int, end: int, write: bool) -> list[tuple[int, int]]:
        """As in `PageTable`, of what is here at this moment."""
        self.expire(page, end)
        return super().missing_runs(page, end, write)

    def present_end(self, page: int, end: int, write: bool) -> int:
        """As in `PageTable`, of what is here at this moment."""
        self.expire(page, end)
        return super().present_end(page, end, write)

    def unreachable(self) -> npt.NDArray[np.uint8]:
        """States, with those pages not INVALID that a worker may still have."""
        return np.where(self.ends == 0, self.states, np.uint8(_SHARED))
