"""Solve Laplace's equation on a plate by Jacobi's method: blocks of rows, halo rows, a barrier a sweep.

    dsm run -n 4 --nodes 2 examples/jacobi.py --consistency release --check
    dsm run -n 2 --nodes 2 examples/jacobi.py --size 2048 --sweeps 100 --consistency sequential
    python examples/jacobi.py --size 512                    # one worker, no launcher: the same program

The plate's upper edge is hot, the others are cold.  In each sweep every worker replaces the points of its
rows by the mean of their four neighbours, reading one array and writing the other; then the arrays change
places.  Just above and below its rows it reads one row (the halo) of its neighbour's.

With release consistency this is what one would write with messages.  A worker's own rows are kept by its own
node and written there without any message; in each sweep the barrier says which pages of the halo rows are
new, and those are fetched.  With sequential consistency a neighbour's copy of a halo row is besides taken
back before its row is written again.  Look at the pages, which are the same, and at the time.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np

import dsm

HOT = 100.0


def sweep(old, new, first, last, rows=64):
    """Replace rows first to last by the means of their neighbours; some at a time, to stay in the caches."""
    for low in range(first, last, rows):
        high = min(low + rows, last)
        mean = new[low:high, 1:-1]
        np.add(old[low - 1 : high - 1, 1:-1], old[low + 1 : high + 1, 1:-1], out=mean)
        mean += old[low:high, :-2]
        mean += old[low:high, 2:]
        mean *= 0.25


def alone(size, sweeps):
    """Do the same in one process with plain numpy arrays."""
    old, new = np.zeros((size, size)), np.zeros((size, size))
    old[0] = new[0] = HOT
    for _ in range(sweeps):
        sweep(old, new, 1, size - 1)
        old, new = new, old
    return old


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="points in each direction (1024)")
    parser.add_argument("--sweeps", type=int, default=50, help="how many (50)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with one process and plain numpy")
    options = parser.parse_args()
    size, sweeps = options.size, options.sweeps
    if size < 3 or sweeps < 0:
        parser.error("--size must be 3 or more, --sweeps 0 or more")

    node = dsm.attach()
    array = partial(node.array, consistency=options.consistency)
    old, new = array("old", (size, size)), array("new", (size, size))
    counts = array("counts", (node.size, 3), "i8")

    inner = size - 2  # the edges stay as they are
    first, last = (1 + inner * rank // node.size for rank in (node.rank, node.rank + 1))  # my rows
    for plate in (old, new):
        plate[first:last] = 0.0  # who writes a page first keeps it
        if node.rank == 0:
            plate[0] = HOT
    node.barrier(parties=node.size)
    started = time.perf_counter()
    for _ in range(sweeps):
        sweep(old, new, first, last)
        node.barrier(parties=node.size)  # all have written: the arrays change places
        old, new = new, old
    seconds = time.perf_counter() - started
    numbers = node.statistics()  # of my node: all its workers together
    counts[node.rank] = node.node_id, numbers.pages_in, numbers.faults
    node.barrier(parties=node.size)

    if node.rank == 0:
        by_node = {number: (pages, faults) for number, pages, faults in counts.tolist()}
        pages, faults = (sum(column) for column in zip(*by_node.values(), strict=True))
        print(f"{size} × {size} points, {sweeps} sweeps: {node.size} workers on {len(by_node)} nodes")
        points = 1e-6 * inner * inner * sweeps / seconds
        print(f"{seconds:.3f} s, {points:.0f} million points a second; ", end="")
        print(f"{pages} pages moved between nodes, {faults} faults")
        print(f"in the middle, from the upper edge down: {old[:6, size // 2].round(1).tolist()}")
        if options.check:
            if not np.array_equal(old, alone(size, sweeps)):
                sys.exit("wrong: the result differs from that of one process with plain numpy")
            print("checked: equal, bit for bit, to one process with plain numpy")


if __name__ == "__main__":
    main()
