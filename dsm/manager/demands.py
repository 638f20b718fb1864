"""Leases of servers, at the coordinator: who may have a lease that the cluster does not know.

Owns the list of lease servers (workers that serve clients over the network out of memory of their own) and
the searches under way.  A server keeps one `AwaitDemand` open.  When a worker opens an unknown lease, every
server is asked; the one that has it makes it a lease of the cluster (`CreateLease` with its id) and says so
(`DemandDone`), the others say that it is not theirs.  A server that ends, or that is stopped, keeps nobody
waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from dsm.errors import Status, UsageError
from dsm.limits import DEMAND_WAIT_S
from dsm.wire import control, leasing
from dsm.wire import membership as meta

#: Node, and number on it.
Worker = tuple[int, int]
#: Called with why the lease cannot be opened; None: it is known now, or nobody has it.
Then = Callable[[control.Failed | None], None]
_MAX_MESSAGE = 1000


class Timers(Protocol):
    """What sets timers."""

    after: Callable[[float, Callable[[], None]], None]


@dataclass
class _Server:
    """A worker that leases out memory of its own."""

    #: Where its next demand goes.
    poll: Callable[[meta.Reply], None] | None = None
    #: Demands that wait for it to ask.
    queue: deque[leasing.Demand] = field(default_factory=deque)


@dataclass
class _Search:
    """Somebody opens a lease that the cluster does not know."""

    waiting: list[Then]
    asked: set[Worker] = field(default_factory=set)
    awaiting: set[Worker] = field(default_factory=set)
    #: A server that does not answer.
    silent: Worker | None = None


class Demands:
    """Lease servers, and what they are asked.

    Parameters
    ----------
    timers
        The loop's.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._servers: dict[Worker, _Server] = {}
        #: By id and key.
        self._searches: dict[tuple[bytes, bytes], _Search] = {}
        #: Demands that were not answered: who was asked, and for which search.
        self._open: dict[int, tuple[Worker, tuple[bytes, bytes]]] = {}
        self._count = 0

    # -- servers -----------------------------------------------------------------------------------------

    def serve(self, worker: Worker) -> None:
        """A worker is a lease server from now on."""
        self._servers.setdefault(worker, _Server())

    def wait(self, worker: Worker, answer: Callable[[meta.Reply], None]) -> None:
        """A server asks for its next demand."""
        server = self._servers.get(worker)
        if server is None:
            raise UsageError("AwaitDemand is for lease servers; ServeLeases makes a worker one")
        if server.queue:
            answer(server.queue.popleft())
        else:
            if server.poll is not None:
                server.poll(control.Failed(Status.USAGE, "this server asked again"))
            server.poll = answer

    def done(self, worker: Worker, body: leasing.DemandDone) -> None:
        """A server has answered a demand; nothing happens when nobody waits any more."""
        found = self._open.get(body.number)
        if found is None:
            return
        if found[0] != worker:
            raise UsageError(f"demand {body.number} was not made of this worker")
        del self._open[body.number]
        if body.status == Status.OK:
            self._finish(found[1], None)
        elif body.status == Status.UNKNOWN_LEASE:
            self._not_there(worker, found[1])
        else:
            status = body.status if body.status in set(Status) else Status.INTERNAL
            self._finish(found[1], control.Failed(status, body.message[:_MAX_MESSAGE]))

    def workers_gone(self, gone: Callable[[Worker], bool]) -> None:
        """Processes are gone: servers among them have nothing any more."""
        for worker in [worker for worker in self._servers if gone(worker)]:
            del self._servers[worker]
            for number, (asked, key) in list(self._open.items()):
                if asked == worker and self._open.pop(number, None) is not None:
                    self._not_there(worker, key)

    # -- searches ----------------------------------------------------------------------------------------

    def search(self, worker: Worker, body: leasing.OpenLease, then: Then) -> None:
        """Ask every server for a lease, but the one that opens it; `then` follows, perhaps at once."""
        key = body.id, body.key
        search = self._searches.get(key)
        fresh = search is None
        if search is None:
            search = self._searches[key] = _Search([])
        search.waiting.append(then)
        self._ask(key, search, [each for each in self._servers if body.own or each != worker])
        if not search.awaiting:
            self._finish(key, None)
        elif fresh:
            self._watch(key, search)

    def _ask(self, key: tuple[bytes, bytes], search: _Search, servers: Iterable[Worker]) -> None:
        for worker in servers:
            if worker in search.asked:
                continue
            search.asked.add(worker)
            search.awaiting.add(worker)
            self._count += 1
            self._open[self._count] = worker, key
            demand = leasing.Demand(self._count, *key)
            server = self._servers[worker]
            if server.poll is None:
                server.queue.append(demand)
            else:
                poll, server.poll = server.poll, None
                poll(demand)

    def _not_there(self, worker: Worker, key: tuple[bytes, bytes]) -> None:
        search = self._searches.get(key)
        if search is None:
            return
        search.awaiting.discard(worker)
        if search.awaiting:
            return
        if search.silent is None:
            self._finish(key, None)
        else:
            node, number = search.silent
            why = (
                f"the lease may be with the lease server that is worker {number} of node {node}, which does "
                "not answer: it is stopped or overloaded; try again"
            )
            self._finish(key, control.Failed(Status.PAGE_TIMEOUT, why))

    def _finish(self, key: tuple[bytes, bytes], refusal: control.Failed | None) -> None:
        search = self._searches.pop(key, None)
        if search is not None:
            for number in [number for number, (_, asked) in self._open.items() if asked == key]:
                worker, _ = self._open.pop(number)
                server = self._servers[worker]
                server.queue = deque(demand for demand in server.queue if demand.number != number)
            for then in search.waiting:
                then(refusal)

    def _watch(self, key: tuple[bytes, bytes], search: _Search) -> None:
        """Give up servers that have been asked for long and do not even ask for their next demand."""

        def look() -> None:
            if self._searches.get(key) is not search:
                return
            for worker in list(search.awaiting):
                if self._servers[worker].poll is None:
                    search.silent = worker
                    self._not_there(worker, key)
            if self._searches.get(key) is search:
                self._timers.after(DEMAND_WAIT_S, look)

        self._timers.after(DEMAND_WAIT_S, look)
