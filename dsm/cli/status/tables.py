"""A status value as text: aligned tables, and the verdict.

Owns the wording and the widths.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsm.cli.status.verdict import verdict
from dsm.cli.status.view import PAGES
from dsm.cli.status.words import enumerate_words, plural, seconds, table
from dsm.types import FENCE, JOB_BARRIER
from dsm.wire.status import (
    STOPPED,
    ClusterStatus,
    NodeStatus,
    ObjectStatus,
    PartyStatus,
    SilentNode,
    Wait,
    WorkerStatus,
)

_STATES = {"R": "runs", "S": "sleeps", "D": "in the kernel", "I": "idle", "": "gone"}


def render(cluster: ClusterStatus) -> str:
    """Return everything that is known of a cluster, for a person."""
    text = _Text(cluster)
    blocks = [
        f"cluster {cluster.cluster[:12]}, epoch {cluster.epoch}, "
        f"{plural(len(cluster.nodes) + len(cluster.silent), 'node')}, "
        f"{plural(sum(len(node.workers) for node in cluster.nodes), 'worker')}",
        text.nodes(),
        text.workers(),
        text.regions(),
        text.leases(),
        text.locks(),
        text.rwlocks(),
        text.semaphores(),
        text.conditions(),
        text.events(),
        text.barriers(),
        text.atomics(),
        text.pins(),
        text.left_out(),
        "\n".join(["verdict", *(f"  * {line}" for line in verdict(cluster))]),
    ]
    return "\n\n".join(block for block in blocks if block)


class _Text:
    """The tables of one cluster."""

    def __init__(self, cluster: ClusterStatus) -> None:
        self._cluster = cluster
        self._workers: dict[tuple[int, int], WorkerStatus] = {
            (node.node, worker.worker): worker for node in cluster.nodes for worker in node.workers
        }
        self._objects = [it for node in cluster.nodes for it in node.objects]
        self._names = {it.object: it.name for it in self._objects}

    def nodes(self) -> str:
        """Who belongs to it."""
        rows: list[tuple[int, Sequence[str]]] = [(node.node, _node(node)) for node in self._cluster.nodes]
        rows += [(node.node, _silent(node)) for node in self._cluster.silent]
        head = ("node", "address", "local socket", "pid", "state", "up", "cpu")
        return table(head, [row for _, row in sorted(rows)])

    def workers(self) -> str:
        """Who works, and what each thread waits for."""
        rows: list[tuple[int, Sequence[str]]] = []
        for (node, _), worker in self._workers.items():
            waits = [self._wait(wait) for wait in worker.waits] or ["running" if worker.state == "R" else "-"]
            first = (_rank(worker), str(worker.pid), str(node), _process(worker.state), seconds(worker.cpu_s))
            rows += [(worker.rank, (*first, waits[0]))]
            rows += [(worker.rank, ("", "", "", "", "", wait)) for wait in waits[1:]]
        rows.sort(key=lambda row: row[0])
        return table(("rank", "pid", "node", "state", "cpu", "waits for"), [row for _, row in rows])

    def _wait(self, wait: Wait) -> str:
        since = f"since {seconds(wait.since_s)}"
        if wait.kind in PAGES:
            name = repr(wait.name) if wait.name is not None else str(wait.object)
            pages = f"page {wait.page}" if wait.count == 1 else f"pages {wait.page}+{wait.count}"
            kind = {"read": "to read", "write": "to write"}.get(wait.kind, f"({wait.kind})")
            asked = f", asked node {', '.join(map(str, wait.asked))}" if wait.asked else ""
            return f"{pages} of region {name} {kind} {since}{asked}"
        name = wait.name or self._names.get(wait.object) or str(wait.object)
        return f"{wait.kind} {_object_name(name)} {since}"

    def regions(self) -> str:
        """Memory, and where its pages are."""
        rows = []
        leases = {lease.region for node in self._cluster.nodes for lease in node.leases}
        numbers = {region.region for node in self._cluster.nodes for region in node.regions} - leases
        for number in sorted(numbers):
            parts = {
                node.node: region
                for node in self._cluster.nodes
                for region in node.regions
                if region.region == number
            }
            it = next(iter(parts.values()))
            here = " ".join(
                f"{node}:{part.here}/{part.exclusive}" if part.here >= 0 else f"{node}:?"
                for node, part in parts.items()
            )
            lost = sum(max(0, part.lost) for part in parts.values())
            damaged = f"{plural(lost, 'page')} lost with a node" if lost else ""
            name = it.name if it.name is not None else "(anonymous)"
            rows.append(
                (str(number), name, _bytes(it.nbytes), str(it.pages), _bytes(it.page_size), here, damaged)
            )
        return table(("region", "name", "size", "pages", "page", "node:here/exclusive", ""), rows)

    def leases(self) -> str:
        """Mapped leases, soonest end first."""
        rows = [
            (it.id, _bytes(it.nbytes), str(it.taken_on), seconds(it.expires_in_s), it.heap or "")
            for node in self._cluster.nodes
            for it in node.leases
        ]
        return table(("lease", "size", "taken on node", "ends in", ""), rows)

    def locks(self) -> str:
        """Who holds and who waits."""
        rows = []
        for it in self._of("lock"):
            holder, since = (self._party(it.holder), seconds(it.holder.since_s)) if it.holder else ("-", "")
            notes = [f"lent to node {it.lent}"] if it.lent >= 0 else []
            notes += ["its owner died"] if it.damaged else []
            rows.append((it.name, str(it.home), holder, since, self._waiting(it), ", ".join(notes)))
        return table(("lock", "home", "held by", "since", "waiting, in order", ""), rows)

    def rwlocks(self) -> str:
        """Who reads or writes, and who waits for it."""
        rows = []
        for it in self._of("rwlock"):
            parties = [it.holder] if it.holder else list(it.holders)
            held = f"{'alone' if it.holder else 'read'}: " if parties else ""
            since = seconds(max(party.since_s for party in parties)) if parties else ""
            readers, writers = (
                self._parties(it.waiting[: it.readers]),
                self._parties(it.waiting[it.readers :]),
            )
            died = "its owner died" if it.damaged else ""
            who = held + (", ".join(map(self._party, parties)) or "-")
            rows.append((it.name, str(it.home), who, since, readers, writers, died))
        return table(("rwlock", "home", "held by", "since", "want to read", "want to write", ""), rows)

    def semaphores(self) -> str:
        """How many units are free, and who has the others, if that is known."""
        rows = [
            (it.name, str(it.home), str(it.value), self._parties(it.holders), self._waiting(it))
            for it in self._of("semaphore")
        ]
        return table(("semaphore", "home", "free", "held by", "waiting, in order"), rows)

    def conditions(self) -> str:
        """Who waits to be notified."""
        rows = [
            (it.name, str(it.home), self._names.get(it.value, str(it.value)), self._waiting(it))
            for it in self._of("condition")
        ]
        return table(("condition", "home", "lock", "waiting, in order"), rows)

    def events(self) -> str:
        """Which are set, and who waits."""
        rows = [
            (it.name, str(it.home), "yes" if it.value else "no", self._waiting(it))
            for it in self._of("event")
        ]
        return table(("event", "home", "set", "waiting"), rows)

    def _of(self, kind: str) -> list[ObjectStatus]:
        return [it for it in self._objects if it.kind == kind]

    def barriers(self) -> str:
        """Who has come, and who has not."""
        rows = []
        for it in self._of("barrier"):
            come = f"{len(it.waiting)} of {it.value}"
            broken = "broken" if it.damaged else ""
            rows.append(
                (_object_name(it.name), str(it.home), come, self._waiting(it), self._missing(it), broken)
            )
        return table(("barrier", "home", "come", "waiting, in order", "missing", ""), rows)

    def _missing(self, it: ObjectStatus) -> str:
        if it.name != JOB_BARRIER or not it.waiting:
            return ""
        come = {(party.node, party.worker) for party in it.waiting}
        ranks = {worker.rank for key, worker in self._workers.items() if key in come}
        missing = [str(rank) for rank in range(it.value) if rank not in ranks]
        hidden = {node.node for node in self._cluster.silent}
        if hidden & {party.node for party in it.waiting}:
            return f"{it.value - len(it.waiting)} of ranks {enumerate_words(missing)}"
        return f"rank {enumerate_words(missing)}"

    def atomics(self) -> str:
        """Values."""
        rows = [(it.name, str(it.home), str(it.value)) for it in self._of("atomic") if it.name != FENCE]
        return table(("atomic", "home", "value"), rows)

    def pins(self) -> str:
        """Pages that workers hold."""
        names = {region.region: region.name for node in self._cluster.nodes for region in node.regions}
        rows = []
        for node in self._cluster.nodes:
            for pin in node.pins:
                worker = self._workers.get((node.node, pin.worker))
                who = f"rank {_rank(worker)} (pid {worker.pid})" if worker else f"worker {pin.worker}"
                name = names.get(pin.region)
                mode = "write" if pin.write else "read"
                since = seconds(pin.since_s) if pin.granted else "waits for more"
                pages = f"{pin.page}+{pin.count}"
                rows.append(
                    (str(name if name is not None else pin.region), pages, mode, who, str(node.node), since)
                )
        return table(("pins in", "pages", "for", "held by", "node", "since"), rows)

    def left_out(self) -> str:
        """Say that lists were cut."""
        count = sum(node.left_out for node in self._cluster.nodes)
        return f"({plural(count, 'more entry', 'more entries')} did not fit)" if count else ""

    def _party(self, party: PartyStatus) -> str:
        worker = self._workers.get((party.node, party.worker))
        if worker is None:
            return f"worker {party.worker} of node {party.node}"
        return f"rank {_rank(worker)} (pid {worker.pid}, node {party.node})"

    def _waiting(self, it: ObjectStatus) -> str:
        return self._parties(it.waiting)

    def _parties(self, parties: Iterable[PartyStatus]) -> str:
        words = []
        for party in parties:
            worker = self._workers.get((party.node, party.worker))
            who = _rank(worker) if worker else f"worker {party.worker} of node {party.node}"
            words.append(f"{who} ({seconds(party.since_s)})")
        return ", ".join(words) or "-"


def _node(node: NodeStatus) -> Sequence[str]:
    times = (seconds(node.uptime_s), seconds(node.cpu_s))
    return (str(node.node), node.address or "-", node.socket, str(node.pid), _process(node.state), *times)


def _silent(node: SilentNode) -> Sequence[str]:
    state = STOPPED.get(node.state, "does not answer")
    return (str(node.node), node.remote or "-", node.socket or "-", str(node.pid or "-"), state, "", "")


def _rank(worker: WorkerStatus) -> str:
    return str(worker.rank) if worker.rank >= 0 else "?"


def _process(letter: str) -> str:
    return STOPPED.get(letter) or _STATES.get(letter, letter)


def _object_name(name: str) -> str:
    return "of the job" if name == JOB_BARRIER else repr(name)


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
