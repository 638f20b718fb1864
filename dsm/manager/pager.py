"""The signal pager: what an engine says about access, carried out on this node's workers.

Owns the regions' tables on the manager's side and the revocations under way.  A revocation is done
when every worker that may have had more access has acknowledged, or is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dsm._native import Board, Tables
from dsm.coherence.messages import Runs
from dsm.manager.frames import Frames

#: A waiter is a worker's number and its slot.
SLOT_BITS = 16
_SLOT_MASK = (1 << SLOT_BITS) - 1


class SignalPager:
    """Access of the workers of one node to the pages of all regions.

    Parameters
    ----------
    board
        The node's board.
    lowered
        Called with a token when its `lower` is done.
    """

    def __init__(self, board: Board, lowered: Callable[[int], None]) -> None:
        self._board = board
        self._lowered = lowered
        self._tables: dict[int, Tables] = {}
        #: worker -> regions whose applied table it has.
        self._mapped: dict[int, set[int]] = {}
        #: token -> acknowledgements still missing.
        self._missing: dict[int, int] = {}
        #: worker -> (sequence, token) in the order in which they were asked.
        self._asked: dict[int, deque[tuple[int, int]]] = {}

    def add_region(self, frames: Frames) -> None:
        """Begin to keep access to a region's pages."""
        region = frames.region
        self._tables[region.region] = Tables(
            self._board, region.region, region.pages, frames.wanted_fd, frames.live
        )

    def drop_region(self, region: int) -> None:
        """Forget a region; its workers have lost access before."""
        tables = self._tables.pop(region, None)
        if tables is not None:
            tables.close()
        for regions in self._mapped.values():
            regions.discard(region)

    def map_region(self, region: int, worker: int, applied_fd: int) -> None:
        """A worker is about to map a region, which it has not mapped."""
        self._tables[region].add(worker, applied_fd)
        self._mapped.setdefault(worker, set()).add(region)

    def is_mapped(self, region: int, worker: int) -> bool:
        """Whether a worker has mapped a region."""
        return region in self._mapped.get(worker, ())

    def unmap_region(self, region: int, worker: int) -> None:
        """A worker has closed a region; nothing happens when it had not mapped it."""
        regions = self._mapped.get(worker)
        if regions is not None and region in regions:
            regions.remove(region)
            self._tables[region].remove(worker)

    def raise_(self, region: int, page: int, count: int, level: int, mark: int) -> None:
        """Let workers have `level` from now on; the frames are complete."""
        if mark < 0:
            self._tables[region].raise_(page, count, level)
        else:
            self._tables[region].raise_(page, count, level, mark)

    def lease(self, region: int, page: int, count: int, end: int) -> None:
        """Let workers read these pages until `end`, once they are raised."""
        self._tables[region].lease(page, count, end)

    def lower(self, region: int, page: int, count: int, level: int, token: int) -> None:
        """Take access beyond `level` away; `lowered(token)` follows, perhaps at once."""
        self._await(self._tables[region].lower(page, count, level), token)

    def lower_runs(self, region: int, runs: Runs, level: int, token: int) -> None:
        """Take access beyond `level` away from many runs of pages; one `lowered(token)` follows."""
        self._await(self._tables[region].lower_runs(runs, level), token)

    def _await(self, asked: list[tuple[int, int]], token: int) -> None:
        if not asked:
            self._lowered(token)
            return
        self._missing[token] = len(asked)
        for worker, sequence in asked:
            self._asked.setdefault(worker, deque()).append((sequence, token))

    def acknowledged(self, worker: int, sequence: int) -> None:
        """A worker has obeyed everything up to `sequence`."""
        asked = self._asked.get(worker)
        while asked and asked[0][0] <= sequence:
            self._acknowledge(asked.popleft()[1])

    def worker_of(self, waiter: int) -> int:
        """Return the worker that a waiter is a thread of."""
        return waiter >> SLOT_BITS

    def obeying(self) -> dict[int, tuple[int, ...]]:
        """Return, by the token of each `lower` under way, the workers that have not acknowledged it."""
        found: dict[int, tuple[int, ...]] = {}
        for worker, asked in self._asked.items():
            for _, token in asked:
                found[token] = (*found.get(token, ()), worker)
        return found

    def worker_gone(self, worker: int) -> None:
        """A dead worker has no access."""
        for region in self._mapped.pop(worker, ()):
            self._tables[region].remove(worker)
        for _, token in self._asked.pop(worker, ()):
            self._acknowledge(token)

    def wake(self, waiter: int, status: int, result: int = 0) -> None:
        """End the wait of a thread in a fault or call."""
        self._board.complete(waiter >> SLOT_BITS, waiter & _SLOT_MASK, status, result)

    def is_unapplied(self, waiter: int) -> bool:
        """Whether a woken thread has not yet mapped its page."""
        return self._board.unapplied(waiter >> SLOT_BITS, waiter & _SLOT_MASK)

    def _acknowledge(self, token: int) -> None:
        missing = self._missing[token] - 1
        if missing:
            self._missing[token] = missing
        else:
            del self._missing[token]
            self._lowered(token)
