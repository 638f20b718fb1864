"""Since when a lock is held, as `dsm status` tells it."""

import time

from dsm.coherence.engine import Engine
from dsm.manager.ordering import Ordering
from dsm.manager.sync import Sync
from dsm.types import SyncObject
from dsm.wire.calls import Op


def unordered():
    """Without a region under `release` nothing is carried."""
    return Ordering(Engine(0).fence, driver=None)


def test_a_lock_that_passes_on_from_the_dead_is_held_since_then():
    before = time.monotonic_ns()
    sync = Sync(0, {}, lambda waiter, status, result: None, lambda seconds, callback: None, unordered())
    lock = SyncObject(1, "lock", "x", home=0)
    sync.create(lock)
    sync.opened(lock)
    for worker in (0, 1):
        sync.call(Op.LOCK_ACQUIRE, 1, 7, 0, waiter=worker << 16, worker=worker)
    sync.worker_gone(0, rank=0, died=True)
    [described] = sync.home.describe()
    assert (described.holder.worker, described.waiting) == (1, ())
    assert before <= described.holder.since_ns <= time.monotonic_ns()
