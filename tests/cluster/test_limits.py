"""What a manager does when it has more than usual, or not enough."""

from __future__ import annotations

import resource

import pytest

import dsm
from dsm.testing import Cluster


def _create(node, first, count):
    for number in range(first, first + count):
        node.array(f"array {number} " + "x" * 200, 100, "u1")[:] = number % 100


def _look(node):
    arrays = node.arrays()
    return len(arrays), [int(node.open(name)[50]) for name in list(arrays)[-3:]]


def test_more_arrays_than_fit_one_answer():
    with Cluster(nodes=2) as cluster:
        cluster.workers[1].call(_create, 0, 700)
        assert [worker.call(_look) for worker in cluster.workers] == [(700, [97, 98, 99])] * 2


def test_a_manager_without_descriptors_refuses_a_region_and_goes_on():
    with Cluster() as cluster:
        worker, manager = cluster.workers[0], cluster.managers[0]
        before = resource.prlimit(manager.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, (64, before[1]))
        with pytest.raises(dsm.LimitError, match="Too many open files"):
            worker.call(_create, 0, 64)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, before)
        worker.call(_create, 0, 64)
        assert worker.call(_look)[0] == 64
