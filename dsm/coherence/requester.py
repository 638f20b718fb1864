"""Requester side of sequential coherence: from a fault to an installed page.

Owns the waiting threads and the requests under way.  A page is in at most one request at a time;
whoever else needs it waits and looks again when its state has changed.  Reading ahead is never
confirmed, so an invalidation may overtake its data: it voids those pages of the request, and their late
bytes are drained (order of operations, 5).  So does a directory whose data was to come from a dead node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from dsm.coherence.messages import Fill, Flag, Kind, Level, Message, Raise, Wake
from dsm.coherence.states import PENDING, READABLE, State
from dsm.errors import Status

if TYPE_CHECKING:
    from dsm.coherence.region import ModelRegion

# Plain integers: arithmetic with members of an IntEnum or IntFlag costs up to a microsecond.
_INVALID, _SHARED, _EXCLUSIVE = int(State.INVALID), int(State.SHARED), int(State.EXCLUSIVE)
_READABLE = frozenset(int(state) for state in READABLE)
_PENDING = frozenset(int(state) for state in PENDING)
_WRITE, _FRESH = int(Flag.WRITE), int(Flag.FRESH)
_CONFIRM_FLAG = int(Flag.CONFIRM)
_WRITE_HAVE = int(Flag.WRITE | Flag.HAVE)
_GET, _AHEAD, _CONFIRM, _ABSENT = int(Kind.GET), int(Kind.AHEAD), int(Kind.CONFIRM), int(Kind.ABSENT)
_LEVEL_READ, _LEVEL_WRITE = int(Level.READ), int(Level.WRITE)
_OK = int(Status.OK)


class Request:
    """Pages asked for in one message."""

    __slots__ = ("asked", "count", "page", "rest", "sent", "speculative")

    def __init__(self, page: int, count: int, speculative: bool, now: int) -> None:
        self.page = page
        self.count = count
        self.speculative = speculative
        #: When it was sent, and when for the last time.
        self.sent = self.asked = now
        #: Pages that are neither answered nor void: what comes for others must not be installed.  None: all.
        self.rest: set[int] | None = None

    def awaits(self, page: int) -> bool:
        """Whether a page is neither answered nor void."""
        rest = self.rest
        return self.page <= page < self.page + self.count if rest is None else page in rest

    def awaited(self, page: int, count: int) -> list[tuple[int, int]]:
        """Return those of its pages in a range that are neither answered nor void, as (page, count)."""
        rest = self.rest
        if rest is None:
            return [(page, count)]
        runs: list[tuple[int, int]] = []
        start = -1
        for each in range(page, page + count + 1):
            live = each < page + count and each in rest
            if live and start < 0:
                start = each
            elif not live and start >= 0:
                runs.append((start, each - start))
                start = -1
        return runs

    def settle(self, page: int, count: int) -> bool:
        """Pages are answered or void; False when none is awaited any more."""
        if self.rest is None:
            if count == self.count:
                return False
            self.rest = set(range(self.page, self.page + self.count))
        self.rest.difference_update(range(page, page + count))
        return bool(self.rest)


class Wait(msgspec.Struct, frozen=True, gc=False):
    """A thread in a fault."""

    waiter: int
    write: bool
    #: `Engine.ages`, and the time, when it began.
    age: int
    since: int


class Requester:
    """What one node wants of one region."""

    __slots__ = ("region", "requests", "waiting")

    def __init__(self, region: ModelRegion) -> None:
        self.region = region
        #: request number -> pages under way.
        self.requests: dict[int, Request] = {}
        #: page -> threads in a fault.
        self.waiting: dict[int, list[Wait]] = {}

    # -- what the node's workers want --------------------------------------------------------------------

    def fault(self, page: int, write: bool, waiter: int, worker: int, instruction: int) -> None:
        """A thread touched `page` without the access it needs; it waits, or may go on at once."""
        region = self.region
        table = region.table
        (table.faults_write if write else table.faults_read).one(page)
        # A slot that asks again has mapped what it was given before.
        region.hold.applied(waiter, region.engine.now)
        state = table.state[page]
        if state == _EXCLUSIVE or (not write and state in _READABLE):
            # Granted to another thread meanwhile; the wanted table has it.
            region.effects.append(Wake(waiter, _OK))
            return
        engine = region.engine
        if engine.lost and region.placement.directory(page) in engine.lost:
            region.effects.append(Wake(waiter, Status.PAGE_LOST, region.placement.directory(page)))
            return
        region.hold.fault(region.base + page, waiter, worker, instruction, engine.now)
        self.waiting.setdefault(page, []).append(Wait(waiter, write, engine.ages, engine.now))
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
        self.post(_GET, "ask-write" if write else "ask-read", page, count, flags)

    def post(self, kind: int, event: str, page: int, count: int, flags: int) -> None:
        """Shift pages and send one request for each run of them that has one directory node."""
        region = self.region
        placement = region.placement
        lost = region.engine.lost
        end = page + count
        while page < end:
            stop = end if count == 1 else min(end, placement.request_end(page))
            directory = placement.directory(page)
            if lost and directory in lost:
                self._lose(page, stop - page, directory)
                page = stop
                continue
            region.table.shift(event, page, stop - page)
            number = region.engine.next_request()
            self.requests[number] = Request(page, stop - page, kind == _AHEAD, region.engine.now)
            message = Message(kind, region.number, page, stop - page, number, region.node, flags)
            region.send(directory, message)
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
            self.post(_AHEAD, "ask-ahead", page, pages, 0)

    def cancel(self, waiter: int) -> bool:
        """End a wait with CANCELLED; False when `waiter` is in no fault of this region."""
        for page, waits in self.waiting.items():
            ended = [wait for wait in waits if wait.waiter == waiter]
            if ended:
                self._end(page, ended, Status.CANCELLED)
                return True
        return False

    def forget(self, waits: Callable[[int], bool]) -> None:
        """Threads of a worker that is gone wait for nothing."""
        for page in list(self.waiting):
            self._keep(page, [wait for wait in self.waiting[page] if not waits(wait.waiter)])

    def end_all(self, status: Status) -> None:
        """Every wait ends with `status`; late answers find no request."""
        for page, waits in list(self.waiting.items()):
            self._end(page, waits, status)
        self.requests.clear()

    def expire(self, age: int) -> None:
        """End the waits that began at `age` or before; their pages are installed when they come."""
        for page, waits in list(self.waiting.items()):
            late = [wait for wait in waits if wait.age <= age]
            if late:
                self._end(page, late, Status.PAGE_TIMEOUT, self.region.awaited(page))

    def _end(self, page: int, ended: list[Wait], status: Status, peer: int = -1) -> None:
        region = self.region
        for wait in ended:
            region.hold.ended(wait.waiter, region.engine.now)
            region.effects.append(Wake(wait.waiter, int(status), peer))
        self._keep(page, [wait for wait in self.waiting[page] if wait not in ended])

    def _keep(self, page: int, waits: list[Wait]) -> None:
        if waits:
            self.waiting[page] = waits
        else:
            del self.waiting[page]

    # -- what cannot be had any more ---------------------------------------------------------------------

    def directory_lost(self, node: int) -> None:
        """The directory node of some pages died: what is here stays, nothing else can be had."""
        region = self.region
        directory, state = region.placement.directory, region.table.state
        for number, request in list(self.requests.items()):
            if directory(request.page) == node:
                del self.requests[number]
                for page in range(request.page, request.page + request.count):
                    if state[page] in _PENDING:
                        region.table.shift("give-up", page, 1)
                        region.take_mark(page, 1)
                        self._lose(page, 1, node)
        for page in [page for page in self.waiting if directory(page) == node]:
            self._end(page, self.waiting[page], Status.PAGE_LOST, node)

    def _lose(self, page: int, count: int, peer: int) -> None:
        """Pages that are not here cannot be had any more: whoever waits for one of them ends."""
        for waited in [p for p in self.waiting if page <= p < page + count]:
            self._end(waited, self.waiting[waited], Status.PAGE_LOST, peer)
        if self.region.bulks.under_way:
            self.region.bulks.lose(page, count, peer)

    def void_request(self, message: Message) -> None:
        """The directory takes back what a dead node was to send, unless it is here already."""
        region = self.region
        page, count = message.page, message.count
        request = self.requests.get(message.request)
        if request is None or not request.awaits(page):
            return  # installed: our CONFIRM is on its way
        self._settled(message.request, request, page, count)
        region.table.shift("give-up", page, count)
        absent = Message(_ABSENT, region.number, page, count, message.request, region.node)
        region.send(region.placement.directory(page), absent)
        self.settle(page, count)

    def lost(self, message: Message) -> None:
        """The directory says that pages went away with a node."""
        request = self.requests.get(message.request)
        if request is None:
            return
        runs = self.live_runs(message)
        self._settled(message.request, request, message.page, message.count)
        for page, count in runs:
            self.region.table.shift("give-up", page, count)
            self._lose(page, count, message.node)

    # -- what other nodes answer -------------------------------------------------------------------------

    def live_runs(self, message: Message) -> list[tuple[int, int]]:
        """Pages of an answer that are to be installed, as (page, count)."""
        request = self.requests.get(message.request)
        return [] if request is None else request.awaited(message.page, message.count)

    def install(self, message: Message) -> None:
        """DATA is complete in its frames, or GRANT arrived."""
        request = self.requests.get(message.request)
        if request is None:
            return
        region = self.region
        flags = message.flags
        write = flags & _WRITE
        runs = self.live_runs(message)
        self._settled(message.request, request, message.page, message.count)
        for page, count in runs:
            region.table.shift("install-exclusive" if write else "install-shared", page, count)
            region.table.versions.run(page, count)
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
            text = f"request {message.request} was declined, but it is not speculative"
            raise self.region.broken(message.page, text)
        runs = self.live_runs(message)
        self._settled(message.request, request, message.page, message.count)
        region = self.region
        for page, count in runs:
            region.table.shift("declined", page, count)
            region.read_ahead.declined(page)
            region.take_mark(page, count)
            self.settle(page, count)

    def void(self, page: int, count: int) -> None:
        """The data of pages that are being read ahead (all are AHEAD) must not be installed any more."""
        for number, request in list(self.requests.items()):
            if request.speculative:
                low = max(page, request.page)
                high = min(page + count, request.page + request.count)
                if low < high:
                    self._settled(number, request, low, high - low)

    def _settled(self, number: int, request: Request, page: int, count: int) -> None:
        """Pages of a request are answered, or void: at the end it is forgotten."""
        if not request.settle(page, count):
            del self.requests[number]

    def settle(self, page: int, count: int) -> None:
        """The state of these pages changed: wake who is served, ask for who is not."""
        waiting = self.waiting
        if waiting:
            if count == 1:
                if page in waiting:
                    self._settle_page(page)
            else:
                for waited in [p for p in waiting if page <= p < page + count]:
                    if waited in waiting:  # what one page opens may have served others
                        self._settle_page(waited)
        if self.region.bulks.under_way:
            self.region.bulks.settle(page, count)

    def _settle_page(self, page: int) -> None:
        region = self.region
        state = region.table.state[page]
        left = []
        for wait in self.waiting.pop(page):
            if state == _EXCLUSIVE or (not wait.write and state in _READABLE):
                region.hold.granted(wait.waiter, region.base + page, region.engine.now)
                region.effects.append(Wake(wait.waiter, _OK))
                if region.engine.held_back:
                    region.engine.look_soon()
            else:
                left.append(wait)
        if left:
            self.waiting[page] = left
            if state in (_INVALID, _SHARED):
                self.ask(page, 1, any(wait.write for wait in left))
