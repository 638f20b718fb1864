"""The peer of the row `jacobi`: the same kernels with halo rows sent by mpi4py.

Run by Open MPI as ``mpirun -n RANKS python -m dsm.bench.halo SIZE SWEEPS``; rank 0 prints one line of JSON:
the seconds of the slowest rank, the processor seconds of all, and the sum over the plate.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from dsm.bench import kernels


class Result(msgspec.Struct, frozen=True):
    """What a run took and found."""

    seconds: float
    processor: float
    total: float


def main(size: int, sweeps: int) -> None:
    """Sweep, and print the result."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, parties = world.rank, world.size
    first, last = kernels.block(size, rank, parties)
    old = np.empty((last - first + 2, size))  # my rows and one above and below
    kernels.start(old, first - 1, size)
    new = old.copy()
    above = rank - 1 if rank else MPI.PROC_NULL
    below = rank + 1 if rank < parties - 1 else MPI.PROC_NULL
    world.Barrier()
    used, started = time.process_time(), time.perf_counter()
    for _ in range(sweeps):
        kernels.sweep(old, new, 1, len(old) - 1)
        world.Sendrecv(new[1], above, 0, new[-1], below, 0)
        world.Sendrecv(new[-2], below, 1, new[0], above, 1)
        old, new = new, old
    seconds, used = time.perf_counter() - started, time.process_time() - used
    results = world.gather(Result(seconds, used, float(old[1:-1].sum())))
    if results is not None:  # at rank 0
        slowest = max(result.seconds for result in results)
        processor, total = (sum(getattr(r, name) for r in results) for name in ("processor", "total"))
        print(msgspec.json.encode(Result(slowest, processor, total)).decode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
