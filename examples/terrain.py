"""Smooth a real elevation model in shared memory, shade it, and write a picture.

    dsm run -n 4 --nodes 2 examples/terrain.py --check      # four workers on two nodes
    python examples/terrain.py --size 1024                  # one worker, no launcher: the same program

Every worker owns a block of rows.  In each sweep it replaces its points by the mean of themselves and
their four neighbours, reading from one array and writing to another (Jacobi's method).  The first and
last row of a block need a row of the neighbour's block: nothing is sent for that, the worker just reads
it, and what lies on another node comes by a page fault.  A barrier ends each sweep.
"""

import argparse
import io
import sys
import time
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.cbook
import matplotlib.image
import numpy as np

import dsm

STEP_X, STEP_Y = 74.4, 92.7  # metres between the points of the model: 3 arc seconds at 36.6° north
EXAGGERATION = 5.0  # heights are stretched before they are shaded, as maps do
LIGHT = np.array([-1.0, -1.0, 2**0.5]) / 2.0  # from the north-west, 45° high: x east, y south, z up
LOWEST, HIGHEST = 236.0, 1076.0  # of the model, in metres


def mirrored(points, size):
    """Return `size` indices that run to and fro over `points`: tiles fit together without a seam."""
    index = np.arange(size) % (2 * points)
    return np.minimum(index, 2 * points - 1 - index)


def heights(size, first, last):
    """Return rows first to last of the model, tiled to size × size points."""
    with matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz") as model:
        elevation = model["elevation"].astype("f8")
    rows, columns = (mirrored(points, size) for points in elevation.shape)
    return elevation[np.ix_(rows[first:last], columns)]


def smooth(old, new, first, last):
    """One sweep over rows first to last; the rim of the terrain keeps its height."""
    first, last = max(first, 1), min(last, len(old) - 1)
    if first >= last:
        return  # more workers than rows
    total = old[first - 1 : last - 1, 1:-1] + old[first + 1 : last + 1, 1:-1]
    total += old[first:last, :-2]
    total += old[first:last, 2:]
    total += old[first:last, 1:-1]
    new[first:last, 1:-1] = total * 0.2


def shade(terrain, picture, first, last):
    """Paint rows first to last: a colour for the height, dimmed by how the slope faces the light."""
    near = terrain[max(first - 1, 0) : last + 1]  # with the rows above and below, where there are any
    above, below = int(first == 0), int(last >= len(terrain))
    near = np.pad(near, [(above, below), (1, 1)], mode="edge")
    east = EXAGGERATION * (near[1:-1, 2:] - near[1:-1, :-2]) / (2 * STEP_X)
    south = EXAGGERATION * (near[2:, 1:-1] - near[:-2, 1:-1]) / (2 * STEP_Y)
    facing = (LIGHT[2] - LIGHT[0] * east - LIGHT[1] * south) / np.sqrt(1 + east**2 + south**2)
    facing = np.clip(facing, 0, 1)[..., np.newaxis]
    colours = matplotlib.colormaps["gist_earth"](np.linspace(0.25, 1, 256))[:, :3]
    height = np.clip((near[1:-1, 1:-1] - LOWEST) / (HIGHEST - LOWEST), 0, 1)
    colour = colours[(255 * height).astype("i4")]
    picture[first:last] = 255 * (2 * colour * facing + colour**2 * (1 - 2 * facing))  # "soft light"


def alone(size, sweeps):
    """Do the same in one process with plain numpy arrays."""
    old = heights(size, 0, size)
    new = old.copy()
    for _ in range(sweeps):
        smooth(old, new, 0, size)
        old, new = new, old
    picture = np.empty((size, size, 3), "u1")
    shade(old, picture, 0, size)
    return old, picture


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="points in each direction (2048)")
    parser.add_argument("--sweeps", type=int, default=20, help="how often to smooth (20)")
    parser.add_argument("--output", default="terrain.png", help="where the picture goes (terrain.png)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with one process and plain numpy")
    options = parser.parse_args()
    size, sweeps = options.size, options.sweeps
    if size < 3 or sweeps < 0:
        parser.error("--size must be 3 or more, --sweeps 0 or more")

    node = dsm.attach()
    first, last = size * node.rank // node.size, size * (node.rank + 1) // node.size  # my rows
    array = partial(node.array, consistency=options.consistency)
    old = array("old", (size, size))
    new = array("new", (size, size))
    picture = array("picture", (size, size, 3), "u1")
    counts = array("counts", (node.size, 3), "i8")

    old[first:last] = heights(size, first, last)  # who writes a page first has it, without any message
    new[first:last] = old[first:last]
    node.barrier(parties=node.size)
    started = time.perf_counter()
    for _ in range(sweeps):
        smooth(old, new, first, last)
        node.barrier(parties=node.size)  # all have written: the arrays change places
        old, new = new, old
    seconds = time.perf_counter() - started
    shade(old, picture, first, last)
    numbers = node.statistics()  # of my node: the workers of a node count together
    counts[node.rank] = node.node_id, numbers.pages_in, numbers.faults
    node.barrier(parties=node.size)

    if node.rank == 0:
        by_node = {number: (pages, faults) for number, pages, faults in counts.tolist()}
        pages, faults = (sum(column) for column in zip(*by_node.values(), strict=True))
        encoded = io.BytesIO()  # first as a whole: a disk may be full
        matplotlib.image.imsave(encoded, picture, format=Path(options.output).suffix[1:] or "png")
        try:
            Path(options.output).write_bytes(encoded.getbuffer())
        except OSError as error:
            sys.exit(f"the picture cannot be written to {options.output}: {error.strerror or error}")
        print(f"{size} × {size} points, {sweeps} sweeps: {node.size} workers on {len(by_node)} nodes")
        print(f"{seconds:.3f} s; {pages} pages moved between nodes, {faults} faults")
        print(f"the picture is in {options.output}")
        if options.check:
            terrain, painted = alone(size, sweeps)
            if not (np.array_equal(terrain, old) and np.array_equal(painted, picture)):
                sys.exit("wrong: the result differs from that of one process with plain numpy")
            print("checked: equal, bit for bit, to one process with plain numpy")


if __name__ == "__main__":
    main()
