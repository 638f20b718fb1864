"""What the workers of a benchmark do: functions that `dsm.testing.Cluster` runs.

Owns the measured loops.  Times are taken inside the worker, around single operations.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

import dsm

#: Distance of the items that are touched: one a page of 4 KiB.
_ITEMS_A_PAGE = 512


def fill(node: Any, name: str, nbytes: int, leave: bool = False) -> None:
    """Write every page of an array; with `leave`, the worker detaches afterwards (and is back next time)."""
    if node.closed:
        node = dsm.attach()
    array = node.array(name, nbytes // 8, "f8")
    array[:] = 1.0
    if leave:
        node.close()


def fault_samples(node: Any, name: str, nbytes: int, write: bool, seed: int) -> list[int]:
    """Touch every page once in random order; return the nanoseconds of each touch."""
    array = node.array(name, nbytes // 8, "f8")
    # Neighbours are left out, so that no two touches look like the start of a sequence.
    pages = list(range(0, len(array) // _ITEMS_A_PAGE, 3))
    random.Random(seed).shuffle(pages)
    items = [page * _ITEMS_A_PAGE for page in pages]
    clock = time.perf_counter_ns
    samples = []
    if write:
        for item in items:
            start = clock()
            array[item] = 2.0
            samples.append(clock() - start)
    else:
        for item in items:
            start = clock()
            array[item]
            samples.append(clock() - start)
    return samples


def scan_seconds(node: Any, name: str, nbytes: int) -> float:
    """Read an array in order once."""
    array = node.array(name, nbytes // 8, "f8")
    start = time.perf_counter()
    total = array.sum()
    elapsed = time.perf_counter() - start
    if total != nbytes // 8:
        raise AssertionError(f"the sum is {total}, not {nbytes // 8}")
    return elapsed


def hand_overs(node: Any, name: str, rounds: int) -> float:
    """Take and release a contended lock; return the seconds of all rounds."""
    lock = node.lock(name)
    node.barrier()
    start = time.perf_counter()
    for _ in range(rounds):
        lock.acquire()
        lock.release()
    elapsed = time.perf_counter() - start
    node.barrier()
    return elapsed


def barriers(node: Any, rounds: int) -> float:
    """Meet so many times; return the seconds."""
    node.barrier()
    start = time.perf_counter()
    for _ in range(rounds):
        node.barrier()
    return time.perf_counter() - start


def atomics(node: Any, name: str, rounds: int) -> float:
    """Add to a cell so many times; return the seconds."""
    cell = node.atomic(name)
    start = time.perf_counter()
    for _ in range(rounds):
        cell.fetch_add(1)
    return time.perf_counter() - start


def hits(node: Any, nbytes: int, items: int) -> dict[str, list[float]]:
    """Return seconds of `sum` and of a loop over items: shared array, plain shared map, np.ones."""
    import mmap
    import os

    shared = node.array("hit", nbytes // 8, "f8")
    shared[:] = 1.0
    fd = os.memfd_create("bench")
    os.ftruncate(fd, nbytes)
    plain = np.frombuffer(mmap.mmap(fd, nbytes), "f8")
    os.close(fd)
    plain[:] = 1.0
    arrays = {"shared": shared, "plain": plain, "ones": np.ones(nbytes // 8)}
    times: dict[str, list[float]] = {f"{kind} {key}": [] for kind in ("sum", "loop") for key in arrays}
    for _ in range(9):
        for key, array in arrays.items():
            start = time.perf_counter()
            array.sum()
            times[f"sum {key}"].append(time.perf_counter() - start)
            start = time.perf_counter()
            for i in range(items):
                array[i]
            times[f"loop {key}"].append(time.perf_counter() - start)
    return times


def claim(node: Any, name: str, pages: int) -> None:
    """Create a region of so many pages and become the owner of each, without touching one."""
    array = node.array(name, pages * 4096, "u1")
    step = 1 << 28
    for low in range(0, len(array), step):
        node.prefetch(array[low : low + step], write=True)
