"""Requester side of release consistency: what is not here is asked of its home.

Owns what differs from `sequential`.  A page that is here is made writable without asking anybody; a page
whose home this node is needs no request at all; and an acquire voids whatever is on its way to a page that
a write notice names (order of operations, 5): it may have left its home before the write came there.  The
one exception is a request for the home itself: what comes with the home is never old.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from dsm.coherence.messages import Fill, Flag, Kind, Level, Message, Raise
from dsm.coherence.release.runs import Pages
from dsm.coherence.requester import Request, Requester
from dsm.coherence.states import State
from dsm.errors import Status

if TYPE_CHECKING:
    from dsm.coherence.release.region import ReleaseRegion

_INVALID, _SHARED = int(State.INVALID), int(State.SHARED)
_WRITE, _FRESH, _HOME = int(Flag.WRITE), int(Flag.FRESH), int(Flag.HOME)
_GET, _AHEAD = int(Kind.GET), int(Kind.AHEAD)
_FOR_WRITING = (int(State.WRITING), int(State.UPGRADING))
_READ_LEVEL, _WRITE_LEVEL = int(Level.READ), int(Level.WRITE)


class ReleaseRequester(Requester):
    """What one node wants of one region."""

    __slots__ = ("_passed_by", "pulls")

    region: ReleaseRegion

    def __init__(self, region: ReleaseRegion) -> None:
        super().__init__(region)
        #: Requests for the homes of pages: what answers them is never void.
        self.pulls: set[int] = set()
        #: Number of a request that was passed on -> nodes that it went by, or went to.
        self._passed_by: dict[int, set[int]] = {}

    def ask(self, page: int, count: int, write: bool) -> None:
        """Get access to pages that are all INVALID, or (for writing) all SHARED.

        Serving one of them may let others who wait go on, who then ask for some of these pages themselves.
        """
        region = self.region
        table = region.table
        end = page + count
        while page < end:
            state = table.state[page]
            if state not in (_INVALID, _SHARED) or (state == _SHARED and not write):
                page += 1
            elif state == _SHARED:
                stop = page + 1
                while stop < end and table.state[stop] == _SHARED:
                    stop += 1
                if count == 1 and region.writer.wants_home(page):
                    self.pull(page, 1)
                elif count == 1:
                    region.writer.open(*region.habits.group(page))
                else:
                    region.writer.open(page, stop - page)
                page = stop
            elif region.home.claims(page):
                page = region.home.open_fresh(page, end, write)
            else:
                stop = min(end, region.placement.request_end(page))
                missing = table.missing_runs(page, stop, False)[0][1]
                event = "ask-write" if write else "ask-read"
                self.post(_GET, event, page, missing, _WRITE if write else 0)
                page += missing

    def fault(self, page: int, write: bool, waiter: int, worker: int, instruction: int) -> None:
        """A thread touched `page` without the access it needs; it waits, or may go on at once."""
        self.region.habits.used(page)
        super().fault(page, write, waiter, worker, instruction)

    def touched(self, page: int, worker: int) -> None:
        """A worker used the first page of a window that was read ahead, or brought again."""
        self.region.habits.used(page)
        super().touched(page, worker)

    def ahead(self, start: int, count: int, write: bool) -> None:
        """Read, or make writable, ahead of a stream; at home that would only be tracked in vain."""
        if write:
            region = self.region
            table = region.table
            for page, pages in table.missing_runs(start, min(start + count, table.pages), True):
                if not region.placement.is_mine(page):
                    self.ask(page, pages, True)
            return
        super().ahead(start, count, write)

    def pull(self, page: int, count: int) -> None:
        """Ask for the home of pages that are all INVALID or all SHARED, and have one home."""
        before = self.region.engine.last_request
        self.post(_GET, "ask-write", page, count, _WRITE | _HOME)
        self.pulls.update(range(before + 1, self.region.engine.last_request + 1))

    def install(self, message: Message) -> None:
        """DATA is complete in its frames, or GRANT arrived."""
        request = self.requests.get(message.request)
        if request is None:
            return
        region = self.region
        write = message.flags & _WRITE
        runs = self.live_runs(message)
        self._settled(message.request, request, message.page, message.count)
        for page, count in runs:
            if message.flags & _HOME:
                region.home.take(page, count, message.value)
            elif message.value:
                region.placement.set(page, count, message.value - 1)
            if message.flags & _FRESH:
                region.effects.append(Fill(region.number, page, count))
            region.table.versions.run(page, count)
            region.acquirer.listed[page : page + count] = not region.placement.is_mine(page)
            if write:
                region.table.shift("install-exclusive", page, count)
                region.writer.opened(page, count)
            else:
                region.table.shift("install-shared", page, count)
            self._raise(page, count, _WRITE_LEVEL if write else _READ_LEVEL)
            self.settle(page, count)
        region.rehomings.look()

    def _raise(self, page: int, count: int, level: int) -> None:
        """Let workers have pages; there may be several marks among them."""
        region = self.region
        marks = sorted(mark for mark in region.marks if page <= mark < page + count)
        region.marks.difference_update(marks)
        edges = [page, *(mark for mark in marks if mark > page), page + count]
        for low, high in itertools.pairwise(edges):
            mark = low if low in marks else -1
            region.effects.append(Raise(region.number, low, high - low, level, mark))

    def lost(self, message: Message) -> None:
        """The home of pages was asked by way of a node that knows it to be dead."""
        super().lost(message)
        self.region.rehomings.look()

    def moved(self, message: Message) -> None:
        """A request was passed on to the home; or this node (then it is `value`) is the home from now on."""
        region = self.region
        home = message.value
        page, count = message.page, message.count
        if home == region.node:
            region.placement.set(page, count, home)
        elif message.request in self.requests:
            passed_by = self._passed_by.setdefault(message.request, set())
            passed_by.add(home)
            for low, number in self.live_runs(message):  # what was answered meanwhile may have its home here
                passed_by.add(region.placement.directory(low))
                region.placement.set(low, number, home)
            if home in region.engine.lost:
                self.directory_lost(home)

    def _open_claimed(self) -> None:
        """Open fresh pages that an arbiter made this node the home of, and may not live to grant."""
        region = self.region
        for number, request in list(self.requests.items()):
            for page in range(request.page, request.page + request.count):
                if number in self.requests and request.awaits(page) and region.placement.is_mine(page):
                    self._give_up(number, request, page)
                    self.settle(page, 1)

    def _ask_again(self, number: int, request: Request) -> None:
        """Send what is left of a request to where the homes are now; a second answer is not awaited."""
        region = self.region
        kind = _AHEAD if request.speculative else _GET
        for first, together in region.placement.requests(request.page, request.count):
            for page, count in request.awaited(first, together):
                flags = _WRITE if region.table.state[page] in _FOR_WRITING else 0
                flags |= _HOME if number in self.pulls else 0
                message = Message(kind, region.number, page, count, number, region.node, flags)
                region.send(region.placement.directory(page), message)

    def void_pages(self, pages: Pages) -> None:
        """What is on its way to these pages (ascending; READING, WRITING or AHEAD) must not be installed."""
        wanted = set(pages.tolist())
        for number, request in list(self.requests.items()):
            if number in self.pulls:
                continue
            for page in range(request.page, request.page + request.count):
                if page in wanted and request.awaits(page):
                    self._give_up(number, request, page)

    def _give_up(self, number: int, request: Request, page: int) -> None:
        """Do not await this page any more: what still comes for it is not installed."""
        self._settled(number, request, page, 1)
        self.region.table.shift("give-up", page, 1)
        self.region.take_mark(page, 1)

    def _settled(self, number: int, request: Request, page: int, count: int) -> None:
        super()._settled(number, request, page, count)
        if number not in self.requests:
            self.pulls.discard(number)
            self._passed_by.pop(number, None)

    def directory_lost(self, node: int) -> None:
        """The home of some pages died: what is here stays, nothing else can be had.

        What was passed on by that node may never have left it, and is asked for again.
        """
        region = self.region
        directory = region.placement.directory
        for number, request in list(self.requests.items()):
            for page in range(request.page, request.page + request.count):
                if request.awaits(page) and directory(page) == node:
                    self._give_up(number, request, page)
                    self._lose(page, 1, node)
            if number in self.requests and node in self._passed_by.get(number, ()):
                self._ask_again(number, request)
        for page in [page for page in self.waiting if directory(page) == node]:
            self._end(page, self.waiting[page], Status.PAGE_LOST, node)
        self._open_claimed()
        region.rehomings.look()
