"""The basic rows, of single operations: how each is measured, against which floor, and what it is to reach.

Owns the protocol of a measurement: start a cluster, run rounds of the measurement and of its floor
alternately, combine them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from dsm.bench import floors, programs
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

#: Rounds of value and floor, alternately.
ROUNDS = 5
_FAULT_BYTES = 16 << 20
_SCAN_BYTES = 256 << 20
_METADATA_PAGES = 1 << 20
_OPERATIONS = 1000

Progress = Callable[[str], None]


def placements() -> list[tuple[str, set[int] | None]]:
    """Return where the processes of a row may run, with the words for it."""
    first = min(os.sched_getaffinity(0))
    return [("one core", {first}), ("unpinned", None)]


def fault_rows(progress: Progress, write: bool) -> Iterator[Row]:
    """Cold faults on random pages that the other node owns."""
    kind = "fault --write" if write else "fault"
    target = 2.2 if write else 2.0
    for placement, cpus in placements():
        for mapped in (False, True):
            values, bases = [], []
            name = f"{kind}, mapped by its owner's worker" if mapped else kind
            with floors.Pair(64, 4096, cpus) as pair, Cluster(nodes=2, cpus=cpus) as cluster:
                reader, owner = cluster.workers
                for turn in range(ROUNDS):
                    progress(f"{name}, {placement}: round {turn + 1} of {ROUNDS}")
                    array = f"pages {turn}"
                    owner.call(programs.fill, array, _FAULT_BYTES, not mapped)
                    samples = reader.call(programs.fault_samples, array, _FAULT_BYTES, write, turn)
                    values.append(statistics.median(samples) / 1000)
                    bases.append(pair.p50_us() + floors.bare_fault_us())
            yield combine(name, "us", values, bases, target=target, placement=placement)


def scan_rows(progress: Progress) -> Iterator[Row]:
    """Read in order what the other node holds."""
    values, bases = [], []
    with floors.Stream(_SCAN_BYTES, None) as stream, Cluster(nodes=2) as cluster:
        reader, owner = cluster.workers
        for turn in range(ROUNDS):
            progress(f"scan: round {turn + 1} of {ROUNDS}")
            name = f"scan {turn}"
            owner.call(programs.fill, name, _SCAN_BYTES)
            values.append(reader.call(programs.scan_seconds, name, _SCAN_BYTES) * 1000)
            bases.append(stream.seconds() * 1000)
            reader.call(_destroy, name)
    yield combine("scan", "ms", values, bases, target=2.5)


def _destroy(node, name):  # type: ignore[no-untyped-def]
    node.destroy(name)


def synchronization_rows(progress: Progress, which: str) -> Iterator[Row]:
    """Locks, barriers, atomics between two nodes, per operation."""
    target = {"lock": 4.0, "barrier": 3.0, "atomic": None}[which]
    for placement, cpus in placements():
        values, bases = [], []
        with floors.Pair(64, 64, cpus) as pair, Cluster(nodes=2, cpus=cpus) as cluster:
            for turn in range(ROUNDS):
                progress(f"{which}, {placement}: round {turn + 1} of {ROUNDS}")
                values.append(_operation_us(cluster, which, _OPERATIONS))
                bases.append(pair.p50_us())
        yield combine(which, "us", values, bases, target=target, placement=placement)


def _operation_us(cluster: Cluster, which: str, rounds: int) -> float:
    if which == "lock":
        seconds = float(max(cluster.all(programs.hand_overs, "lock", rounds)))
        return seconds / (2 * rounds) * 1e6
    if which == "barrier":
        return float(max(cluster.all(programs.barriers, rounds))) / rounds * 1e6
    # The cell's home is one of the two nodes: from the other one, every operation is a message.
    times = [worker.call(programs.atomics, "cell", rounds) for worker in cluster.workers]
    return float(max(times)) / rounds * 1e6


def hit_rows(progress: Progress) -> Iterator[Row]:
    """Pages that are here: what numpy does with them."""
    progress("hit")
    nbytes, items = 32 << 20, 200_000
    with Cluster(nodes=2, workers=1) as cluster:
        times = cluster.workers[0].call(programs.hits, nbytes, items)
    for kind, label in (("sum", "hit: a.sum() of 32 MiB"), ("loop", "hit: loop over a[i]")):
        values = [t * 1000 for t in times[f"{kind} shared"]]
        plain = [t * 1000 for t in times[f"{kind} plain"]]
        ones = [t * 1000 for t in times[f"{kind} ones"]]
        yield combine(label, "ms", values, plain, target=1.0, fabric="none")
        yield combine(f"{label}, against np.ones", "ms", values, ones, fabric="none")


def metadata_rows(progress: Progress) -> Iterator[Row]:
    """Bytes of a manager's tables a page, and the growth of its memory."""
    progress("metadata")
    with Cluster(nodes=2) as cluster:
        cluster.workers[0].call(programs.claim, "small", 1)
        before = [_anonymous_bytes(manager.pid) for manager in cluster.managers]
        cluster.workers[0].call(programs.claim, "large", _METADATA_PAGES, timeout=120)
        after = [_anonymous_bytes(manager.pid) for manager in cluster.managers]
    # One byte of the wanted table and one of each worker's applied table, which are memory files.
    shared = 2 * _METADATA_PAGES
    grown = max(b - a for a, b in zip(before, after, strict=True)) + shared
    yield Row(
        "metadata",
        grown / _METADATA_PAGES,
        "B/page",
        None,
        None,
        16.0,
        None,
        fabric="none",
        placement="unpinned",
    )


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no RssAnon")


ROWS: dict[str, Callable[[Progress], Iterator[Row]]] = {
    "hit": hit_rows,
    "fault": lambda progress: fault_rows(progress, False),
    "fault --write": lambda progress: fault_rows(progress, True),
    "scan": scan_rows,
    "lock": lambda progress: synchronization_rows(progress, "lock"),
    "barrier": lambda progress: synchronization_rows(progress, "barrier"),
    "atomic": lambda progress: synchronization_rows(progress, "atomic"),
    "metadata": metadata_rows,
}
