"""What others see when a process of the cluster dies."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

import dsm
import programs
from dsm.testing import Cluster
from support import wait_until


def test_a_worker_in_a_fault_gets_node_lost_error_when_its_manager_is_killed():
    with Cluster(nodes=2) as cluster:
        waiting = [worker.start(programs.fault_for_ever) for worker in cluster.workers]
        cluster.managers[1].process.send_signal(signal.SIGKILL)
        with pytest.raises(dsm.NodeLostError):
            waiting[1].result(10)
        cluster.workers[0].kill()


def test_a_worker_that_needs_no_fault_does_not_go_on_without_its_manager():
    """What it has mapped is nobody's any more: it would read what others have long changed."""
    with Cluster(nodes=2) as cluster:
        spinning = cluster.workers[1].start(programs.spin_for_ever)
        wait_until(lambda: cluster.workers[0].call(programs.spins) > 0)
        killed = time.monotonic()
        cluster.managers[1].process.send_signal(signal.SIGKILL)
        with pytest.raises(dsm.NodeLostError):
            spinning.result(10)
        assert time.monotonic() - killed < 2


def test_pages_of_a_killed_node_are_lost_to_the_others():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        second.call(_take_and_write)
        cluster.managers[1].process.send_signal(signal.SIGKILL)
        with pytest.raises(dsm.PageLostError, match="page"):
            first.call(_read)


def _read(node):
    return float(node.array("page", 10, "f8")[3])


def test_a_killed_worker_does_not_keep_its_lock_or_its_pages():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        first.call(_take_and_write)
        first.kill()
        assert second.call(_take_and_read) == 7.0


def _take_and_write(node):
    node.lock("held").acquire()
    node.array("page", 10, "f8")[:] = 7.0


def _take_and_read(node):
    with contextlib.suppress(dsm.OwnerDiedError):
        node.lock("held").acquire()
    return float(node.array("page", 10, "f8")[3])


def test_a_worker_that_sends_garbage_is_still_served():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        second.call(_take_and_write)
        assert first.call(_garbage_then_read) == 7.0


def _garbage_then_read(node):
    node._connection.session._socket.send(b"\x01garbage")
    return _read(node)
