"""Process pools over shared arrays: tasks and results carry references of some hundred bytes, not the data.

    python examples/pool.py --check                         # runs by itself: the pools start the processes
    python examples/pool.py --check --method spawn          # also with processes that do not fork
    dsm run -n 2 --nodes 2 examples/pool.py --check         # two nodes, each with pools of its own

The workers paint the Mandelbrot set.  multiprocessing.Pool paints blocks of rows, each handed out when a
process is free, because rows cost very different time; then concurrent.futures counts what was painted.  An
array of dsm given to either, or a view of one, arrives as the same memory: the functions below know nothing
of dsm, write where they were told to, and return only what is small.  (Ordinary arrays are copied into every
task, and what a process writes into its copy is lost.)  The pools' pipes order what processes of one node do,
with either consistency; what another node painted is read after a barrier.

Look at the first line: how many bytes a task is, and how many bytes of picture it stands for.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

import dsm

HERE = Path(__file__).resolve().parent
LIMIT = 200  # steps after which a point counts as one of the set


def paint(block, first, size):
    """Write into rows first, first + 1, … of the picture how many steps each point takes to go far away."""
    y, x = np.mgrid[first : first + len(block), :size]
    c = (3 * x / size - 2.25) + 1j * (3 * y / size - 1.5)
    z, steps = np.zeros_like(c), np.zeros(c.shape, "u1")
    for _ in range(LIMIT):
        inside = np.abs(z) <= 2
        if not inside.any():
            break
        steps += inside
        z[inside] = z[inside] ** 2 + c[inside]
    block[:] = steps  # at once: a page in which blocks of two nodes meet does not go to and fro for long
    return os.getpid()


def count(block):
    """Return how many points of these rows have each number of steps."""
    return np.bincount(block.ravel(), minlength=LIMIT + 1)


def main():
    # Python looks for modules in this folder first: its queue.py would hide the standard library's `queue`.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=600, help="points in each direction (600)")
    parser.add_argument("--rows", type=int, default=20, help="rows of a block (20)")
    parser.add_argument("--workers", type=int, default=4, help="processes of a pool (4)")
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods(), help="how they start")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with one process and plain numpy")
    options = parser.parse_args()
    if min(options.size, options.rows, options.workers) < 1:
        parser.error("--size, --rows and --workers must be 1 or more")
    size, context = options.size, multiprocessing.get_context(options.method)

    node = dsm.attach()  # before the pools: their processes join the node of this one
    array = partial(node.array, consistency=options.consistency)
    picture = array("picture", (size, size), "u1")
    counts = array("counts", (node.size, 3), "i8")
    blocks = [(picture[first : first + options.rows], first, size) for first in range(0, size, options.rows)]
    mine = blocks[node.rank :: node.size]  # by itself: all of them
    node.barrier(parties=node.size)

    started = time.perf_counter()
    with context.Pool(options.workers) as pool:
        painters = set(pool.starmap(paint, mine, chunksize=1))
    painted = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as executor:
        histogram = sum(executor.map(count, [block for block, _, _ in mine]), np.zeros(LIMIT + 1, "i8"))
    counted = time.perf_counter()
    counts[node.rank] = node.node_id, node.statistics().pages_in, histogram.sum()
    node.barrier(parties=node.size)

    if node.rank == 0:
        task, data = len(ForkingPickler.dumps(blocks[0])), blocks[0][0].nbytes
        pages = dict(counts[:, :2].tolist())  # by node
        print(f"a task of {task} bytes stands for {data} bytes of picture")
        print(f"{len(blocks)} blocks, {node.size} pools of {options.workers} on {len(pages)} nodes")
        print(f"painted in {painted - started:.2f} s by {len(painters)} processes of the first pool")
        print(f"counted in {counted - painted:.2f} s; {sum(pages.values())} pages moved between nodes")
        if options.check:
            expected = np.empty_like(picture)
            for first in range(0, size, options.rows):
                paint(expected[first : first + options.rows], first, size)
            if not (np.array_equal(picture, expected) and counts[:, 2].sum() == size * size):
                sys.exit("wrong: the picture differs from that of one process with plain numpy")
            if node.size == 1 and not np.array_equal(histogram, count(expected)):
                sys.exit("wrong: the histogram differs from that of one process with plain numpy")
            print("checked: equal, bit for bit, to one process with plain numpy")


if __name__ == "__main__":
    main()
