"""Why a job stands still: from who waits for whom to who keeps everybody waiting, in plain sentences.

Owns the reasoning of `dsm status`.  Pure: one status value in, sentences out.  A wait is a vertex; it leads
to the waits of whoever keeps it waiting.  Where that ends is a culprit: a process that is stopped, or one
that runs and does not wait in dsm; a manager that does not answer; a rank that is not there.  Where it does
not end is a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dsm.cli.status.circles import circles
from dsm.cli.status.words import enumerate_words, seconds
from dsm.types import JOB_BARRIER
from dsm.wire.status import (
    STOPPED,
    ClusterStatus,
    Demand,
    NodeStatus,
    ObjectStatus,
    SilentNode,
    Wait,
    WorkerStatus,
)

#: Waits that are shorter are no reason to worry.
PATIENCE_S = 1.0
#: Who is to end these waits nobody can know.
_SILENT = {
    "event": ", which nobody has set",
    "condition": ", of which nobody has notified it",
    "semaphore": ", which has too few free units; who is to release some is not known",
}
#: Kinds of waits for pages.
PAGES = frozenset({"read", "write", "prefetch", "pin"})


class Vertex(NamedTuple):
    """One waiting thread."""

    node: int
    worker: int
    wait: Wait


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


def verdict(cluster: ClusterStatus, patience_s: float = PATIENCE_S) -> list[str]:
    """Say who keeps whom waiting.

    Parameters
    ----------
    cluster
        What the nodes said.
    patience_s
        Waits shorter than that do not count.

    Returns
    -------
    list of str
        At least one sentence; the first ones name culprits.
    """
    return _Reasoning(cluster, patience_s).sentences()


class _Reasoning:
    """The graph of one status value."""

    def __init__(self, cluster: ClusterStatus, patience_s: float) -> None:
        self._cluster = cluster
        self._nodes: dict[int, NodeStatus] = {node.node: node for node in cluster.nodes}
        self._silent: dict[int, SilentNode] = {node.node: node for node in cluster.silent}
        self._workers: dict[tuple[int, int], WorkerStatus] = {
            (node.node, worker.worker): worker for node in cluster.nodes for worker in node.workers
        }
        self._objects: dict[int, ObjectStatus] = {
            it.object: it for node in cluster.nodes for it in node.objects
        }
        self._vertices = [
            Vertex(node, number, wait)
            for (node, number), worker in self._workers.items()
            for wait in worker.waits
            if wait.since_s >= patience_s
        ]
        self._blockers = {vertex: self._blockers_of(vertex) for vertex in self._vertices}

    # -- what is said ------------------------------------------------------------------------------------

    def sentences(self) -> list[str]:
        """Return everything that is to be said, culprits first."""
        found = circles({v: [w for b in self._blockers[v] for w in b.waits] for v in self._vertices})
        in_circle = {vertex for circle in found for vertex in circle}
        said = [self._about_circle(circle) for circle in found]
        roots: dict[Culprit, dict[str, list[Vertex]]] = {}
        unexplained = []
        for vertex in self._vertices:
            for blocker in self._blockers[vertex]:
                if not blocker.waits:
                    roots.setdefault(blocker.culprit, {}).setdefault(blocker.deed, []).append(vertex)
            if not self._blockers[vertex] and vertex not in in_circle:
                unexplained.append(vertex)
        for node in self._silent:
            roots.setdefault(Manager(node), {})
        for (node, number), worker in self._workers.items():
            if worker.state in STOPPED:
                roots.setdefault(Process(node, number), {})
        order = {Manager: 0, Process: 1, Absent: 2}
        for culprit in sorted(roots, key=lambda each: (order[type(each)], each)):
            said.append(self._about(culprit, roots[culprit]))
        said += [self._about_unexplained(vertex) for vertex in unexplained]
        return said or [
            "nothing stands still: no thread has waited in dsm for long, and no process is stopped"
        ]

    def _about(self, culprit: Culprit, deeds: dict[str, list[Vertex]]) -> str:
        waiting = {vertex for vertices in deeds.values() for vertex in vertices}
        behind = self._behind(waiting)
        consequence = ""
        if waiting:
            consequence = f": {self._who_wait(waiting)} for it"
            if behind:
                consequence += f", and {self._who_wait(behind)} for those"
        if isinstance(culprit, Absent):
            return (
                f"rank {culprit.rank} {enumerate_words(list(deeds))}, and no worker of that rank is attached "
                f"(it has ended, or has not come yet){consequence}"
            )
        if isinstance(culprit, Manager):
            return self._about_manager(culprit.node, list(deeds), consequence)
        worker = self._workers.get(culprit)
        state, advice = _state(worker) if worker else ("is no worker any more", "")
        if not waiting:
            consequence = ": nobody is known to wait for it"
        return f"{self._name(*culprit)} {enumerate_words([*deeds, state])}{consequence}{advice}"

    def _about_manager(self, node: int, deeds: list[str], consequence: str) -> str:
        silent = self._silent[node]
        does = f"; it {enumerate_words(deeds)}" if deeds else ""
        if silent.pid and silent.state in STOPPED:
            return (
                f"node {node}'s manager (pid {silent.pid}) is {STOPPED[silent.state]}{does}{consequence}; "
                f"{_go_on(silent.pid, silent.state)}"
            )
        where = f" (pid {silent.pid})" if silent.pid else f" ({silent.remote})" if silent.remote else ""
        return f"node {node}{where} does not answer: stopped, or cut off{does}{consequence}"

    def _about_circle(self, circle: list[Vertex]) -> str:
        names = [
            f"{self._rank(v)} (pid {self._workers[v.node, v.worker].pid}, node {v.node})" for v in circle
        ]
        advice = "a deadlock; acquire locks in the same order everywhere, and none around a barrier"
        if len(circle) == 2 and all(vertex.wait.kind == "lock" for vertex in circle):
            first, second = sorted(range(2), key=lambda each: names[each])
            mine, yours = (repr(self._object_name(circle[each].wait)) for each in (first, second))
            return (
                f"{names[first]} and {names[second]} wait for each other's locks {mine} and {yours}: {advice}"
            )
        parts = []
        for index, vertex in enumerate(circle):
            other = circle[(index + 1) % len(circle)]
            held = "and for that" if vertex.wait.kind == "barrier" else "which"
            verb = "is missing" if vertex.wait.kind == "barrier" else "holds"
            parts.append(
                f"{names[index]} waits for {self._what(vertex.wait)}, {held} {self._rank(other)} {verb}"
            )
        return f"{'; '.join(parts)}: {advice}"

    def _about_unexplained(self, vertex: Vertex) -> str:
        wait = vertex.wait
        name, since = self._name(vertex.node, vertex.worker), seconds(wait.since_s)
        text = f"{name} waits for {self._what(wait)} since {since}"
        if wait.fenced:
            fencing = self._nodes[vertex.node].fencing
            homes = f" (asked: node {_numbers(fencing.nodes)})" if fencing and fencing.nodes else ""
            return f"{text}, and its node is releasing or acquiring memory first{homes}"
        it = self._objects.get(wait.object)
        if it is not None and it.kind == wait.kind in _SILENT:
            return f"{text}{_SILENT[it.kind]}"
        if it is None or it.kind != wait.kind or it.kind != "barrier":
            asked = f"; asked: node {', '.join(map(str, wait.asked))}" if wait.asked else ""
            return f"{text}, and nobody is known to keep it waiting{asked}"
        others = [
            rank for node, number in self._outside(it) if (rank := self._workers[node, number].rank) >= 0
        ]
        come = f"{len(it.waiting)} of {it.value} have come"
        if not others:
            return f"{text}: {come}, and there is no other worker; are parties={it.value} right?"
        return f"{text}: {come}; who else is to come is not known (ranks {_numbers(others)} are elsewhere)"

    # -- who keeps a wait waiting ------------------------------------------------------------------------

    def _blockers_of(self, vertex: Vertex) -> list[Blocker]:
        wait = vertex.wait
        if wait.kind in PAGES:
            return self._merged(self._page_blockers(vertex))
        if wait.fenced:
            return self._merged(self._fence_blockers(self._nodes[vertex.node]))
        if wait.kind in ("open", "destroy"):
            return self._merged(self._question_blockers(vertex))
        it = self._objects.get(wait.object)
        if it is None or it.kind != wait.kind:
            return [
                Blocker(Manager(node), f"decides about {self._what(wait)}")
                for node in wait.asked
                if node in self._silent
            ]
        if it.kind == "lock" and it.holder is None and it.lent >= 0:
            if it.lent in self._silent:
                return [Blocker(Manager(it.lent), f"was asked to give back lock {it.name!r}")]
            # It answers, so it is paying what it owes: the lock follows the release of its memory.
            return self._merged(self._fence_blockers(self._nodes[it.lent])) if it.lent in self._nodes else []
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
            part = self._nodes.get(holder.node)
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
            if node in self._silent:
                yield Blocker(Manager(node), f"has not acknowledged what node {part.node} has written")
        for number in fencing.workers:
            deed = f"has pages mapped that node {part.node} is to release or give up"
            yield self._held_by(part.node, number, deed, [])
        for pin in part.pins if fencing.pinned else ():
            if pin.granted:
                deed = f"holds a pin on {self._pages(pin.region, pin.page, pin.count)}"
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
        lock = self._objects.get(it.value)
        if lock is None or any((each.node, each.worker, each.token) == me for each in it.waiting):
            return []
        return self._holders_of(lock)

    def _barrier_blockers(self, it: ObjectStatus) -> list[Blocker]:
        missing = it.value - len(it.waiting)
        oldest = max((party.since_s for party in it.waiting), default=0.0)
        which = "the barrier of the job" if it.name == JOB_BARRIER else f"barrier {it.name!r}"
        come = f"{len(it.waiting)} of {it.value} have come, the first {seconds(oldest)} ago"
        deed = f"is missing from {which} ({come})"
        outside = self._outside(it)
        if len(outside) > missing:
            return []  # any of them
        found = [self._held_by(*each, deed, self._of_main(*each)) for each in outside]
        if it.name != JOB_BARRIER or len(outside) == missing:
            return found
        if self._silent:
            keeps = f"keeps workers that are missing from {which}"
            return found + [Blocker(Manager(node), keeps) for node in self._silent]
        here = {worker.rank for worker in self._workers.values()}
        return found + [Blocker(Absent(rank), deed) for rank in range(it.value) if rank not in here]

    def _question_blockers(self, vertex: Vertex) -> Iterator[Blocker]:
        """Who keeps a question from being answered: its creator fills a region, or nodes must hear of it."""
        wait = vertex.wait
        for node in self._silent:
            yield Blocker(Manager(node), f"has to hear of {self._what(wait)}")
        for part in self._cluster.nodes:
            for each in part.unready:
                if (each.node, each.worker) == (vertex.node, vertex.worker):
                    continue  # a creator fills its region when this question is answered
                if each.worker >= 0 and (each.region == wait.object or each.name == wait.name is not None):
                    name = repr(each.name) if each.name is not None else each.region
                    deed = f"has created region {name} and not filled it yet"
                    yield self._held_by(each.node, each.worker, deed, self._of_main(each.node, each.worker))

    def _outside(self, it: ObjectStatus) -> list[Process]:
        """Return the workers of which no thread waits in that barrier."""
        inside = {(party.node, party.worker) for party in it.waiting}
        return [Process(*each) for each in self._workers if each not in inside]

    def _page_blockers(self, vertex: Vertex) -> Iterator[Blocker]:
        wait = vertex.wait
        low, high = wait.page, wait.page + wait.count
        what = self._what(wait)
        for node in wait.asked:
            if node in self._silent:
                yield Blocker(Manager(node), f"was asked for {what}")
        for part in self._cluster.nodes:
            for each in part.transactions:
                concerned = vertex.node == each.requester or vertex.node in each.queue
                if each.region == wait.object and concerned and _overlap(each.page, each.count, low, high):
                    for node in each.missing:
                        if node in self._silent:
                            yield Blocker(Manager(node), f"has, or is to confirm, {what}")
            for demand in part.demands:
                if demand.region == wait.object and _overlap(demand.page, demand.count, low, high):
                    yield from self._demand_blockers(part, demand)

    def _demand_blockers(self, part: NodeStatus, demand: Demand) -> Iterator[Blocker]:
        """Who keeps a node from giving pages up: workers that do not let go, or pins."""
        pages = self._pages(demand.region, demand.page, demand.count)
        for worker in demand.workers:
            yield self._held_by(part.node, worker, f"has {pages} mapped and does not let go", [])
        if demand.workers:
            return
        for pin in part.pins:
            if pin.region != demand.region or not (demand.write or pin.write):
                continue
            if _overlap(pin.page, pin.count, demand.page, demand.page + demand.count):
                pinned = self._pages(pin.region, pin.page, pin.count)
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
        worker = self._workers.get((node, number))
        if worker is None and node in self._silent:
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
        process = self._workers.get((node, worker))
        return [v for v in self._of_worker(node, worker) if process and v.wait.thread == process.pid]

    def _behind(self, direct: set[Vertex]) -> set[Vertex]:
        """Return the waits that wait for those of `direct`, and so on."""
        found = set(direct)
        while True:
            more = {
                v
                for v in self._vertices
                if v not in found and any(w in found for b in self._blockers[v] for w in b.waits)
            }
            if not more:
                return found - direct
            found |= more

    # -- words -------------------------------------------------------------------------------------------

    def _name(self, node: int, number: int) -> str:
        worker = self._workers.get((node, number))
        if worker is None:
            return f"worker {number} of node {node}"
        who = f"rank {worker.rank}" if worker.rank >= 0 else "a worker"
        return f"{who} (pid {worker.pid}, node {node})"

    def _rank(self, vertex: Vertex) -> str:
        return f"rank {self._workers[vertex.node, vertex.worker].rank}"

    def _who_wait(self, vertices: Iterable[Vertex]) -> str:
        ranks = sorted({self._workers[v.node, v.worker].rank for v in vertices})
        return f"rank {ranks[0]} waits" if len(ranks) == 1 else f"ranks {_numbers(ranks)} wait"

    def _object_name(self, wait: Wait) -> str:
        it = self._objects.get(wait.object)
        return wait.name or (it.name if it else f"number {wait.object}")

    def _what(self, wait: Wait) -> str:
        if wait.kind in PAGES:
            pages = self._pages(wait.object, wait.page, wait.count)
            return {"read": pages, "write": f"{pages} to write", "prefetch": f"a prefetch of {pages}"}.get(
                wait.kind, f"a pin on {pages}"
            )
        if wait.kind == "barrier" and self._object_name(wait) == JOB_BARRIER:
            return "the barrier of the job"
        if wait.kind in ("open", "destroy"):
            doing = "opening" if wait.kind == "open" else "the end of"
            return f"{doing} region {wait.object or repr(wait.name)}"
        kind = {
            "unlock": "the release of lock",
            "reset": "the reset of barrier",
            "semaphore's release": "the release of semaphore",
            "event's state": "an answer about event",
            "notification": "an answer about condition",
        }.get(wait.kind, wait.kind)
        return f"{kind} {self._object_name(wait)!r}"

    def _pages(self, region: int, page: int, count: int) -> str:
        names = {r.region: r.name for node in self._cluster.nodes for r in node.regions}
        name = names.get(region)
        pages = f"page {page}" if count == 1 else f"pages {page} to {page + count - 1}"
        return f"{pages} of region {repr(name) if name is not None else region}"


def _state(worker: WorkerStatus) -> tuple[str, str]:
    """Return what a process does that waits for nothing here, and what may be done about it."""
    if worker.state in STOPPED:
        advice = f"; {_go_on(worker.pid, worker.state)}" if worker.state in "Tt" else ""
        return f"is {STOPPED[worker.state]}", advice
    if not worker.state:
        return "has ended", ""
    used = f"{seconds(worker.cpu_s)} of processor time"
    if worker.state == "R":
        return f"runs Python (it is not waiting in dsm; {used})", ""
    return f"is not waiting in dsm: it sleeps, or is in a system call (state {worker.state}, {used})", ""


def _go_on(pid: int, state: str) -> str:
    return f"`kill -CONT {pid}` lets it go on" if state == "T" else "let the debugger continue it"


def _numbers(ranks: Sequence[int]) -> str:
    return enumerate_words([str(rank) for rank in sorted(set(ranks))])


def _overlap(page: int, count: int, low: int, high: int) -> bool:
    return page < high and low < page + count
