"""Functions that tests run in the workers of a real cluster: `function(node, *arguments)`."""

from __future__ import annotations

import random
import tempfile

import numpy as np

#: Items of 8 bytes in a page of 4 KiB.
ITEMS = 512


def increment_under_lock(node, rounds):
    """Add to cells spread over 64 pages under one lock; return the sum that all ranks see at the end."""
    cells = node.array("cells", (64, ITEMS), "i8")
    lock = node.lock("cells")
    for turn in range(rounds):
        with lock:
            cells[turn % 64, 0] += 1
    node.barrier()
    total = int(cells[:, 0].sum())
    node.barrier()
    return total


def own_columns(node, seed, rounds, page_size):
    """Every rank writes its own word of every page, and must always find there what it wrote last."""
    rng = random.Random(seed * 1000 + node.rank)
    cells = node.array("columns", (32, page_size // 8), "i8", page_size=page_size)
    mine = {}
    for _ in range(rounds):
        page = rng.randrange(32)
        if page in mine:
            assert cells[page, node.rank] == mine[page]
        mine[page] = rng.getrandbits(60)
        cells[page, node.rank] = mine[page]
    node.barrier()
    assert all(cells[page, node.rank] == value for page, value in mine.items())
    node.barrier()


def neighbours(node, n, page_size, home):
    """Each rank writes its block, then sums everybody's: the sum is known."""
    data = node.array("block", n, "i8", page_size=page_size, home=home)
    low, high = n * node.rank // node.size, n * (node.rank + 1) // node.size
    data[low:high] = np.arange(low, high)
    node.barrier()
    total = int(data.sum())
    node.barrier()
    return total


def opposite_copies(node, rounds):
    """Rank 0 copies page a to page b, rank 1 page b to page a: each copy needs both pages at once."""
    pages = node.array("both", (2, 4096), "u1")
    pages[node.rank, :] = node.rank + 1
    node.barrier()
    source, target = (0, 1) if node.rank == 0 else (1, 0)
    for _ in range(rounds):
        np.copyto(pages[target], pages[source])
    node.barrier()
    return sorted(set(pages.ravel().tolist()))


def fill_pattern(node, rank_that_looks):
    """NaN everywhere but where somebody wrote; items cross page borders (12 bytes)."""
    dtype = np.dtype([("a", "<f8"), ("b", "<i4")])
    fill = np.array((np.nan, -7), dtype)
    array = node.array("filled", 5000, dtype, fill=fill)
    if node.rank == 0:
        array["b"][1000:1500] = 3
    node.barrier()
    if node.rank == rank_that_looks:
        assert np.isnan(array["a"]).all()
        assert (array["b"][1000:1500] == 3).all()
        assert (array["b"][:1000] == -7).all() and (array["b"][1500:] == -7).all()
    node.barrier()


def store_buffering(node, rounds, apart):
    """SB: x = 1; r = y  ||  y = 1; r = x.  Return how often both read 0 (this rank's part)."""
    cells = node.array(f"sb {apart}", (rounds, 2, apart), "i8")
    mine, other = (0, 1) if node.rank == 0 else (1, 0)
    seen = []
    for turn in range(rounds):
        node.barrier()
        cells[turn, mine, 0] = 1
        seen.append(int(cells[turn, other, 0]))
    node.barrier()
    return seen


def message_passing(node, rounds, apart):
    """MP: data = 1; flag = 1  ||  wait for flag; r = data."""
    cells = node.array(f"mp {apart}", (rounds, 2, apart), "i8")
    for turn in range(rounds):
        if node.rank == 0:
            cells[turn, 0, 0] = turn + 1
            cells[turn, 1, 0] = 1
        elif node.rank == 1:
            while not cells[turn, 1, 0]:
                pass
            assert cells[turn, 0, 0] == turn + 1
    node.barrier()


def independent_reads(node, rounds, apart):
    """IRIW: x = 1 || y = 1 || r1 = x; r2 = y || r3 = y; r4 = x.  Return what the readers saw."""
    cells = node.array(f"iriw {apart}", (rounds, 2, apart), "i8")
    seen = []
    for turn in range(rounds):
        node.barrier()
        if node.rank < 2:
            cells[turn, node.rank, 0] = 1
        else:
            first, second = (0, 1) if node.rank == 2 else (1, 0)
            seen.append((int(cells[turn, first, 0]), int(cells[turn, second, 0])))
    node.barrier()
    return seen


def coherent_reads(node, rounds):
    """CoRR: one rank counts up, the others never see the count go back."""
    cell = node.array("corr", 1, "i8")
    if node.rank == 0:
        for value in range(1, rounds + 1):
            cell[0] = value
    else:
        last = 0
        while last < rounds:
            now = int(cell[0])
            assert now >= last
            last = now
    node.barrier()


def both_write(node, rounds, apart):
    """2+2W: x = 1; y = 2  ||  y = 1; x = 2.  Return the final (x, y) of every round."""
    cells = node.array(f"ww {apart}", (rounds, 2, apart), "i8")
    first, second = (0, 1) if node.rank == 0 else (1, 0)
    for turn in range(rounds):
        node.barrier()
        cells[turn, first, 0] = 1
        cells[turn, second, 0] = 2
    node.barrier()
    final = [tuple(row) for row in cells[:, :, 0].tolist()]
    node.barrier()
    return final


def write_then_files(node):
    """Rank 0 writes; the last rank lets system calls read and write the pages, pinned."""
    data = node.array("file", 100_000, "f8")
    if node.rank == 0:
        data[:] = np.arange(len(data))
    node.barrier()
    if node.rank == node.size - 1:
        with tempfile.TemporaryFile() as file:
            with node.pin(data):
                np.save(file, data)
            file.seek(0)
            assert (np.load(file) == np.arange(len(data))).all()
            file.seek(0)
            file.write(np.arange(len(data), 0, -1, dtype="f8").tobytes())
            file.seek(0)
            with node.pin(data, write=True):
                assert file.readinto(data) == data.nbytes
    node.barrier()
    assert (data == np.arange(len(data), 0, -1)).all()
    node.barrier()


def prefetched(node):
    """After a prefetch, reading takes no fault that another node answers."""
    data = node.array("ahead", 300_000, "f8")
    if node.rank == 0:
        data[:] = 1.0
    node.barrier()
    result = None
    if node.rank == node.size - 1:
        before = node.statistics()
        node.prefetch(data)
        middle = node.statistics()
        assert data.sum() == len(data)
        after = node.statistics()
        result = (middle.pages_in - before.pages_in, after.pages_in - middle.pages_in)
    node.barrier()
    return result


def random_walk(node, seed, rounds):
    """Random ranges are read, written, prefetched and pinned; ownership of a range is under its lock."""
    rng = random.Random(seed * 1000 + node.rank)
    ranges, length = 8, 5 * ITEMS + 17
    data = node.array("walk", (ranges, length), "i8")
    locks = [node.lock(f"walk {i}") for i in range(ranges)]
    for _ in range(rounds):
        i = rng.randrange(ranges)
        with locks[i]:
            row = data[i]
            action = rng.randrange(4)
            if action == 0:
                node.prefetch(row, write=rng.random() < 0.5)
            values = set(row.tolist())
            assert len(values) == 1, values
            if action == 1:
                with node.pin(row, write=True):
                    row[:] = rng.getrandbits(40)
            else:
                row[:] = rng.getrandbits(40)
    node.barrier()


def touch_after_destroy(node):
    """One rank destroys the array; whoever touches it afterwards gets ClosedError."""
    import dsm

    data = node.array("doomed", 10_000, "f8")
    data[node.rank] = 1.0
    node.barrier()
    if node.rank == 0:
        node.destroy("doomed")
    node.barrier()
    try:
        for _ in range(100_000):
            float(data[5000])
    except dsm.ClosedError as error:
        return str(error)
    return None


def add_many(node, rounds):
    """Every rank counts in one cell; return the cell's value after a barrier."""
    cell = node.atomic("count")
    for _ in range(rounds):
        cell.fetch_add(1)
    node.barrier()
    return cell.load()


def fault_for_ever(node):
    """Read pages that another node keeps writing, until something goes wrong."""
    data = node.array("hot", 64 * ITEMS, "i8")
    while True:
        data[::ITEMS] += 1


def spin_for_ever(node):
    """Read and write pages that nobody else wants, until something goes wrong."""
    mine = node.array("spun", ITEMS, "i8", home=1)
    mine[:] = 1
    node.atomic("spins").fetch_add(1)
    while True:
        mine[0] += 1


def spins(node):
    """Return how many workers spin."""
    return node.atomic("spins").load()


def live_nodes(node):
    """Return the live nodes as this worker's node knows them."""
    return list(node.nodes)
