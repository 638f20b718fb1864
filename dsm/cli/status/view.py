"""What `dsm status` knows of a cluster, and how it calls it.

Owns the tables that are looked into, and the words for workers, waits, objects and pages.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dsm.cli.status.words import numbers
from dsm.types import JOB_BARRIER
from dsm.wire.status import ClusterStatus, NodeStatus, ObjectStatus, SilentNode, Wait, WorkerStatus

#: Kinds of waits for pages.
PAGES = frozenset({"read", "write", "prefetch", "pin"})


class Vertex(NamedTuple):
    """One waiting thread."""

    node: int
    worker: int
    wait: Wait


class View:
    """One status value.

    Parameters
    ----------
    cluster
        What the nodes said.
    """

    def __init__(self, cluster: ClusterStatus) -> None:
        self.cluster = cluster
        self.nodes: dict[int, NodeStatus] = {node.node: node for node in cluster.nodes}
        self.silent: dict[int, SilentNode] = {node.node: node for node in cluster.silent}
        self.workers: dict[tuple[int, int], WorkerStatus] = {
            (node.node, worker.worker): worker for node in cluster.nodes for worker in node.workers
        }
        self.objects: dict[int, ObjectStatus] = {
            it.object: it for node in cluster.nodes for it in node.objects
        }

    def vertices(self, patience_s: float) -> list[Vertex]:
        """Return the waits that are not shorter than that."""
        return [
            Vertex(node, number, wait)
            for (node, number), worker in self.workers.items()
            for wait in worker.waits
            if wait.since_s >= patience_s
        ]

    def outside(self, barrier: ObjectStatus) -> list[tuple[int, int]]:
        """Return the workers, as node and number, of which no thread waits in that barrier."""
        inside = {(party.node, party.worker) for party in barrier.waiting}
        return [each for each in self.workers if each not in inside]

    def name(self, node: int, number: int) -> str:
        """A worker, as people know it."""
        worker = self.workers.get((node, number))
        if worker is None:
            return f"worker {number} of node {node}"
        who = f"rank {worker.rank}" if worker.rank >= 0 else "a worker"
        return f"{who} (pid {worker.pid}, node {node})"

    def rank(self, vertex: Vertex) -> str:
        """Whose wait it is."""
        return f"rank {self.workers[vertex.node, vertex.worker].rank}"

    def who_wait(self, vertices: Iterable[Vertex]) -> str:
        """Ranks, and that they wait."""
        ranks = sorted({self.workers[v.node, v.worker].rank for v in vertices})
        return f"rank {ranks[0]} waits" if len(ranks) == 1 else f"ranks {numbers(ranks)} wait"

    def object_name(self, wait: Wait) -> str:
        """What a wait is for, by its name."""
        it = self.objects.get(wait.object)
        return wait.name or (it.name if it else f"number {wait.object}")

    def what(self, wait: Wait) -> str:
        """What a wait is for, with its kind."""
        if wait.kind in PAGES:
            pages = self.pages(wait.object, wait.page, wait.count)
            return {"read": pages, "write": f"{pages} to write", "prefetch": f"a prefetch of {pages}"}.get(
                wait.kind, f"a pin on {pages}"
            )
        if wait.kind == "barrier" and self.object_name(wait) == JOB_BARRIER:
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
        return f"{kind} {self.object_name(wait)!r}"

    def pages(self, region: int, page: int, count: int) -> str:
        """Pages of a region."""
        names = {r.region: r.name for node in self.cluster.nodes for r in node.regions}
        name = names.get(region)
        pages = f"page {page}" if count == 1 else f"pages {page} to {page + count - 1}"
        return f"{pages} of region {repr(name) if name is not None else region}"
