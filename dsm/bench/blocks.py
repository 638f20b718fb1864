"""The row `blocks`: a block of a heap, allocated and freed, against a `bytearray` of its size.

Owns the measurement, in one worker.  Both are zeroed; neither exchanges a message once the worker's cache
is warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from dsm.bench import measure
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

_OPERATIONS = 20_000


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Measure small blocks and blocks of 64 KiB."""
    with Cluster(nodes=1) as cluster:
        for size, label, target in ((65536, "64 KiB", 3.0), (64, "64 B", None)):
            values, floors = [], []
            for turn in range(measure.ROUNDS):
                progress(f"blocks of {label}: round {turn + 1} of {measure.ROUNDS}")
                value, floor = cluster.workers[0].call(_allocate_and_free, size, _OPERATIONS)
                values.append(value)
                floors.append(floor)
            name = f"block of {label}: alloc and free"
            yield combine(name, "us", values, floors, target=target, fabric="none")


def _allocate_and_free(node: Any, size: int, count: int) -> tuple[float, float]:
    """Return the microseconds of a block, and of a `bytearray`."""
    heap = node.heap("bench", manager="pooled")
    alloc = heap.alloc

    def block() -> None:
        alloc(size).free()

    for _ in range(100):
        block()
    return _each(block, count), _each(lambda: bytearray(size), count)


def _each(operation: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        operation()
    return (time.perf_counter() - began) / count * 1e6
