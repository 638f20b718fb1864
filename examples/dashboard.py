"""Watch a simulation live, from another process, without slowing it.

    dsm run -n 2 --nodes 2 examples/dashboard.py --check    # heat spreads on node 0, node 1 watches
    dsm run -n 4 --nodes 4 examples/dashboard.py            # three who watch
    python examples/dashboard.py --size 64 --steps 50       # nobody watches: the same program

Rank 0 lets heat spread over a plate and writes the plate into shared memory after each step.  All other
ranks look at that memory a few times a second; one draws its middle row.  With `consistency="bounded"` what
they see is at most `--staleness` seconds old, and nobody ever takes a page away from the simulation: its
steps take as long as without them.  `--consistency sequential` shows the difference.
"""

import argparse
import contextlib
import statistics
import sys
import time

import numpy as np

import dsm

BLOCKS = " ▁▂▃▄▅▆▇█"


def start(size):
    """Return a cold plate with a hot spot and a hot rim."""
    plate = np.zeros((size, size))
    plate[0] = 100.0
    plate[size // 3 : size // 2, size // 3 : size // 2] = 100.0
    return plate


def spread(plate):
    """One step: every point inside takes a part of its neighbours' heat."""
    around = plate[:-2, 1:-1] + plate[2:, 1:-1] + plate[1:-1, :-2] + plate[1:-1, 2:]
    plate[1:-1, 1:-1] += 0.2 * (around - 4 * plate[1:-1, 1:-1])


def simulate(plate, field, clock, steps, guard):
    """Do some steps and publish each; return the seconds that each took."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        spread(plate)
        with guard:
            field[...] = plate
            clock[:] = clock[0] + 1, time.monotonic()
        seconds.append(time.perf_counter() - began)
    return seconds


def watch(field, clock, last, rate, guard, draw):
    """Look until the last step is seen; return the step and the age in seconds of what each look saw."""
    seen = []
    while not seen or seen[-1][0] < last:
        with guard:
            step, stamp = clock.tolist()
            seen.append((int(step), time.monotonic() - stamp))
            row, mean = field[len(field) // 2, :: max(1, len(field) // 50)].copy(), field.mean()
        if draw:
            heat = np.clip(row / 100 * len(BLOCKS), 0, len(BLOCKS) - 1).astype("i4")
            line = "".join(BLOCKS[each] for each in heat)
            print(f"step {int(step):6}, mean {mean:6.2f} {line}", flush=True)
        time.sleep(1 / rate)
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="points in each direction (512)")
    parser.add_argument("--steps", type=int, default=1000, help="steps without and with an audience (1000)")
    parser.add_argument("--rate", type=float, default=10.0, help="looks in a second (10)")
    parser.add_argument("--staleness", type=float, default=0.1, help="seconds a value may be old (0.1)")
    parser.add_argument("--consistency", choices=("bounded", "sequential", "release"), default="bounded")
    parser.add_argument("--check", action="store_true", help="compare with one process and plain numpy")
    options = parser.parse_args()
    size, steps = options.size, options.steps
    if size < 3 or steps < 1 or options.rate <= 0:
        parser.error("--size must be 3 or more, --steps 1 or more, --rate more than 0")

    node = dsm.attach()
    model = {"consistency": options.consistency}
    if options.consistency == "bounded":
        model["max_staleness"] = options.staleness
    field = node.array("field", (size, size), **model)
    clock = node.array("clock", 2, **model)  # steps done, and when the last one was
    numbers = node.array("numbers", (node.size, 3))
    # Under `release` data travel with locks; the other models need none here.
    guard = node.lock("field") if options.consistency == "release" else contextlib.nullcontext()

    if node.rank == 0:
        plate = start(size)
        alone = simulate(plate, field, clock, steps, guard)
        node.barrier(parties=node.size)
        watched = simulate(plate, field, clock, steps, guard)
    else:
        node.barrier(parties=node.size)
        seen = watch(field, clock, 2 * steps, options.rate, guard, draw=node.rank == 1)
        if [step for step, _ in seen] != sorted(step for step, _ in seen):
            sys.exit("wrong: a later look saw an earlier step")
        numbers[node.rank] = len(seen), max(age for _, age in seen), node.statistics().pages_in
    node.barrier(parties=node.size)

    if node.rank == 0:
        for rank in range(1, node.size):
            looks, age = numbers[rank, :2]
            print(f"rank {rank}: {looks:.0f} looks, what it saw was at most {1e3 * age:.1f} ms old")
        moved = numbers[1:, 2].sum() if node.size > 1 else 0
        before, after = (1e3 * statistics.median(each) for each in (alone, watched))
        print(f"a step took {before:.3f} ms alone, {after:.3f} ms while {node.size - 1} watched")
        print(f"{moved:.0f} pages moved between nodes")
        if options.check:
            expected = start(size)
            for _ in range(2 * steps):
                spread(expected)
            if not np.array_equal(field, expected):
                sys.exit("wrong: the plate differs from that of one process with plain numpy")
            print("checked: equal, bit for bit, to one process with plain numpy")


if __name__ == "__main__":
    main()
