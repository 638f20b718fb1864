"""Requester side of bounded staleness: leases, and asking again.

Owns when a copy's lease begins and ends.  A request to read carries the time at which it was sent, by this
node's own clock, and the answer brings it back: whatever the answer holds was current then or later, so that
the lease is counted from there, whichever of several attempts is answered.

Nobody keeps account of requests to read, so one may get lost: its owner died.  What is not answered for a
while is asked again, less and less often, under the same number; the first answer in time is installed, later
ones find nothing.  An answer whose lease is over when it arrives serves nobody: who waits asks again, and
what was only read ahead is given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.messages import Flag, Kind, Lease, Message
from dsm.coherence.requester import Request, Requester
from dsm.coherence.states import State
from dsm.limits import READ_AGAIN_NS

if TYPE_CHECKING:
    from dsm.coherence.bounded.region import BoundedRegion

_WRITE = int(Flag.WRITE)
_GET, _AHEAD = int(Kind.GET), int(Kind.AHEAD)
_READS = frozenset({int(State.READING), int(State.AHEAD)})


class BoundedRequester(Requester):
    """What one node wants of one bounded region."""

    __slots__ = ("again_ns", "deadline")

    region: BoundedRegion

    def __init__(self, region: BoundedRegion) -> None:
        super().__init__(region)
        #: How long an answer is waited for.
        self.again_ns = READ_AGAIN_NS
        #: When to look for requests that were not answered; None while there are none.
        self.deadline: int | None = None

    def fault(self, page: int, write: bool, waiter: int, worker: int, instruction: int) -> None:
        """A thread touched `page` without access: perhaps its lease is over."""
        self.region.table.expire(page, page + 1)
        super().fault(page, write, waiter, worker, instruction)

    def ahead(self, start: int, count: int, write: bool) -> None:
        """Read (or take) pages ahead of a sequential stream."""
        self.region.table.expire(start, min(start + count, self.region.table.pages))
        super().ahead(start, count, write)

    def ask(self, page: int, count: int, write: bool) -> None:
        """Request pages; for writing their contents come always, for a copy here may be old."""
        if write:
            self.post(_GET, "ask-write", page, count, _WRITE)
        else:
            self.post(_GET, "ask-read", page, count, 0)

    def post(self, kind: int, event: str, page: int, count: int, flags: int) -> None:
        super().post(kind, event, page, count, flags)
        if self.deadline is None and not flags & _WRITE:
            self._look_at(self.region.engine.now + self.again_ns)

    def _look_at(self, deadline: int | None) -> None:
        self.deadline = deadline
        if deadline is not None:
            self.region.engine.held_back.add(self.region.number)

    # -- asking again ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Time has passed: ask again what was not answered."""
        now = self.region.engine.now
        if self.deadline is not None and now >= self.deadline:
            reads = [(number, request) for number, request in self.requests.items() if self._is_read(request)]
            for number, request in reads:
                if self._due(request) <= now:
                    self._ask_again(number, request, request.page, request.count)
            self._look_at(min((self._due(request) for _, request in reads), default=None))

    def _due(self, request: Request) -> int:
        """When to send a request again: after ever longer times, for it may only be slow."""
        return request.asked + max(self.again_ns, request.asked - request.sent)

    def owner_lost(self) -> None:
        """A node is dead: what was to send something may have been that one."""
        for number, request in list(self.requests.items()):
            if self._is_read(request):
                self._ask_again(number, request, request.page, request.count)

    def _is_read(self, request: Request) -> bool:
        page = request.page if request.rest is None else next(iter(request.rest))
        return self.region.table.state[page] in _READS

    def _ask_again(self, number: int, request: Request, page: int, count: int) -> None:
        region = self.region
        directory = region.placement.directory(page)
        request.asked = now = region.engine.now
        kind = _AHEAD if request.speculative else _GET
        region.send(directory, Message(kind, region.number, page, count, number, region.node, 0, now))

    # -- answers -----------------------------------------------------------------------------------------

    def install(self, message: Message) -> None:
        """DATA is complete in its frames, or GRANT arrived."""
        request = self.requests.get(message.request)
        if request is None:
            return
        region = self.region
        if message.flags & _WRITE:
            for page, count in self.live_runs(message):
                region.table.ends[page : page + count] = 0
            super().install(message)
            return
        end = (message.value or request.sent) + region.lease_ns
        if end <= region.engine.now:
            self._came_late(message, request)
            return
        for page, count in self.live_runs(message):
            region.table.ends[page : page + count] = end
            region.effects.append(Lease(region.number, page, count, end))
        super().install(message)

    def _came_late(self, message: Message, request: Request) -> None:
        """Nobody may read what came: ask again for those who wait to read, and give up the rest."""
        region = self.region
        latest = (message.value or request.sent) == request.asked
        for page, count in self.live_runs(message):
            region.bulks.pass_over(page, count)
            for each in range(page, page + count):
                waits = self.waiting.get(each)
                if waits and not any(wait.write for wait in waits):
                    if latest:
                        self._ask_again(message.request, request, each, 1)
                elif request.awaits(each):
                    region.table.shift("give-up", each, 1)
                    region.take_mark(each, 1)
                    self._settled(message.request, request, each, 1)
                    self.settle(each, 1)
