"""Multiply matrices in shared memory: every worker lets BLAS write its rows of the result.

    dsm run -n 4 --nodes 2 examples/matmul.py --check
    dsm run -n 4 --nodes 2 examples/matmul.py --size 1000 --no-prefetch --page-size 4096
    python examples/matmul.py --size 1000                   # one worker, no launcher: the same program

C = A B, each worker a block of rows of A and C, and all of B.  Nothing is copied or sent: numpy hands BLAS
pointers into shared memory, and BLAS writes through `out=`.  Every worker has written its rows of A and B
itself, so its rows of A are here; the rows of B that other nodes wrote must come.

Look at the time that waiting for B takes, and at the faults.  `node.prefetch` asks for all pages at once and
waits once.  Without it BLAS waits for the other node at each fault, and as it goes through B a few columns at
a time, over all rows, reading ahead helps it little.  Larger pages (--page-size) mean fewer faults: they suit
B, which everybody only reads.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np

import dsm


def entries(rows, columns, seed):
    """Return small integers, the same wherever they are made: row and column say what stands there."""
    return ((rows[:, None] * 7919 + columns * 104729 + seed) % 17 - 8).astype("f8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the matrices (2048)")
    parser.add_argument(
        "--page-size", type=int, default=65536, help="bytes of a page, 4096 times a power of 2 (65536)"
    )
    parser.add_argument("--no-prefetch", action="store_true", help="let BLAS fault instead")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with one process and plain numpy")
    options = parser.parse_args()
    size = options.size
    if size < 1:
        parser.error("--size must be 1 or more")

    node = dsm.attach()
    first, last = size * node.rank // node.size, size * (node.rank + 1) // node.size  # my rows, or none
    array = partial(node.array, consistency=options.consistency)
    a, b, c = (array(name, (size, size), page_size=options.page_size) for name in "abc")
    counts = array("counts", (node.size, 3), "i8")
    times = array("times", (node.size, 2))

    rows, columns = np.arange(first, last), np.arange(size)
    a[first:last] = entries(rows, columns, 1)  # who writes a page first has it, without any message
    b[first:last] = entries(rows, columns, 2)
    node.barrier(parties=node.size)

    started = time.perf_counter()
    if not options.no_prefetch:
        node.prefetch(b)
        # BLAS writes a row of C many times.  With sequential consistency the page in which my rows meet
        # another worker's goes to and fro between the nodes; a worker that has few rows to a page should
        # compute into memory of its own and copy once.  Here only a block's first and last page are shared.
        node.prefetch(c[first:last], write=True)
    fetched = time.perf_counter()
    np.matmul(a[first:last], b, out=c[first:last])
    finished = time.perf_counter()
    times[node.rank] = fetched - started, finished - fetched
    numbers = node.statistics()  # of my node: all its workers together
    counts[node.rank] = node.node_id, numbers.pages_in, numbers.faults
    node.barrier(parties=node.size)
    seconds = time.perf_counter() - started

    if node.rank == 0:
        by_node = {number: (pages, faults) for number, pages, faults in counts.tolist()}
        pages, faults = (sum(column) for column in zip(*by_node.values(), strict=True))
        prefetching, multiplying = times.max(axis=0)
        print(f"{size} × {size}: {node.size} workers on {len(by_node)} nodes")
        print(f"{seconds:.3f} s, {2e-9 * size**3 / seconds:.1f} Gflop/s; ", end="")
        print(f"the slowest worker's prefetch {prefetching:.2f} s, BLAS {multiplying:.2f} s")
        print(f"{pages} pages moved between nodes, {faults} faults")
        if options.check:
            expected = entries(columns, columns, 1) @ entries(columns, columns, 2)
            if not np.array_equal(c, expected):
                sys.exit("wrong: the product differs from that of plain numpy")
            # Products and sums of small integers are exact in floating point: no order of adding differs.
            print("checked: equal, bit for bit, to plain numpy in one process")


if __name__ == "__main__":
    main()
