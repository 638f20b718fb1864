"""Functions for workers that measure how old what they read is: a writer stamps, readers look.

Both use one machine's clock.  A stamp k+1 is in every page before stamp k+2 is taken, so whoever finds stamp
k at a time `t` has read something that was overwritten at least `t - stamps[k+2]` ago.
"""

from __future__ import annotations

import threading
import time

import numpy as np

import dsm

#: Words of a page.
WORDS = 512


def stamps(node, bound, pages=4):
    """Open the array that is stamped."""
    name = f"stamps {bound} {pages}"
    return node.array(name, (pages, WORDS), "i8", consistency="bounded", max_staleness=bound)


def write(node, bound, seconds, pages=4, pause=0.0):
    """Stamp every page over and over; return the stamps in order."""
    array = stamps(node, bound, pages)
    taken = []
    end = time.monotonic_ns() + int(seconds * 1e9)
    while not taken or taken[-1] < end:
        taken.append(time.monotonic_ns())
        array[:, 0] = taken[-1]
        array[:, WORDS - 1] = taken[-1]
        if pause:
            time.sleep(pause)
    return np.array(taken)


def read(node, bound, seconds, pages=4, threads=1, pause=0.0):
    """Look at pages in turn until `seconds` are over; return when each look began, and what it found."""
    array = stamps(node, bound, pages)
    found = [([], []) for _ in range(threads)]

    def look(thread):
        times, values = found[thread]
        end = time.monotonic_ns() + int(seconds * 1e9)
        turn = thread
        while not times or times[-1] < end:
            times.append(time.monotonic_ns())
            values.append(int(array[turn % pages, 0 if turn & 1 else WORDS - 1]))
            turn += 1
            if pause:
                time.sleep(pause)

    running = [threading.Thread(target=look, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return [np.concatenate([np.array(each[part]) for each in found]) for part in (0, 1)]


def ages(stamped, looked):
    """Nanoseconds by which each look, at something that was stamped and overwritten, came too late."""
    times, values = looked
    at = np.searchsorted(stamped, values)
    assert np.array_equal(stamped[np.minimum(at, len(stamped) - 1)][values > 0], values[values > 0]), "torn"
    known = (values > 0) & (at + 2 < len(stamped))
    return times[known] - stamped[at[known] + 2]


def put(node, bound, value, page=0):
    """Write one word."""
    stamps(node, bound)[page, 0] = value


def get(node, bound, page=0):
    """Read one word."""
    return int(stamps(node, bound)[page, 0])


def late(node):
    """Nanoseconds, in all, by which this node's workers were kept from ending leases in time."""
    return node.statistics().lease_late_ns


def counters(node):
    """Return what readers might cost a writer: faults, changed maps, pages given up."""
    found = node.statistics()
    return found.faults, found.mprotects, found.invalidations


def own_words(node, bound, rounds):
    """Every rank writes its own word of a page in turn, and always finds there what it wrote last."""
    array = stamps(node, bound, 1)
    for value in range(1, rounds + 1):
        array[0, node.rank] = value
        assert array[0, node.rank] == value
        if value % 7 == 0:
            time.sleep(0.001)
        assert array[0, node.rank] == value
    node.barrier()
    with node.pin(array):
        found = array[0, : node.size].tolist()
    node.barrier()
    return found


def pinned_look(node, bound, seconds):
    """Pin a page to read, for longer than a lease; return what was there at both ends, and when it ended."""
    array = stamps(node, bound)
    with node.pin(array[:1]):
        first = int(array[0, 0])
        node.barrier()
        time.sleep(seconds)
        return first, int(array[0, 0]), time.monotonic()


def write_when_pinned(node, bound, value):
    """Write to a page that another rank has pinned; return when that was done."""
    array = stamps(node, bound)
    node.barrier()
    array[0, 0] = value
    return time.monotonic()


def prefetched_faults(node, bound, pages):
    """Bring pages here, read them all; return the faults that the reading cost."""
    array = stamps(node, bound, pages)
    node.prefetch(array)
    before = node.statistics().faults_read
    total = int(array[:, 0].sum())
    return node.statistics().faults_read - before, total


def fill(node, bound, pages):
    """Write a number into each page."""
    stamps(node, bound, pages)[:, 0] = np.arange(pages)


def get_or_error(node, bound):
    """Read one word; return it, or the error's name, with the time that it took."""
    array = stamps(node, bound)
    began = time.monotonic()
    try:
        found = int(array[0, 0])
        node.check()
    except dsm.DSMError as error:
        return type(error).__name__, time.monotonic() - began
    return found, time.monotonic() - began


def refused(node, options):
    """Return the message with which an array is refused."""
    try:
        node.array(None, 1, "f8", **options)
    except dsm.UsageError as error:
        return str(error)
    return ""
