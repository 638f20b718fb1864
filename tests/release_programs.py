"""Programs without data races, for regions under `release`: `function(node, *arguments)`."""

from __future__ import annotations

import random

import numpy as np

from dsm.errors import UsageError

#: Items of 8 bytes in a page of 4 KiB.
ITEMS = 512


def increments(node, rounds, home="first-touch"):
    """Add to cells spread over 16 pages, each with a lock of its own; return the sum that all see."""
    cells = node.array("cells", (16, ITEMS), "i8", consistency="release", home=home)
    locks = [node.lock(f"cell {page}") for page in range(16)]
    rng = random.Random(node.rank)
    for _ in range(rounds):
        page = rng.randrange(16)
        with locks[page]:
            cells[page, 3] += 1
    node.barrier()
    total = int(cells[:, 3].sum())
    node.barrier()
    return total


def own_columns(node, rounds, page_size=4096, home="first-touch"):
    """Every rank writes its own bytes of every page; behind each barrier it reads everybody's."""
    size = node.size
    cells = node.array("columns", (8, page_size), "u1", consistency="release", page_size=page_size, home=home)
    rng = np.random.default_rng(1)  # the same on every rank
    expected = np.zeros((8, page_size), "u1")
    for turn in range(rounds):
        values = rng.integers(0, 256, (8, page_size), "u1")
        mine = np.arange(page_size) % size == node.rank
        cells[:, mine] = values[:, mine]
        expected[:] = values
        node.barrier()
        wrong = np.argwhere(cells != expected)
        assert not len(wrong), (turn, node.rank, len(wrong), wrong[:5].tolist())
        node.barrier()


def rotating_blocks(node, rounds, pages, home="first-touch"):
    """Each round every rank writes another rank's block of the round before, from its neighbours' values."""
    data = node.array("rotating", pages * ITEMS, "i8", consistency="release", home=home)
    n, size = len(data), node.size
    expected = np.zeros(n, "i8")
    for turn in range(rounds):
        block = (node.rank + turn) % size
        low, high = n * block // size, n * (block + 1) // size
        assert (data[low:high] == expected[low:high]).all(), (turn, node.rank)
        data[low:high] = expected[low:high] * 3 + np.arange(low, high) + turn
        expected = expected * 3 + np.arange(n) + turn
        node.barrier()
    assert (data[:] == expected).all(), node.rank
    node.barrier()


def sole_writer(node, rounds):
    """Rank 0 touches first, the last rank writes alone from then on, everybody reads behind each round."""
    data = node.array("sole", 64 * ITEMS, "i8", consistency="release")
    if node.rank == 0:
        data[:] = -1
    node.barrier()
    for turn in range(rounds):
        if node.rank == node.size - 1:
            data[::7] = turn
        node.barrier()
        assert (data[::7] == turn).all() and data[1] == -1, (turn, node.rank)
        node.barrier()


def handed_over(node, rounds):
    """A record of several pages passes from hand to hand under one lock."""
    record = node.array("record", 3 * ITEMS, "i8", consistency="release")
    lock = node.lock("record")
    for _ in range(rounds):
        with lock:
            value = record[0]
            assert (record == value).all(), (node.rank, np.unique(record).tolist())
            record[:] = value + 1
    node.barrier()
    assert (record == rounds * node.size).all()
    node.barrier()


def published(node, rounds):
    """Data is published through an atomic cell: whoever sees the count sees the data."""
    data = node.array("published", (rounds, 4 * ITEMS), "i8", consistency="release")
    count = node.atomic("count")
    if node.rank == 0:
        for turn in range(rounds):
            data[turn] = turn + 1
            count.store(turn + 1)
    else:
        seen = 0
        while seen < rounds:
            seen = count.load()
            for turn in range(seen):
                assert (data[turn] == turn + 1).all(), (node.rank, turn, seen)
    node.barrier()


def rehomed(node, pages):
    """Rank 0 writes first, then the last rank takes the home of a part; returns homes before and after."""
    data = node.array("rehomed", pages * ITEMS, "i8", consistency="release")
    if node.rank == 0:
        data[:] = np.arange(len(data))
    node.barrier()
    before = node.home_of(data).tolist()
    part = data[: len(data) // 2]
    moved = 0
    if node.rank == node.size - 1:
        moved = node.rehome(part)
        part[::5] += 1
    node.barrier()
    expected = np.arange(len(data))
    expected[: len(data) // 2 : 5] += 1
    assert (data == expected).all()
    after = node.home_of(data).tolist()
    node.barrier()
    return before, moved, after


def untouched(node):
    """Return the homes of pages that nobody has touched."""
    return set(node.home_of(node.array("untouched", 10 * ITEMS, "i8", consistency="release")).tolist())


def rehome_refused(node):
    """Ask for the homes of a region whose homes do not move."""
    node.rehome(node.array("fixed", 10, "i8"))


def acquires_in_a_pin(node):
    """Release a lock and take another one while pages are pinned; return the error."""
    data = node.array("pinned here", 10 * ITEMS, "i8", consistency="release")
    first, second = node.lock("first"), node.lock("second")
    first.acquire()
    with node.pin(data):
        data[:] = 1
        first.release()
        try:
            second.acquire()
        except UsageError as error:
            said = str(error)
    with second:
        return said
