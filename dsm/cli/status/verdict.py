"""Why a job stands still: from who waits for whom to who keeps everybody waiting, in plain sentences.

Owns the reasoning and the sentences of `dsm status`; who keeps a single wait waiting is in
`dsm.cli.status.blockers`.  Pure: one status value in, sentences out.  A wait is a vertex; it leads
to the waits of whoever keeps it waiting.  Where that ends is a culprit: a process that is stopped, or one
that runs and does not wait in dsm; a manager that does not answer; a rank that is not there.  Where it does
not end is a deadlock.
"""

from __future__ import annotations

from dsm.cli.status.blockers import Absent, Blockers, Culprit, Manager, Process
from dsm.cli.status.circles import circles
from dsm.cli.status.view import Vertex, View
from dsm.cli.status.words import enumerate_words, numbers, seconds
from dsm.wire.status import STOPPED, ClusterStatus, WorkerStatus

#: Waits that are shorter are no reason to worry.
PATIENCE_S = 1.0
#: Who is to end these waits nobody can know.
_SILENT = {
    "event": ", which nobody has set",
    "condition": ", of which nobody has notified it",
    "semaphore": ", which has too few free units; who is to release some is not known",
}


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
        self._view = View(cluster)
        self._vertices = self._view.vertices(patience_s)
        blockers = Blockers(self._view, self._vertices)
        self._blockers = {vertex: blockers.of(vertex) for vertex in self._vertices}

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
        for node in self._view.silent:
            roots.setdefault(Manager(node), {})
        for (node, number), worker in self._view.workers.items():
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
            consequence = f": {self._view.who_wait(waiting)} for it"
            if behind:
                consequence += f", and {self._view.who_wait(behind)} for those"
        if isinstance(culprit, Absent):
            return (
                f"rank {culprit.rank} {enumerate_words(list(deeds))}, and no worker of that rank is attached "
                f"(it has ended, or has not come yet){consequence}"
            )
        if isinstance(culprit, Manager):
            return self._about_manager(culprit.node, list(deeds), consequence)
        worker = self._view.workers.get(culprit)
        state, advice = _state(worker) if worker else ("is no worker any more", "")
        if not waiting:
            consequence = ": nobody is known to wait for it"
        return f"{self._view.name(*culprit)} {enumerate_words([*deeds, state])}{consequence}{advice}"

    def _about_manager(self, node: int, deeds: list[str], consequence: str) -> str:
        silent = self._view.silent[node]
        does = f"; it {enumerate_words(deeds)}" if deeds else ""
        if silent.pid and silent.state in STOPPED:
            return (
                f"node {node}'s manager (pid {silent.pid}) is {STOPPED[silent.state]}{does}{consequence}; "
                f"{_go_on(silent.pid, silent.state)}"
            )
        where = f" (pid {silent.pid})" if silent.pid else f" ({silent.remote})" if silent.remote else ""
        return f"node {node}{where} does not answer: stopped, or cut off{does}{consequence}"

    def _about_circle(self, circle: list[Vertex]) -> str:
        view = self._view
        names = [f"{view.rank(v)} (pid {view.workers[v.node, v.worker].pid}, node {v.node})" for v in circle]
        advice = "a deadlock; acquire locks in the same order everywhere, and none around a barrier"
        if len(circle) == 2 and all(vertex.wait.kind == "lock" for vertex in circle):
            first, second = sorted(range(2), key=lambda each: names[each])
            mine, yours = (repr(view.object_name(circle[each].wait)) for each in (first, second))
            return (
                f"{names[first]} and {names[second]} wait for each other's locks {mine} and {yours}: {advice}"
            )
        parts = []
        for index, vertex in enumerate(circle):
            other = circle[(index + 1) % len(circle)]
            held = "and for that" if vertex.wait.kind == "barrier" else "which"
            verb = "is missing" if vertex.wait.kind == "barrier" else "holds"
            parts.append(
                f"{names[index]} waits for {view.what(vertex.wait)}, {held} {view.rank(other)} {verb}"
            )
        return f"{'; '.join(parts)}: {advice}"

    def _about_unexplained(self, vertex: Vertex) -> str:
        wait = vertex.wait
        name, since = self._view.name(vertex.node, vertex.worker), seconds(wait.since_s)
        text = f"{name} waits for {self._view.what(wait)} since {since}"
        if wait.fenced:
            fencing = self._view.nodes[vertex.node].fencing
            homes = f" (asked: node {numbers(fencing.nodes)})" if fencing and fencing.nodes else ""
            return f"{text}, and its node is releasing or acquiring memory first{homes}"
        it = self._view.objects.get(wait.object)
        if it is not None and it.kind == wait.kind in _SILENT:
            return f"{text}{_SILENT[it.kind]}"
        if it is None or it.kind != wait.kind or it.kind != "barrier":
            asked = f"; asked: node {', '.join(map(str, wait.asked))}" if wait.asked else ""
            return f"{text}, and nobody is known to keep it waiting{asked}"
        others = [
            rank
            for node, number in self._view.outside(it)
            if (rank := self._view.workers[node, number].rank) >= 0
        ]
        come = f"{len(it.waiting)} of {it.value} have come"
        if not others:
            return f"{text}: {come}, and there is no other worker; are parties={it.value} right?"
        return f"{text}: {come}; who else is to come is not known (ranks {numbers(others)} are elsewhere)"

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
