"""Sort ten million integers in shared memory: a parallel sort by regular sampling.

    dsm run -n 4 --nodes 2 examples/sort.py --check
    python examples/sort.py --keys 1000000                  # one worker, no launcher: the same program

1. Every worker sorts its block of the keys and puts a few of them, at equal distances, into a shared sample.
2. From the sorted sample all take the same splitters: worker 0 gets the keys up to the first, and so on.
   In each block the keys of each worker are neighbours; where they begin goes into a small shared table.
3. Every worker fetches its part of every block, sorts, and writes it to its place in the result.

The keys are sums of four random numbers (as in NPB's IS), so most are near the middle: ranges of equal
width would give the workers in the middle most of the work, the sample gives all about the same.

Look at the pages: every key moves at most once between nodes, in few large pieces.  A sort that swapped
keys across nodes one at a time would move a page for each.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np

import dsm

#: Keys of the sample from each worker: the more, the more equal the parts.
SAMPLE = 64


def random_keys(first, last, seed=2026):
    """Return keys first to last of an endless sequence, as 32-bit integers."""
    raw = np.random.PCG64(seed).advance(4 * first).random_raw(4 * (last - first))
    return (raw.reshape(-1, 4) >> np.uint64(35)).sum(axis=1).astype("i4")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=10_000_000, help="how many (10000000)")
    parser.add_argument(
        "--page-size", type=int, default=65536, help="bytes of a page, 4096 times a power of 2 (65536)"
    )
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with numpy.sort")
    options = parser.parse_args()
    if options.keys < 0:
        parser.error("--keys must be 0 or more")

    node = dsm.attach()
    rank, size = node.rank, node.size
    edges = [options.keys * worker // size for worker in range(size + 1)]  # of the blocks
    array = partial(node.array, consistency=options.consistency)
    keys = array("keys", options.keys, "i4", page_size=options.page_size)
    result = array("result", options.keys, "i4", page_size=options.page_size)
    sample = array("sample", (size, SAMPLE), "i8")
    begins = array("begins", (size, size + 1), "i8")  # [i, j]: where in block i worker j's keys begin
    counts = array("counts", (size, 3), "i8")

    block = keys[edges[rank] : edges[rank + 1]]
    block[:] = random_keys(edges[rank], edges[rank + 1])  # who writes a page first has it
    node.barrier(parties=size)
    started = time.perf_counter()

    # Sorted in memory of my own and written once: with sequential consistency sorting in place would take a
    # page in which two blocks meet to and fro between their nodes.
    block[:] = np.sort(block)
    spread = np.arange(SAMPLE) * len(block) // SAMPLE
    sample[rank] = block[spread] if len(block) else np.iinfo("i8").max  # no keys, no say
    node.barrier(parties=size)

    splitters = np.sort(sample, axis=None)[SAMPLE : SAMPLE * size : SAMPLE]
    begins[rank] = edges[rank] + np.r_[0, np.searchsorted(block, splitters, side="right"), len(block)]
    node.barrier(parties=size)

    table = begins.copy()
    parts = [keys[low:high] for low, high in zip(table[:, rank], table[:, rank + 1], strict=True)]
    for part in parts:
        node.prefetch(part)  # all its pages at once, where a fault would bring a few
    mine = np.concatenate(parts)
    mine.sort()
    place = int((table[:, rank] - edges[:-1]).sum())  # all keys that are smaller come before
    target = result[place : place + len(mine)]
    node.prefetch(target, write=True)
    target[:] = mine
    numbers = node.statistics()  # of my node: all its workers together
    counts[rank] = node.node_id, numbers.bytes_in, len(mine)
    node.barrier(parties=size)
    seconds = time.perf_counter() - started

    if rank == 0:
        moved = dict(counts[:, :2].tolist())  # by node
        print(f"{options.keys} keys: {size} workers on {len(moved)} nodes, they got {counts[:, 2].tolist()}")
        print(f"{seconds:.3f} s, {1e-6 * options.keys / seconds:.1f} million keys a second")
        print(
            f"{sum(moved.values()) / 2**20:.1f} of {keys.nbytes / 2**20:.1f} MiB of keys moved between nodes"
        )
        if options.check:
            if not np.array_equal(result, np.sort(random_keys(0, options.keys))):
                sys.exit("wrong: the result differs from that of numpy.sort")
            print("checked: equal to numpy.sort in one process")


if __name__ == "__main__":
    main()
