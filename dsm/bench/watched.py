"""The row `watched`: how long a step of a simulation takes while another node looks at what it writes.

Owns the measurement: one node writes a field over and over, the other reads all of it a few times a second.
The floor is the same without anybody who looks.  The mean of all steps counts: looks are rare, and those
steps that they hit are what they cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from dsm.bench import measure
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

_BYTES = 2 << 20
_SECONDS = 0.5
_LOOKS_PER_SECOND = 20
_STALENESS_S = 0.1


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Measure steps under `bounded` and under `sequential`, with somebody who looks and without."""
    with Cluster(nodes=2) as cluster:
        writer, reader = cluster.workers
        for model, target in (("bounded", 1.1), ("sequential", None)):
            alone, watched = [], []
            writer.call(_simulate, model, 0.1)
            for turn in range(measure.ROUNDS):
                progress(f"watched, {model}: round {turn + 1} of {measure.ROUNDS}")
                alone.append(writer.call(_simulate, model, _SECONDS))
                looking = reader.start(_look, model, _SECONDS)
                watched.append(writer.call(_simulate, model, _SECONDS))
                looking.result()
            yield combine(f"watched, {model}", "ms", watched, alone, target=target)


# ---- in the workers ----------------------------------------------------------------------------------------


def _field(node: Any, model: str) -> Any:
    options = {"max_staleness": _STALENESS_S} if model == "bounded" else {}
    return node.array(f"field {model}", _BYTES // 8, "f8", consistency=model, **options)


def _simulate(node: Any, model: str, seconds: float) -> float:
    """Write the field over and over; return the mean of a step, in milliseconds."""
    field = _field(node, model)
    field[:] = 0
    steps = 0
    began = now = time.perf_counter()
    while now - began < seconds:
        field += 1
        steps += 1
        now = time.perf_counter()
    if not (field == steps).all():
        raise AssertionError(f"after {steps} steps the field holds {field.min()} to {field.max()}")
    return 1000 * (now - began) / steps


def _look(node: Any, model: str, seconds: float) -> int:
    """Read the whole field a few times a second; return how often."""
    field = _field(node, model)
    looks = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        field.sum()
        looks += 1
        time.sleep(1 / _LOOKS_PER_SECOND)
    return looks
