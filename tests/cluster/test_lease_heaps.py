"""Leases that count for a heap: they have room in its `max_bytes`, and end with it."""

from __future__ import annotations

import pytest

import dsm
from dsm.testing import Cluster

LONG_S = 300


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2) as cluster:
        yield cluster


kept = {}


def make(node, name, max_bytes):
    node.heap(name, max_bytes=max_bytes, manager="direct", kind="eager")


def take(node, nbytes, heap, by_name=True):
    lease = kept["lease"] = node.lease(nbytes, LONG_S, heap=heap if by_name else node.heap(heap))
    return lease.token


def allocate(node, heap, nbytes):
    kept["block"] = node.heap(heap).alloc(nbytes)


def release(node):
    kept["lease"].release()


def get(node, token):
    return node.open_lease(token).get(0, 4)


def destroy(node, heap):
    node.heap(heap).destroy()


def listed(node):
    return [(info.nbytes, info.heap) for info in node.leases()]


@pytest.mark.parametrize("by_name", [True, False])
def test_leases_and_blocks_share_what_a_heap_may_have(cluster, by_name):
    a, b = cluster.workers
    name = f"shared {by_name}"
    a.call(make, name, "64K")
    with pytest.raises(dsm.TooLargeError, match="max_bytes"):
        b.call(take, "65K", name, by_name)
    b.call(take, "40K", name, by_name)
    assert a.call(listed) == [(40 * 1024, name)]
    with pytest.raises(dsm.FullError, match="max_bytes"):
        a.call(take, "40K", name, by_name)
    with pytest.raises(dsm.LimitError, match="max_bytes"):
        a.call(allocate, name, 40 * 1024)
    b.call(release)
    a.call(allocate, name, 40 * 1024)
    with pytest.raises(dsm.FullError):
        b.call(take, "40K", name, by_name)
    b.call(take, "8K", name, by_name)
    b.call(release)


def test_a_heap_must_be_there(cluster):
    with pytest.raises(dsm.UnknownNameError, match="nowhere"):
        cluster.workers[1].call(take, 100, "nowhere")
    assert cluster.workers[0].call(listed) == []


def test_the_end_of_a_heap_ends_its_leases(cluster):
    a, b = cluster.workers
    a.call(make, "ends", "1M")
    token = b.call(take, 100, "ends")
    assert a.call(get, token) == b"\0" * 4
    a.call(destroy, "ends")
    for worker in cluster.workers:
        with pytest.raises(dsm.LeaseExpiredError, match="taken away"):
            worker.call(get, token)
    assert a.call(listed) == []
