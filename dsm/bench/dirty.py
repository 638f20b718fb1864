"""The row `dirty`: what releasing many written pages takes, against copying these pages twice.

Owns the patterns: one word a page, every byte, every eighth byte.  Their home is the other node, which has
written the pages before; so they are fetched, have twins, and their changes are compared out of them, sent
and merged.  Only the release is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dsm.bench import floors, measure
from dsm.bench.row import Row, combine
from dsm.testing import Cluster

_PAGES = 10_000
_PAGE = 4096
_TIMEOUT_S = 120.0


def _one_word(pages: Any) -> None:
    # At another place in each page, as words of a tree or of a table are.
    numbers = np.arange(len(pages))
    pages.view("i8")[numbers, numbers * 37 % (_PAGE // 8)] += 1


def _every_byte(pages: Any) -> None:
    pages += 1


def _every_eighth_byte(pages: Any) -> None:
    pages[:, ::8] += 1


PATTERNS: dict[str, Callable[[Any], None]] = {
    "one word a page": _one_word,
    "every byte": _every_byte,
    "every eighth byte": _every_eighth_byte,
}


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Release each pattern; a row of its own compares the slowest with the fastest."""
    for placement, cpus in measure.placements():
        values: dict[str, list[float]] = {pattern: [] for pattern in PATTERNS}
        copies: list[float] = []
        streams: list[float] = []
        with floors.Stream(_PAGES * _PAGE, cpus) as stream, Cluster(nodes=2, cpus=cpus) as cluster:
            home, writer = cluster.workers
            for turn in range(measure.ROUNDS):
                for pattern in PATTERNS:
                    progress(f"dirty, {pattern}, {placement}: round {turn + 1} of {measure.ROUNDS}")
                    name = f"{pattern} {turn}"
                    home.call(_prepare, name, _PAGES)
                    seconds = writer.call(_release, name, _PAGES, pattern, timeout=_TIMEOUT_S)
                    home.call(_verify, name, _PAGES, pattern)
                    values[pattern].append(seconds * 1000)
                copies.append(writer.call(_copy_twice, _PAGES) * 1000)
                streams.append(stream.seconds() * 1000)
        for pattern in PATTERNS:
            name = f"dirty: release of {_PAGES} pages, {pattern}"
            yield combine(name, "ms", values[pattern], copies, target=8.0, placement=placement)
        by_round = list(zip(*values.values(), strict=True))
        slowest, fastest = [max(turn) for turn in by_round], [min(turn) for turn in by_round]
        name = "dirty: slowest pattern against fastest"
        yield combine(name, "ms", slowest, fastest, target=2.0, placement=placement)
        name = "dirty: every byte, against one TCP stream of as much"
        yield combine(name, "ms", values["every byte"], streams, placement=placement)


# ---- in the workers ----------------------------------------------------------------------------------------


def _pages(node: Any, name: str, pages: int) -> Any:
    return node.array(name, (pages, _PAGE), "u1", consistency="release", home=0)


def _prepare(node: Any, name: str, pages: int) -> None:
    _pages(node, name, pages)[:] = 7
    node.release()


def _release(node: Any, name: str, pages: int, pattern: str) -> float:
    node.acquire()
    array = _pages(node, name, pages)
    node.prefetch(array)
    PATTERNS[pattern](array)
    started = time.perf_counter()
    node.release()
    return time.perf_counter() - started


def _verify(node: Any, name: str, pages: int, pattern: str) -> None:
    node.acquire()
    expected = np.full((pages, _PAGE), 7, "u1")
    PATTERNS[pattern](expected)
    if not np.array_equal(_pages(node, name, pages), expected):
        raise AssertionError(f"the home's pages are wrong after a release of {pattern!r}")
    node.destroy(name)


def _copy_twice(node: Any, pages: int) -> float:
    source = np.ones((pages, _PAGE), "u1")
    target = np.zeros_like(source)
    started = time.perf_counter()
    for _ in range(2):
        target[:] = source
    return time.perf_counter() - started
