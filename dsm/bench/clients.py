"""The row `clients`: what becomes of a lease server's throughput, and of each client, when many ask at once.

Owns the measurement: processes with a connection each, that all get 4 KiB as fast as they can.  The floor is
the throughput of a few of them; what is compared is the server's time for one operation.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

from dsm.bench import measure
from dsm.bench.row import Row, combine
from dsm.bench.service import serving
from dsm.errors import NodeLostError

_FEW, _MANY = 4, 64
_SMALL = 4096
_SECONDS = 2.0
#: How long clients may take to start, and to tell.
_PATIENCE_S = 30.0
_CONTEXT = multiprocessing.get_context("fork")


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Measure throughput with few and with many clients, and how evenly the many are served."""
    few, many, slowest, others = [], [], [], []
    with serving() as address:
        for turn in range(measure.ROUNDS):
            progress(f"clients: round {turn + 1} of {measure.ROUNDS}")
            few.append(_operation_us(_crowd(address, _FEW)))
            crowd = _crowd(address, _MANY)
            many.append(_operation_us(crowd))
            medians = sorted(median for _, median in crowd)
            slowest.append(medians[-1] * 1e6)
            others.append(statistics.median(medians[:-1]) * 1e6)
    # 0.8 of the throughput is 1.25 of the time.
    yield combine(f"lease: one of {_MANY} clients' gets, against {_FEW}", "us", many, few, target=1.25)
    yield combine(
        f"lease: slowest median of {_MANY} clients, against the others'", "us", slowest, others, target=3.0
    )


def _operation_us(crowd: list[tuple[int, float]]) -> float:
    return _SECONDS * 1e6 / sum(count for count, _ in crowd)


def _crowd(address: str, size: int) -> list[tuple[int, float]]:
    """Let that many clients get for a while; return how often each did, and its median seconds."""
    start = _CONTEXT.Barrier(size)
    pipes = []
    for _ in range(size):
        here, there = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_ask, args=(address, start, there), daemon=True)
        process.start()
        there.close()
        pipes.append((here, process))
    found = [here.recv() for here, _ in pipes if here.poll(_PATIENCE_S)]
    if len(found) < size:
        raise NodeLostError(f"{size - len(found)} of {size} clients of the benchmark ended too early")
    for _, process in pipes:
        process.join(10)
    return found


def _ask(address: str, start: Barrier, tell: multiprocessing.connection.Connection) -> None:
    import dsm

    clock = time.perf_counter
    with dsm.connect(address) as client, client.lease(_SMALL, 60) as lease:
        lease.set(bytes(_SMALL))
        start.wait(_PATIENCE_S)
        samples = []
        began = now = clock()
        while now - began < _SECONDS:
            lease.get()
            later = clock()
            samples.append(later - now)
            now = later
    tell.send((len(samples), statistics.median(samples)))
