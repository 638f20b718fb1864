"""Python collects garbage in a thread of ours: a program's finalizers run there, and nothing waits for ever.

The thread is the one that hears the manager's answers, in the middle of a call whose answer it hears.
"""

from __future__ import annotations

import gc
import logging

import pytest

from dsm.errors import UsageError
from dsm.log import logger
from dsm.testing import Cluster
from dsm.wire import control
from support import wait_until

NBYTES = 400_000

pytestmark = pytest.mark.usefixtures("patient")


class _Garbage:
    """In a cycle with itself; does something when it is collected."""

    def __init__(self, work, failed):
        self.itself, self.work, self.failed = self, work, failed

    def __del__(self):
        try:
            self.work()
        except Exception as error:
            self.failed.append(error)


def _finalize(node, *works):
    """Have finalizers run where answers are heard, while this thread waits for one; say what they raised."""
    failed, before = [], gc.isenabled()
    gc.disable()
    try:
        for work in works:
            _Garbage(work, failed)
        question = control.ListNodes()
        node._connection.session.call(question, control.NodeList, arrived=lambda *_: gc.collect())
    finally:
        if before:
            gc.enable()
    return failed


def _free(node, name, manager, nbytes, count):
    heap = node.heap(name, manager=manager)
    blocks = [heap.alloc(nbytes) for _ in range(count)]
    for block in blocks:
        block.array()[:1] = 1
    with node._heaps.slow:  # as in the middle of a call of a heap
        failed = _finalize(node, *(block.free for block in blocks))
    wait_until(lambda: heap.statistics().in_use == 0, 20)
    heap.check()
    heap.destroy()
    return failed


def _give_back(node):
    lease, array, region = node.lease(100, "1h"), node.array("array", 10), node.region("region", 10)
    heap = node.heap("destroyed")
    failed = _finalize(node, lease.release, lambda: node.destroy(array), region.destroy, heap.destroy)
    wait_until(lambda: lease.expired and region.closed and heap.closed and not node.arrays(), 20)
    return failed


def _give_back_what_is_gone(node):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    failed = _finalize(node, lambda: node.destroy("nothing"))
    wait_until(lambda: said, 20)
    logger.removeHandler(handler)
    return failed, said


def _wait(node):
    lock = node.lock("lock")
    heap = node.heap("heap", manager="direct", kind="eager")
    asked = [lambda: node.array("made", 10), node.arrays, lock.acquire, lambda: heap.alloc(10)]
    failed = _finalize(node, *asked)
    assert "made" not in node.arrays()
    heap.destroy()
    return failed


@pytest.fixture(scope="module")
def worker():
    with Cluster(nodes=1) as cluster:
        yield cluster.workers[0]


@pytest.mark.parametrize(
    "manager, nbytes, count", [("pooled", 64, 600), ("pooled", NBYTES, 3), ("direct", NBYTES, 3)]
)
def test_blocks_are_freed(worker, manager, nbytes, count):
    assert worker.call(_free, f"{manager} {nbytes}", manager, nbytes, count) == []


def test_leases_and_regions_are_given_back(worker):
    assert worker.call(_give_back) == []


def test_what_cannot_be_given_back_is_logged(worker):
    failed, (said,) = worker.call(_give_back_what_is_gone)
    assert failed == [] and "destroy could not be given back" in said


def test_what_would_wait_is_refused(worker):
    failed = worker.call(_wait)
    assert [type(error) for error in failed] == [UsageError] * 4
    assert all("a finalizer" in str(error) and "dsm-watcher" in str(error) for error in failed)
