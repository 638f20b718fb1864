"""Who keeps a wait waiting.

Owns what is known of that for each kind of wait.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dsm.cli.status.view import PAGES, Vertex, View
from dsm.cli.status.words import seconds
from dsm.types import JOB_BARRIER
from dsm.wire.status import STOPPED, Demand, NodeStatus, ObjectStatus


class Process(NamedTuple):
    """A worker that keeps somebody waiting."""

    node: int
    worker: int


class Manager(NamedTuple):
    """A manager that keeps somebody waiting."""

    node: int


class Absent(NamedTuple):
    """A rank without a worker."""

    rank: int


Culprit = Process | Manager | Absent


@dataclass
class Blocker:
    """Who keeps a wait waiting, by what, and what that one waits for itself."""

    culprit: Culprit
    #: What it does, to follow its name: ``holds lock 'best' since 41 s``.
    deed: str
    waits: list[Vertex] = field(default_factory=list)


class Blockers:
    """Of the waits in a view.

    Parameters
    ----------
    view
        Where it is looked up.
    vertices
        The waits that count.
    """

    def __init__(self, view: View, vertices: Sequence[Vertex]) -> None:
        self._view = view
        self._vertices = vertices

    def of(self, vertex: Vertex) -> list[Blocker]:
        """Return who keeps a wait waiting; nobody: it is not known."""
        wait = vertex.wait
        if wait.kind in PAGES:
            return self._merged(self._page_blockers(vertex))
        if wait.fenced:
            return self._merged(self._fence_blockers(self._view.nodes[vertex.node]))
        if wait.kind in ("open", "destroy"):
            return self._merged(self._question_blockers(vertex))
        it = self._view.objects.get(wait.object)
        if it is None or it.kind != wait.kind:
            return [
                Blocker(Manager(node), f"decides about {self._view.what(wait)}")
                for node in wait.asked
                if node in self._view.silent
            ]
        if it.kind == "lock" and it.holder is None and it.lent >= 0:
            if it.lent in self._view.silent:
                return [Blocker(Manager(it.lent), f"was asked to give back lock {it.name!r}")]
            # It answers, so it is paying what it owes: the lock follows the release of its memory.
            return (
                self._merged(self._fence_blockers(self._view.nodes[it.lent]))
                if it.lent in self._view.nodes
                else []
            )
        if it.kind == "barrier":
            return self._barrier_blockers(it)
        if it.kind == "semaphore":
            return self._unit_blockers(it)
        if it.kind == "condition":
            return self._notified_blockers(vertex, it)
        return self._holders_of(it)

    def _holders_of(self, it: ObjectStatus) -> list[Blocker]:
        """Who holds a lock; of a rwlock everybody who does: whoever waits waits for all of them."""
        found: list[Blocker] = []
        for holder in (it.holder,) if it.holder is not None else it.holders:
            part = self._view.nodes.get(holder.node)
            if part and part.fencing and it.object in part.fencing.released:
                found += self._fence_blockers(part)
                continue
            how = " for reading" if it.holder is None else ""
            deed = f"holds {it.kind} {it.name!r}{how} since {seconds(holder.since_s)}"
            waits = self._of_token(holder.node, holder.worker, holder.token)
            found.append(self._held_by(holder.node, holder.worker, deed, waits))
        return found

    def _fence_blockers(self, part: NodeStatus) -> Iterator[Blocker]:
        """Who keeps a node from releasing or acquiring memory: homes, workers that do not let go, pins."""
        fencing = part.fencing
        if fencing is None:
            return
        for node in fencing.nodes:
            if node in self._view.silent:
                yield Blocker(Manager(node), f"has not acknowledged what node {part.node} has written")
        for number in fencing.workers:
            deed = f"has pages mapped that node {part.node} is to release or give up"
            yield self._held_by(part.node, number, deed, [])
        for pin in part.pins if fencing.pinned else ():
            if pin.granted:
                deed = f"holds a pin on {self._view.pages(pin.region, pin.page, pin.count)}"
                waits = self._of_main(part.node, pin.worker)
                yield self._held_by(part.node, pin.worker, f"{deed} since {seconds(pin.since_s)}", waits)

    def _unit_blockers(self, it: ObjectStatus) -> list[Blocker]:
        """Who has units of a bounded semaphore: any of them may release one, so only one has to."""
        deed = f"has units of semaphore {it.name!r}"
        holders = [(holder.node, holder.worker) for holder in it.holders]
        if len(holders) == 1:
            return [self._held_by(*holders[0], deed, self._of_main(*holders[0]))]
        return [self._held_by(*each, deed, []) for each in holders if not self._of_worker(*each)]

    def _notified_blockers(self, vertex: Vertex, it: ObjectStatus) -> list[Blocker]:
        """Who holds the lock that a notified thread waits for; nobody is known that is to notify others."""
        me = (vertex.node, vertex.worker, vertex.wait.token)
        lock = self._view.objects.get(it.value)
        if lock is None or any((each.node, each.worker, each.token) == me for each in it.waiting):
            return []
        return self._holders_of(lock)

    def _barrier_blockers(self, it: ObjectStatus) -> list[Blocker]:
        missing = it.value - len(it.waiting)
        oldest = max((party.since_s for party in it.waiting), default=0.0)
        which = "the barrier of the job" if it.name == JOB_BARRIER else f"barrier {it.name!r}"
        come = f"{len(it.waiting)} of {it.value} have come, the first {seconds(oldest)} ago"
        deed = f"is missing from {which} ({come})"
        outside = self._view.outside(it)
        if len(outside) > missing:
            return []  # any of them
        found = [self._held_by(*each, deed, self._of_main(*each)) for each in outside]
        if it.name != JOB_BARRIER or len(outside) == missing:
            return found
        if self._view.silent:
            keeps = f"keeps workers that are missing from {which}"
            return found + [Blocker(Manager(node), keeps) for node in self._view.silent]
        here = {worker.rank for worker in self._view.workers.values()}
        return found + [Blocker(Absent(rank), deed) for rank in range(it.value) if rank not in here]

    def _question_blockers(self, vertex: Vertex) -> Iterator[Blocker]:
        """Who keeps a question from being answered: its creator fills a region, or nodes must hear of it."""
        wait = vertex.wait
        for node in self._view.silent:
            yield Blocker(Manager(node), f"has to hear of {self._view.what(wait)}")
        for part in self._view.cluster.nodes:
            for each in part.unready:
                if (each.node, each.worker) == (vertex.node, vertex.worker):
                    continue  # a creator fills its region when this question is answered
                if each.worker >= 0 and (each.region == wait.object or each.name == wait.name is not None):
                    name = repr(each.name) if each.name is not None else each.region
                    deed = f"has created region {name} and not filled it yet"
                    yield self._held_by(each.node, each.worker, deed, self._of_main(each.node, each.worker))

    def _page_blockers(self, vertex: Vertex) -> Iterator[Blocker]:
        wait = vertex.wait
        low, high = wait.page, wait.page + wait.count
        what = self._view.what(wait)
        for node in wait.asked:
            if node in self._view.silent:
                yield Blocker(Manager(node), f"was asked for {what}")
        for part in self._view.cluster.nodes:
            for each in part.transactions:
                concerned = vertex.node == each.requester or vertex.node in each.queue
                if each.region == wait.object and concerned and _overlap(each.page, each.count, low, high):
                    for node in each.missing:
                        if node in self._view.silent:
                            yield Blocker(Manager(node), f"has, or is to confirm, {what}")
            for demand in part.demands:
                if demand.region == wait.object and _overlap(demand.page, demand.count, low, high):
                    yield from self._demand_blockers(part, demand)

    def _demand_blockers(self, part: NodeStatus, demand: Demand) -> Iterator[Blocker]:
        """Who keeps a node from giving pages up: workers that do not let go, or pins."""
        pages = self._view.pages(demand.region, demand.page, demand.count)
        for worker in demand.workers:
            yield self._held_by(part.node, worker, f"has {pages} mapped and does not let go", [])
        if demand.workers:
            return
        for pin in part.pins:
            if pin.region != demand.region or not (demand.write or pin.write):
                continue
            if _overlap(pin.page, pin.count, demand.page, demand.page + demand.count):
                pinned = self._view.pages(pin.region, pin.page, pin.count)
                if pin.granted:
                    deed = f"holds a pin on {pinned} since {seconds(pin.since_s)}"
                    yield self._held_by(part.node, pin.worker, deed, self._of_main(part.node, pin.worker))
                else:
                    waits = [v for v in self._of_worker(part.node, pin.worker) if v.wait.kind == "pin"]
                    yield self._held_by(
                        part.node, pin.worker, f"waits for a pin and holds {pinned} for it", waits
                    )

    def _held_by(self, node: int, number: int, deed: str, waits: list[Vertex]) -> Blocker:
        """Return who keeps others waiting: a stopped process does so whatever it waits for."""
        worker = self._view.workers.get((node, number))
        if worker is None and node in self._view.silent:
            return Blocker(Manager(node), f"has a worker that {deed}")
        if worker is None:
            return Blocker(Process(node, number), deed)
        return Blocker(Process(node, number), deed, [] if worker.state in STOPPED else waits)

    def _merged(self, blockers: Iterable[Blocker]) -> list[Blocker]:
        """Leave each reason once."""
        return list({(blocker.culprit, blocker.deed): blocker for blocker in blockers}.values())

    def _of_worker(self, node: int, worker: int) -> list[Vertex]:
        return [vertex for vertex in self._vertices if (vertex.node, vertex.worker) == (node, worker)]

    def _of_token(self, node: int, worker: int, token: int) -> list[Vertex]:
        """Return what the thread of that token waits for: faults and pins do not say whose they are."""
        waits = self._of_worker(node, worker)
        return [v for v in waits if v.wait.token == token] or [v for v in waits if not v.wait.token]

    def _of_main(self, node: int, worker: int) -> list[Vertex]:
        """Return what a worker's first thread waits for: which of its threads is meant is not known."""
        process = self._view.workers.get((node, worker))
        return [v for v in self._of_worker(node, worker) if process and v.wait.thread == process.pid]


def _overlap(page: int, count: int, low: int, high: int) -> bool:
    return page < high and low < page + count
