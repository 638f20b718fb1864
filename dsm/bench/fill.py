"""The row `fill`: write an array that another node keeps, from its first byte to its last, and meet.

Owns the two cases: pages that nobody has touched, which need not be fetched, and pages that their home has
written.  The floor is one TCP stream of as many bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dsm.bench import floors, measure
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

_BYTES = 64 << 20
#: Differs in every byte from what was there, 0 or 1: changes are as large as the pages.
_VALUE = np.pi
_TIMEOUT_S = 120.0


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Fill under each model."""
    cases = [(model, touched) for touched in (False, True) for model in ("release", "sequential")]
    with floors.Stream(_BYTES, None) as stream, Cluster(nodes=2) as cluster:
        for model, touched in cases:
            label = f"fill, {model}, {'written by its home before' if touched else 'never touched'}"
            values, bases = [], []
            for turn in range(measure.ROUNDS):
                progress(f"{label}: round {turn + 1} of {measure.ROUNDS}")
                name = f"{label} {turn}"
                cluster.all(_prepare, name, model, _BYTES, touched)
                seconds = cluster.all(_fill, name, model, _BYTES, timeout=_TIMEOUT_S)
                values.append(seconds[1] * 1000)
                bases.append(stream.seconds() * 1000)
                cluster.workers[0].call(_verify, name, model, _BYTES)
            yield combine(label, "ms", values, bases, target=4.0 if model == "release" else None)


# ---- in the workers ----------------------------------------------------------------------------------------


def _array(node: Any, name: str, model: str, nbytes: int) -> Any:
    return node.array(name, nbytes // 8, "f8", consistency=model, home=0)


def _prepare(node: Any, name: str, model: str, nbytes: int, touched: bool) -> None:
    array = _array(node, name, model, nbytes)
    if touched and node.rank == 0:
        array[:] = 1.0
    node.barrier()


def _fill(node: Any, name: str, model: str, nbytes: int) -> float:
    array = _array(node, name, model, nbytes)
    node.barrier()
    started = time.perf_counter()
    if node.rank == 1:
        array[:] = _VALUE
    node.barrier()
    return time.perf_counter() - started


def _verify(node: Any, name: str, model: str, nbytes: int) -> None:
    wrong = np.count_nonzero(_array(node, name, model, nbytes) != _VALUE)
    if wrong:
        raise AssertionError(f"{wrong} items of the home are not what was filled in")
    node.destroy(name)
