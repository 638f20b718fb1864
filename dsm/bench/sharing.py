"""The row `sharing`: two nodes count in one page, each its own counter, and meet every 100 increments.

Owns the counting of messages: all that both nodes send to each other, barriers included, without what
creating the counters costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from dsm.bench import measure
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

_BARRIERS = 5
_INCREMENTS = 100
#: What passes between two increments: enough for the other node to take the page.
_PAUSE_S = 0.002


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Count messages under `release`, against those under `sequential`."""
    with Cluster(nodes=2) as cluster:
        for pause in (_PAUSE_S, 0.0):
            every = f"an increment every {pause * 1000:g} ms" if pause else "increments at once"
            label = f"sharing: {every}"
            counts: dict[str, list[float]] = {"release": [], "sequential": []}
            times: dict[str, list[float]] = {"release": [], "sequential": []}
            for turn in range(measure.ROUNDS):
                for model in ("release", "sequential"):
                    progress(f"{label}, {model}: round {turn + 1} of {measure.ROUNDS}")
                    name = f"{label} {model} {turn}"
                    before = sum(cluster.all(_messages, name, model))
                    seconds = cluster.all(_count, name, model, _BARRIERS, pause)
                    counts[model].append(sum(cluster.all(_messages, name, model)) - before)
                    times[model].append(max(seconds) * 1000)
            target = 0.05 if pause else None
            yield combine(label, "messages", counts["release"], counts["sequential"], target=target)
            yield combine(f"{label}, time", "ms", times["release"], times["sequential"])


# ---- in the workers ----------------------------------------------------------------------------------------


def _messages(node: Any, name: str, model: str) -> int:
    node.array(name, node.size, "i8", consistency=model)
    return int(node.statistics().messages_out)


def _count(node: Any, name: str, model: str, barriers: int, pause: float) -> float:
    counters = node.array(name, node.size, "i8", consistency=model)
    rank = node.rank
    node.barrier()
    started = time.perf_counter()
    for _ in range(barriers):
        for _ in range(_INCREMENTS):
            counters[rank] += 1
            if pause:
                time.sleep(pause)
        node.barrier()
    seconds = time.perf_counter() - started
    if counters.tolist() != [barriers * _INCREMENTS] * node.size:
        raise AssertionError(f"the counters are {counters.tolist()}, not {barriers * _INCREMENTS} each")
    return seconds
