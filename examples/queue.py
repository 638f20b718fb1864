"""A bounded queue in shared memory: some workers produce items, the others consume them.

    dsm run -n 4 --nodes 2 examples/queue.py
    dsm run -n 4 --nodes 2 examples/queue.py --items 2000 --slots 16

The queue is a ring of slots in one shared array.  Items are numbered: item k goes into slot k mod slots.
Two atomic counters hand out the numbers, one to producers and one to consumers, so that no two workers
ever have the same item.  A third kind, the `turn` of a slot, says whose turn it is, as in Dmitry Vyukov's
bounded queue: 2r when the slot is free for round r, 2r + 1 when it holds the item of round r.  An atomic
carries what was written before it: whoever loads the turn that another worker stored sees the item, too,
with either consistency.  (A word in shared memory would do for `sequential` only, and would need no message
while it does not change: see `docs/consistency.md`.)

At the end every item must have been consumed exactly once.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np

import dsm

#: What a slot holds: the item, and who produced it.  A slot fills a page (4096 bytes), because pages are
#: what moves between nodes: two slots in one page would move when either is used.
SLOT = np.dtype({"names": ["item", "producer"], "formats": ["i8"] * 2, "itemsize": 4096})


def wait_for(cell, turn):
    """Return when it is `turn`: try at once, then give the processor to others."""
    pause = 0.0
    while cell.load() != turn:
        time.sleep(pause)
        pause = min(0.001, pause + 0.00005)


def produce(ring, turns, tickets, items, rank):
    """Put items into the ring until all have been handed out; return how many were mine."""
    made = 0
    while (item := tickets.fetch_add(1)) < items:
        rnd, slot = divmod(item, len(ring))
        wait_for(turns[slot], 2 * rnd)  # the item of the round before has been taken
        ring["item"][slot] = item * item
        ring["producer"][slot] = rank
        turns[slot].store(2 * rnd + 1)  # last: now consumers may read what I wrote
        made += 1
    return made


def consume(ring, turns, tickets, items, seen):
    """Take items out of the ring until all are taken; mark each in `seen`; return how many were mine."""
    taken = 0
    while (item := tickets.fetch_add(1)) < items:
        rnd, slot = divmod(item, len(ring))
        wait_for(turns[slot], 2 * rnd + 1)
        if ring["item"][slot] != item * item:
            sys.exit(f"wrong: slot {slot} holds {ring['item'][slot]}, not {item * item}")
        seen[item] += 1
        turns[slot].store(2 * rnd + 2)  # last: the slot is free again
        taken += 1
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1000, help="how many items go through the queue (1000)")
    parser.add_argument("--slots", type=int, default=32, help="slots of the ring (32)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    options = parser.parse_args()
    if options.items < 0 or options.slots < 1:
        parser.error("--items must be 0 or more, --slots 1 or more")

    node = dsm.attach()
    if node.size < 2:
        sys.exit("a producer and a consumer are needed: dsm run -n 2 examples/queue.py")
    array = partial(node.array, consistency=options.consistency)
    ring = array("ring", options.slots, SLOT)
    turns = [node.atomic(f"turn {slot}") for slot in range(options.slots)]
    seen = array("seen", (node.size, options.items), "i8")  # who consumed which item how often
    total = array("total", (node.size, 2), "i8")
    # Relaxed: a number orders nothing, the item comes with its slot's turn.
    produced, consumed = (node.atomic(name, relaxed=True) for name in ("produced", "consumed"))

    started = time.perf_counter()
    if node.rank % 2 == 0:
        total[node.rank, 0] = produce(ring, turns, produced, options.items, node.rank)
    else:
        total[node.rank, 1] = consume(ring, turns, consumed, options.items, seen[node.rank])
    node.barrier()
    seconds = time.perf_counter() - started

    with node.lock("print"):  # one at a time, so that the report is in one piece
        made, taken = total[node.rank].tolist()
        print(f"rank {node.rank} on node {node.node_id}: produced {made}, consumed {taken}", flush=True)
    node.barrier()

    if node.rank == 0:
        times = seen.sum(axis=0)
        if not (np.all(times == 1) and (total.sum(axis=0) == options.items).all()):
            missing, twice = int(np.sum(times == 0)), int(np.sum(times > 1))
            sys.exit(f"wrong: {missing} items are missing, {twice} came more than once")
        print(f"{options.items} items, each exactly once, {options.items / seconds:.0f} a second")


if __name__ == "__main__":
    main()
