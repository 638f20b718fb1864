"""Moving homes here because a program asks for it.

Owns the calls that are under way.  A home is pulled with its page, in one request, so that it never moves
while a diff of this node is on its way to the old one; a page that a worker of this node is writing at that
moment keeps its home, as it would after the next release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.messages import Wake
from dsm.coherence.states import State
from dsm.errors import Status

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_MISSING = (int(State.INVALID), int(State.SHARED))


class Rehoming:
    """One call."""

    __slots__ = ("age", "count", "page", "requests", "waiter")

    def __init__(self, page: int, count: int, waiter: int, age: int) -> None:
        self.page = page
        self.count = count
        self.waiter = waiter
        self.age = age
        #: Numbers of the requests that are not answered; None: not asked yet.
        self.requests: set[int] | None = None


class Rehomings:
    """Calls of one node in one region."""

    __slots__ = ("region", "under_way")

    def __init__(self, region: ReleaseRegion) -> None:
        self.region = region
        self.under_way: list[Rehoming] = []

    def begin(self, page: int, count: int, waiter: int) -> None:
        """Bring the homes of these pages here; `Wake` with the number of those that are."""
        self.under_way.append(Rehoming(page, count, waiter, self.region.engine.ages))
        self.look()

    def look(self) -> None:
        """A request was answered, or a diff acknowledged: go on with what waited for it."""
        for each in list(self.under_way):
            if each.requests is None:
                if self.region.writer.flushes:
                    continue
                each.requests = self._ask(each)
            each.requests.intersection_update(self.region.requester.pulls)
            if not each.requests and each in self.under_way:
                self._end([each], Status.OK)

    def _ask(self, each: Rehoming) -> set[int]:
        region = self.region
        table, placement = region.table, region.placement
        before = set(region.requester.pulls)
        for low, count in placement.requests(each.page, each.count):
            end = low + count
            if region.home.claims(low) or placement.directory(low) in region.engine.lost:
                continue
            while low < end:
                state, high = table.state[low], low + 1
                while high < end and table.state[high] == state:
                    high += 1
                if state in _MISSING:
                    region.requester.pull(low, high - low)
                low = high
        return region.requester.pulls - before

    def cancel(self, waiter: int) -> bool:
        """End a call with CANCELLED; False when `waiter` has none here."""
        return self._end([each for each in self.under_way if each.waiter == waiter], Status.CANCELLED)

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        self.under_way = [each for each in self.under_way if not waits(each.waiter)]

    def expire(self, age: int) -> None:
        """End the calls that began at `age` or before with PAGE_TIMEOUT; homes that come later stay here."""
        self._end([each for each in self.under_way if each.age <= age], Status.PAGE_TIMEOUT)

    def end_all(self, status: Status) -> None:
        """Every call ends with `status`."""
        self._end(list(self.under_way), status)

    def _end(self, ended: list[Rehoming], status: Status) -> bool:
        for each in ended:
            self.under_way.remove(each)
            here = 0
            if status == Status.OK:
                pages = np.arange(each.page, each.page + each.count)
                here = int(self.region.placement.mine(pages).sum())
            self.region.effects.append(Wake(each.waiter, int(status), here - 1))
        return bool(ended)
