"""Prefetch and pin: many pages for one waiter, a window at a time.

Owns the bulk calls of one region that are under way.  Their pages are taken in ascending order, so that
two pins cannot deadlock, and only a window is asked for ahead of what is here, so that others get their
turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.coherence.messages import Wake
from dsm.coherence.states import State
from dsm.errors import Status

if TYPE_CHECKING:
    from dsm.coherence.region import ModelRegion

_INVALID, _SHARED = int(State.INVALID), int(State.SHARED)
_OK = int(Status.OK)


class Bulk:
    """One prefetch or pin."""

    __slots__ = ("age", "asked", "cursor", "end", "page", "pin", "since", "waiter", "write")

    def __init__(
        self, page: int, count: int, write: bool, waiter: int, pin: bool, age: int, since: int
    ) -> None:
        self.page = page
        self.end = page + count
        self.write = write
        self.waiter = waiter
        self.pin = pin
        #: Pages before it have been here (prefetch), or are here and held (pin).
        self.cursor = page
        #: Pages before it have been asked for.
        self.asked = page
        #: `Engine.ages` when it began or last came forward.
        self.age = age
        #: Nanoseconds, as the engine has them, when it began; for status.
        self.since = since

    def holds(self, page: int, end: int, takes_all: bool) -> bool:
        """Whether this pin, which is not granted yet, forbids to take all (or write) access to the range.

        Not when the range has the page that it waits for: that one cannot come before this demand is met,
        because it is asked for with the others as one.  Then the pin begins again with the range.
        """
        if not self.pin or page <= self.cursor < end:
            return False
        return max(self.page, page) < min(self.cursor, end) and (takes_all or self.write)


class Bulks:
    """Prefetches and pins of one node in one region."""

    __slots__ = ("region", "under_way")

    def __init__(self, region: ModelRegion) -> None:
        self.region = region
        self.under_way: list[Bulk] = []

    def begin(self, page: int, count: int, write: bool, waiter: int, pin: bool) -> None:
        """Bring pages here, and hold them with `pin`; `waiter` is woken when all have been, or are, here."""
        engine = self.region.engine
        engine.hold.applied(waiter, engine.now)
        write = write or (pin and self.region.pins_take)
        bulk = Bulk(page, count, write, waiter, pin, engine.ages, engine.now)
        self.under_way.append(bulk)
        self._ask_ahead(bulk)
        self._advance(bulk)

    def settle(self, page: int, count: int) -> None:
        """The state of these pages changed: go on where they were waited for."""
        for bulk in list(self.under_way):
            if page < bulk.end and page + count > bulk.cursor:
                self._advance(bulk)

    def pass_over(self, page: int, count: int) -> None:
        """Pages have been here, if only for a moment: no prefetch waits for them any more."""
        for bulk in list(self.under_way):
            if not bulk.pin and page <= bulk.cursor < page + count:
                bulk.cursor = min(page + count, bulk.end)
                bulk.age = self.region.engine.ages
                self._advance(bulk)

    def fall_back(self, page: int, count: int) -> None:
        """Pages are being taken away: pins that grow have to bring them again."""
        for bulk in self.under_way:
            if bulk.pin and bulk.page < page + count and page < bulk.cursor:
                bulk.cursor = max(bulk.page, page)

    def cancel(self, waiter: int) -> bool:
        """End a call with CANCELLED; False when `waiter` has none here."""
        return self._end([bulk for bulk in self.under_way if bulk.waiter == waiter], Status.CANCELLED)

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        self.under_way = [bulk for bulk in self.under_way if not waits(bulk.waiter)]

    def end_all(self, status: Status) -> None:
        """Every call ends with `status`: the region is gone."""
        self._wake(self.under_way, status)
        self.under_way = []

    def lose(self, page: int, count: int, peer: int) -> None:
        """Pages that are not here, or not for writing, cannot be had any more."""

        def lacks(bulk: Bulk) -> bool:
            low, high = max(page, bulk.cursor), min(page + count, bulk.end)
            return low < high and self.region.table.present_end(low, high, bulk.write) < high

        self._end([bulk for bulk in self.under_way if lacks(bulk)], Status.PAGE_LOST, peer)

    def expire(self, age: int) -> None:
        """End the calls that have not come forward since `age` with PAGE_TIMEOUT."""
        for bulk in [bulk for bulk in self.under_way if bulk.age <= age]:
            self._end([bulk], Status.PAGE_TIMEOUT, self.region.awaited(bulk.cursor))

    def _end(self, ended: list[Bulk], status: Status, peer: int = -1) -> bool:
        if not ended:
            return False
        self.under_way = [bulk for bulk in self.under_way if bulk not in ended]
        self._wake(ended, status, peer)
        self.region.engine.resume_later(self.region)  # a pin that was growing holds nothing any more
        return True

    def _wake(self, ended: list[Bulk], status: Status, peer: int = -1) -> None:
        region = self.region
        for bulk in ended:
            region.hold.ended(bulk.waiter, region.engine.now)
            region.effects.append(Wake(bulk.waiter, int(status), peer))

    def _ask_ahead(self, bulk: Bulk) -> None:
        """Ask for what is missing of the next window; a little at a time, so that others get their turn."""
        region = self.region
        limit = min(bulk.end, bulk.cursor + region.bulk_pages)
        if limit - bulk.asked < region.placement.chunk_pages and limit < bulk.end:
            return
        runs = region.table.missing_runs(bulk.asked, limit, bulk.write)
        bulk.asked = limit
        for run, pages in runs:
            region.requester.ask(run, pages, bulk.write)

    def _advance(self, bulk: Bulk) -> None:
        if bulk not in self.under_way:
            return
        region = self.region
        table = region.table
        before = bulk.cursor
        bulk.cursor = table.present_end(bulk.cursor, bulk.end, bulk.write)
        if bulk.cursor == bulk.end:
            self.under_way.remove(bulk)
            if bulk.pin:
                region.pins.append((bulk.page, bulk.end, bulk.write))
            region.effects.append(Wake(bulk.waiter, _OK))
            return
        if bulk.cursor > before:
            bulk.age = region.engine.ages
            if bulk.pin:
                region.engine.resume_later(region)  # the page it waits for now may be in a range held back
        self._ask_ahead(bulk)
        if bulk not in self.under_way:  # what it asked for is lost
            return
        state = table.state[bulk.cursor]
        if state == _INVALID or (bulk.write and state == _SHARED):
            # Taken away again before its turn came.
            for run, pages in table.missing_runs(bulk.cursor, bulk.asked, bulk.write):
                region.requester.ask(run, pages, bulk.write)
