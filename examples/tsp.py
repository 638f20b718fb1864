"""The shortest way round 51 cities, proved: branch and bound with a shared queue and a shared best tour.

    dsm run -n 4 --nodes 2 examples/tsp.py --check
    python examples/tsp.py --cities 40 --check              # one worker, no launcher: the same program

The cities are eil51 of TSPLIB (Christofides and Eilon), the published optimum is 426.  A task is a set of
tours: some roads are demanded, some forbidden.  Held and Karp's 1-tree (a spanning tree under prices that
push every city towards two roads) bounds their lengths; unless none can be shorter than the best tour known,
the task is split at one road: with it, and without it.  Every worker takes the most promising task out of a
shared queue and puts the parts back, under a lock; there it also looks how long the best tour is by now.
(What it compares with may be old by one visit: that costs some work, never the optimum.)  Look at how evenly
the tasks spread, and at the pages that move between nodes: as every visit to the queue moves some, a worker
does several tasks from one to the next.
"""

import argparse
import contextlib
import sys
import time
from functools import partial

import numpy as np

import dsm

EIL51 = """37 52 49 49 52 64 20 26 40 30 21 47 17 63 31 62 52 33 51 21 42 41 31 32 5 25 12 42 36 16 52 41
27 23 17 33 13 13 57 58 62 42 42 57 16 57 8 52 7 38 27 68 30 48 43 67 58 48 58 27 37 69 38 46 46 10 61 33
62 63 63 69 32 22 45 35 59 15 5 6 10 17 21 10 5 64 30 15 39 10 32 39 25 32 25 55 48 28 56 37 30 40"""
FAR = 1e6  # by so much is a demanded road shorter, a forbidden one longer


def start(road, make, first):
    """Make the shared arrays; whoever is first puts in a tour, and the task that is all tours."""
    # A task, in a page of its own: for each road 1 (demanded), -1 (forbidden) or 0; the prices.
    formats = [("i1", road.shape), ("f8", len(road))]
    tasks = make("tasks", 2047, np.dtype({"names": ["rule", "price"], "formats": formats, "itemsize": 4096}))
    # How many are not done, and the bounds of those that wait (inf: the slot is free): they change together.
    queue = make("queue", (), np.dtype([("open", "i8"), ("bound", "f8", len(tasks))]))
    best = make("best", (), np.dtype([("length", "f8"), ("roads", "i8", (2, len(road)))]))
    if first:
        tour = [0]
        for _ in road[1:]:  # always on to the nearest city
            tour.append(min(set(range(len(road))) - set(tour), key=road[tour[-1]].item))
        best["roads"], best["length"] = (tour, np.roll(tour, -1)), road[tour, np.roll(tour, -1)].sum()
        tasks["rule"][0], queue["open"], queue["bound"][1:] = -np.eye(len(road)), 1, np.inf
    return tasks, queue, best  # arrays share no page: who reads the best does not meet who writes the queue


def one_tree(cost):
    """Return the ends of the roads of a cheapest tree without city 0, and of the two cheapest roads of 0."""
    near, parent, done = cost[1].copy(), np.ones(len(cost), "i8"), np.zeros(len(cost))
    done[:2] = near[:2] = np.inf
    for _ in range(len(cost) - 2):  # Prim's algorithm
        city = near.argmin()
        done[city] = near[city] = np.inf
        row = cost[city] + done
        parent[row < near] = city
        np.minimum(near, row, out=near)
    return np.r_[2 : len(cost), 0, 0], np.r_[parent[2:], cost[0].argsort(kind="stable")[:2]]


def split(road, rule, price, best):
    """Return the tour that this task ends in, or None, and the tasks instead: (bound, (rule, price))."""
    base, bound, stride, before = road - FAR * rule, -np.inf, 1.0, 0.0
    for _ in range(30 if price.any() else 200):
        a, b = one_tree(base + price[:, None] + price)
        excess = np.bincount(np.r_[a, b], minlength=len(road)) - 2  # roads of each city beyond two
        low = road[a, b].sum() + price @ excess + FAR * (rule[a, b] < 0).any()
        better = low <= best - 1 + 1e-6  # lengths are integers
        if not (better and excess.any()):
            return (a, b) if better else None, []
        if low > bound:
            bound, kept = low, (a, b, excess, price)
        stride *= 1.0 if low == bound else 0.85
        push, before = 0.7 * excess + 0.3 * before, excess
        price = price + stride * (best - low) / (excess @ excess) * push
    a, b, excess, price = kept
    free = np.flatnonzero((rule[a, b] == 0) & ((excess[a] > 0) | (excess[b] > 0)))
    chosen = free[road[a, b][free].argmin()]
    there, back = [a[chosen], b[chosen]], [b[chosen], a[chosen]]
    with_it, without = rule.copy(), rule.copy()
    with_it[there, back], without[there, back] = 1, -1
    full = (with_it == 1).sum(axis=0) >= 2  # these cities take no other road
    with_it[(with_it == 0) & (full | full[:, None])] = -1
    return None, [(bound, (with_it, price)), (bound, (without, price))]


def search(road, tasks, queue, best, lock):
    """Take tasks and put their parts back until none is left anywhere; return how many were mine."""
    done, taken, tour, parts, bounds = 0, False, None, [], queue["bound"]
    while True:
        with lock:  # one visit: what came of the last task goes in, the next one comes out
            if taken:
                for slot, part in zip(np.flatnonzero(np.isinf(bounds))[: len(parts)], parts, strict=True):
                    bounds[slot], tasks[slot] = part
                queue["open"] += len(parts) - 1
                if tour and road[tour].sum() < best["length"]:  # another worker may have been quicker
                    best["roads"], best["length"] = tour, road[tour].sum()
            slot, left, length = bounds.argmin(), queue["open"].item(), best["length"].item()
            if taken := bounds[slot] < np.inf:
                task, bounds[slot] = tasks[slot].copy(), np.inf
        if taken:
            tour, parts = None, [(0, task.item())]
            for _ in range(8):  # several between two visits to the queue
                if parts and not tour:
                    tour, more = split(road, *parts.pop()[1], length)
                    parts, done = parts + more, done + 1
        elif left:
            time.sleep(0.001)  # others work on theirs: there may be parts soon
        else:
            return done


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cities", type=int, default=51, choices=range(3, 52), metavar="3…51", help="(51)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with the optimum, or with plain numpy")
    options = parser.parse_args()
    x, y = np.array(EIL51.split(), "f8").reshape(-1, 2)[: options.cities].T
    road = np.floor(np.hypot(x[:, None] - x, y[:, None] - y) + 0.5)  # rounded as TSPLIB says

    node = dsm.attach()
    array = partial(node.array, consistency=options.consistency)
    tasks, queue, best = start(road, array, node.rank == 0)
    counts = array("counts", (node.size, 3), "i8")
    node.barrier(parties=node.size)
    started = time.perf_counter()
    done = search(road, tasks, queue, best, node.lock("queue"))
    seconds = time.perf_counter() - started
    counts[node.rank] = node.node_id, node.statistics().pages_in, done  # pages: of all workers of my node
    node.barrier(parties=node.size)
    if node.rank != 0:
        return
    (a, b), length, tour = best["roads"], int(best["length"]), [0, 0]
    while len(tour) < len(road) + 2:
        beside = np.r_[b[a == tour[-1]], a[b == tour[-1]]].tolist()
        tour.append(beside[beside[0] == tour[-2]])
    pages = sum(dict(counts[:, :2].tolist()).values())  # of each node once
    print(f"{len(road)} cities, the shortest way round is {length}: {tour[1:-1]}")
    print(f"{seconds:.3f} s, {pages} pages moved; tasks of each worker: {counts[:, 2].tolist()}")
    if options.check:
        expected, source = 426, "the published optimum"
        if len(road) < 51:
            plain = start(road, lambda name, shape, dtype: np.zeros(shape, dtype), True)
            search(road, *plain, contextlib.nullcontext())
            expected, source = plain[2]["length"], "what one process finds with plain numpy"
        if len(set(tour)) < len(road) or not road[tour[1:], tour[:-1]].sum() == length == expected:
            sys.exit(f"wrong: that is no way round of length {expected:.0f}, {source}")
        print(f"checked: equal to {source}")


if __name__ == "__main__":
    main()
