"""Requester side of sequential coherence: from a fault to an installed page.

Owns the waiting threads, the requests under way, prefetch and pin.  A page is in at most one request
at a time; whoever else needs it waits and looks again when its state has changed.  Reading ahead is
never confirmed, so an invalidation may overtake its data: it voids those pages of the request, and
their late bytes are drained (order of operations, 5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.coherence.messages import Fill, Flag, Kind, Level, Message, Raise, Wake
from dsm.coherence.states import READABLE, State
from dsm.errors import InternalError, Status

if TYPE_CHECKING:
    from dsm.coherence.sequential import SequentialRegion

# Plain integers: arithmetic with members of an IntEnum or IntFlag costs up to a microsecond.
_INVALID, _SHARED, _EXCLUSIVE = int(State.INVALID), int(State.SHARED), int(State.EXCLUSIVE)
_READABLE = frozenset(int(state) for state in READABLE)
_WRITE, _FRESH = int(Flag.WRITE), int(Flag.FRESH)
_CONFIRM_FLAG = int(Flag.CONFIRM)
_WRITE_HAVE = int(Flag.WRITE | Flag.HAVE)
_GET, _AHEAD, _CONFIRM = int(Kind.GET), int(Kind.AHEAD), int(Kind.CONFIRM)
_LEVEL_READ, _LEVEL_WRITE = int(Level.READ), int(Level.WRITE)
_OK = int(Status.OK)


class Request:
    """Pages asked for in one message."""

    __slots__ = ("count", "left", "page", "speculative", "void")

    def __init__(self, page: int, count: int, speculative: bool) -> None:
        self.page = page
        self.count = count
        self.speculative = speculative
        #: Pages not answered yet.
        self.left = count
        #: Pages whose answer must not be installed any more.
        self.void: set[int] | None = None


class Bulk:
    """A prefetch or pin: its pages are taken in ascending order, so that two pins cannot deadlock."""

    __slots__ = ("asked", "cursor", "end", "page", "pin", "waiter", "write")

    def __init__(self, page: int, count: int, write: bool, waiter: int, pin: bool) -> None:
        self.page = page
        self.end = page + count
        self.write = write
        self.waiter = waiter
        self.pin = pin
        #: Pages before it have been here (prefetch), or are here and held (pin).
        self.cursor = page
        #: Pages before it have been asked for.
        self.asked = page


class Requester:
    """What one node wants of one region."""

    __slots__ = ("bulks", "region", "requests", "waiting")

    def __init__(self, region: SequentialRegion) -> None:
        self.region = region
        #: request number -> pages under way.
        self.requests: dict[int, Request] = {}
        #: page -> [(waiter, write)]: threads in a fault.
        self.waiting: dict[int, list[tuple[int, bool]]] = {}
        self.bulks: list[Bulk] = []

    # -- what the node's workers want --------------------------------------------------------------------

    def fault(self, page: int, write: bool, waiter: int, worker: int, instruction: int) -> None:
        """A thread touched `page` without the access it needs; it waits, or may go on at once."""
        region = self.region
        # A slot that asks again has mapped what it was given before.
        region.hold.applied(waiter, region.engine.now)
        state = region.table.state[page]
        if state == _EXCLUSIVE or (not write and state in _READABLE):
            # Granted to another thread meanwhile; the wanted table has it.
            region.effects.append(Wake(waiter, _OK))
            return
        if region.failed is not None:
            region.effects.append(Wake(waiter, region.failed))
            return
        region.hold.fault(region.base + page, waiter, worker, instruction, region.engine.now)
        self.waiting.setdefault(page, []).append((waiter, write))
        if state in (_INVALID, _SHARED):
            self.ask(page, 1, write)
        start, count = region.read_ahead.fault(page, worker, write)
        if count:
            self.ahead(start, count, write)

    def touched(self, page: int, worker: int) -> None:
        """A worker used the first page of a window that was read ahead: open the next one."""
        start, count = self.region.read_ahead.touched(page, worker)
        if count:
            self.ahead(start, count, False)

    def ask(self, page: int, count: int, write: bool) -> None:
        """Request pages that are all INVALID, or (for writing) all SHARED."""
        flags = 0
        if write:
            flags = _WRITE_HAVE if self.region.table.state[page] == _SHARED else _WRITE
        self._post(_GET, "ask-write" if write else "ask-read", page, count, flags)

    def _post(self, kind: int, event: str, page: int, count: int, flags: int) -> None:
        """Shift pages and send one request for each run of them that has one directory node."""
        region = self.region
        placement = region.placement
        end = page + count
        while page < end:
            stop = end if count == 1 else min(end, placement.request_end(page))
            region.table.shift(event, page, stop - page)
            number = region.engine.next_request()
            self.requests[number] = Request(page, stop - page, kind == _AHEAD)
            message = Message(kind, region.number, page, stop - page, number, region.node, flags)
            region.send(placement.directory(page), message)
            page = stop

    def ahead(self, start: int, count: int, write: bool) -> None:
        """Read (or take) pages ahead of a sequential stream."""
        region = self.region
        table = region.table
        end = min(start + count, table.pages)
        if start >= end:
            return
        if write:
            # Ownership is not speculative: these are ordinary requests for which nobody waits.
            for page, pages in table.missing_runs(start, end, True):
                self.ask(page, pages, True)
            return
        if table.state[start] == _INVALID:
            region.marks.add(start)
        for page, pages in table.missing_runs(start, end, False):
            self._post(_AHEAD, "ask-ahead", page, pages, 0)

    def bulk(self, page: int, count: int, write: bool, waiter: int, pin: bool) -> None:
        """Bring pages here, and hold them with `pin`; `waiter` is woken when all have been, or are, here."""
        self.region.hold.applied(waiter, self.region.engine.now)
        bulk = Bulk(page, count, write, waiter, pin)
        if self.region.failed is not None:
            self.region.effects.append(Wake(waiter, self.region.failed))
            return
        self.bulks.append(bulk)
        self._ask_ahead(bulk)
        self._advance(bulk)

    def _ask_ahead(self, bulk: Bulk) -> None:
        """Ask for what is missing of the next window; a little at a time, so that others get their turn."""
        limit = min(bulk.end, bulk.cursor + self.region.bulk_pages)
        if limit - bulk.asked < self.region.placement.chunk_pages and limit < bulk.end:
            return
        runs = self.region.table.missing_runs(bulk.asked, limit, bulk.write)
        bulk.asked = limit
        for run, pages in runs:
            self.ask(run, pages, bulk.write)

    def cancel(self, waiter: int) -> bool:
        """End a wait with CANCELLED; False when `waiter` does not wait in this region."""
        for page, waiters in self.waiting.items():
            left = [w for w in waiters if w[0] != waiter]
            if len(left) != len(waiters):
                if left:
                    self.waiting[page] = left
                else:
                    del self.waiting[page]
                self.region.hold.ended(waiter, self.region.engine.now)
                break
        else:
            bulks = [b for b in self.bulks if b.waiter != waiter]
            if len(bulks) == len(self.bulks):
                return False
            self.bulks = bulks
            self.region.holder.resume()
        self.region.effects.append(Wake(waiter, Status.CANCELLED))
        return True

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        for page in list(self.waiting):
            left = [entry for entry in self.waiting[page] if not waits(entry[0])]
            if left:
                self.waiting[page] = left
            else:
                del self.waiting[page]
        self.bulks = [bulk for bulk in self.bulks if not waits(bulk.waiter)]

    def end_all(self, status: Status) -> None:
        """Every wait ends with `status`; late answers find no request."""
        effects = self.region.effects
        for waiters in self.waiting.values():
            for waiter, _ in waiters:
                self.region.hold.ended(waiter, self.region.engine.now)
            effects.extend(Wake(waiter, status) for waiter, _ in waiters)
        effects.extend(Wake(bulk.waiter, status) for bulk in self.bulks)
        self.waiting.clear()
        self.bulks.clear()
        self.requests.clear()

    # -- what other nodes answer -------------------------------------------------------------------------

    def live_runs(self, message: Message) -> list[tuple[int, int]]:
        """Pages of an answer that are to be installed, as (page, count)."""
        request = self.requests.get(message.request)
        if request is None:
            return []
        if request.void is None:
            return [(message.page, message.count)]
        runs: list[tuple[int, int]] = []
        start = -1
        for page in range(message.page, message.page + message.count + 1):
            live = page < message.page + message.count and page not in request.void
            if live and start < 0:
                start = page
            elif not live and start >= 0:
                runs.append((start, page - start))
                start = -1
        return runs

    def install(self, message: Message) -> None:
        """DATA is complete in its frames, or GRANT arrived."""
        request = self.requests.get(message.request)
        if request is None:
            return
        region = self.region
        flags = message.flags
        write = flags & _WRITE
        runs = self.live_runs(message)
        self._answered(message, request)
        for page, count in runs:
            region.table.shift("install-exclusive" if write else "install-shared", page, count)
            if flags & _FRESH:
                region.effects.append(Fill(region.number, page, count))
            mark = region.take_mark(page, count)
            level = _LEVEL_WRITE if write else _LEVEL_READ
            region.effects.append(Raise(region.number, page, count, level, mark))
            self.settle(page, count)
        if flags & _CONFIRM_FLAG:
            confirm = Message(
                _CONFIRM, region.number, message.page, message.count, message.request, region.node
            )
            region.send(region.placement.directory(message.page), confirm)

    def decline(self, message: Message) -> None:
        """The directory does not serve these pages of a read-ahead: they are INVALID again."""
        request = self.requests.get(message.request)
        if request is None:
            return
        if not request.speculative:
            raise InternalError(f"request {message.request} was declined, but it is not speculative")
        runs = self.live_runs(message)
        self._answered(message, request)
        region = self.region
        for page, count in runs:
            region.table.shift("declined", page, count)
            region.read_ahead.declined(page)
            region.take_mark(page, count)
            self.settle(page, count)

    def void(self, page: int, count: int) -> None:
        """An invalidation overtook the data of pages that are being read ahead (all are AHEAD)."""
        for request in self.requests.values():
            if request.speculative:
                low = max(page, request.page)
                high = min(page + count, request.page + request.count)
                if low < high:
                    if request.void is None:
                        request.void = set()
                    request.void.update(range(low, high))

    def settle(self, page: int, count: int) -> None:
        """The state of these pages changed: wake who is served, ask for who is not."""
        waiting = self.waiting
        if waiting:
            if count == 1:
                if page in waiting:
                    self._settle_page(page)
            else:
                for waited in [p for p in waiting if page <= p < page + count]:
                    self._settle_page(waited)
        if self.bulks:
            for bulk in list(self.bulks):
                if page < bulk.end and page + count > bulk.cursor:
                    self._advance(bulk)

    def _settle_page(self, page: int) -> None:
        region = self.region
        state = region.table.state[page]
        left = []
        for entry in self.waiting.pop(page):
            waiter, write = entry
            if state == _EXCLUSIVE or (not write and state in _READABLE):
                region.hold.granted(waiter, region.base + page, region.engine.now)
                region.effects.append(Wake(waiter, _OK))
            else:
                left.append(entry)
        if left:
            self.waiting[page] = left
            if state in (_INVALID, _SHARED):
                self.ask(page, 1, any(write for _, write in left))

    def _answered(self, message: Message, request: Request) -> None:
        request.left -= message.count
        if request.left <= 0:
            del self.requests[message.request]

    def _advance(self, bulk: Bulk) -> None:
        if bulk not in self.bulks:
            return
        table = self.region.table
        bulk.cursor = table.present_end(bulk.cursor, bulk.end, bulk.write)
        if bulk.cursor == bulk.end:
            self.bulks.remove(bulk)
            if bulk.pin:
                self.region.pins.append((bulk.page, bulk.end, bulk.write))
            self.region.effects.append(Wake(bulk.waiter, _OK))
            return
        self._ask_ahead(bulk)
        state = table.state[bulk.cursor]
        if state == _INVALID or (bulk.write and state == _SHARED):
            # Taken away again before its turn came.
            for run, pages in table.missing_runs(bulk.cursor, bulk.asked, bulk.write):
                self.ask(run, pages, bulk.write)
