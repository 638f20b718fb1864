"""Nodes that come late and go: what they, and those that stay, may expect of older arrays."""

from __future__ import annotations

import contextlib
import secrets
import signal

import pytest

import dsm
from dsm.testing.cluster import Cluster, ManagerProcess, Worker

PAGES = 20


class Growing(Cluster):
    """A cluster of one worker a node, to which nodes can be added."""

    def __init__(self, nodes):
        self.managers, self.workers = [], []
        self.secret = secrets.token_hex(32)
        try:
            for _ in range(nodes):
                self.add()
        except BaseException:
            self.close()
            raise

    def add(self):
        """Let another node join; return its worker."""
        options = ["--listen", "127.0.0.1:0", "--ranks", "8"]
        if self.managers:
            options += ["--join", self.managers[0].listen]
        self.managers.append(ManagerProcess(self.secret, options, None))
        worker = Worker(self.managers[-1].socket, len(self.workers), 8, None)
        self.workers.append(worker)
        worker.wait_attached(20)
        return worker

    def lose(self, node):
        """Kill a node's manager, and wait until the others know."""
        self.managers[node].process.send_signal(signal.SIGKILL)
        for worker in self.workers[:node]:
            assert worker.call(_wait_for_nodes, [n for n in range(len(self.managers)) if n != node])


def _wait_for_nodes(node, nodes):
    import support

    support.wait_until(lambda: list(node.nodes) == nodes)
    return True


def _write(node, value):
    node.array("old", (PAGES, 512), "i8")[:] = value


def _total(node):
    return int(node.array("old", (PAGES, 512), "i8").sum())


def _total_of_new(node):
    array = node.array("new", (PAGES, 512), "i8", fill=1)
    array[node.node_id] = 1
    return int(array.sum())


def test_a_node_that_joined_later_uses_older_arrays():
    with contextlib.closing(Growing(2)) as cluster:
        cluster.workers[0].call(_write, 1)
        late = cluster.add()
        assert late.call(_total) == PAGES * 512
        late.call(_write, 2)
        assert cluster.workers[1].call(_total) == 2 * PAGES * 512


def test_pages_that_a_later_node_took_are_lost_with_it():
    with contextlib.closing(Growing(2)) as cluster:
        cluster.workers[0].call(_write, 1)
        cluster.add().call(_write, 2)
        cluster.lose(2)
        for worker in cluster.workers[:2]:
            with pytest.raises(dsm.PageLostError):
                worker.call(_total, timeout=10)
        for worker in cluster.workers[:2]:
            assert worker.call(_total_of_new, timeout=10) == PAGES * 512


def test_a_later_node_that_has_not_opened_an_array_takes_nothing_of_it_along():
    with contextlib.closing(Growing(2)) as cluster:
        cluster.workers[0].call(_write, 1)
        cluster.add().call(_total_of_new)
        cluster.lose(2)
        assert cluster.workers[1].call(_total) == PAGES * 512
        with pytest.raises(dsm.PageLostError):
            cluster.workers[1].call(_total_of_new, timeout=10)


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_node_that_joins_after_a_loss_does_not_wait_for_lost_pages(nodes):
    """With two nodes the lost one is no member of the array, with three it is."""
    with contextlib.closing(Growing(nodes)) as cluster:
        cluster.workers[0].call(_write, 1)
        if nodes == 2:
            cluster.add()
        cluster.workers[2].call(_write, 2)
        cluster.lose(2)
        late = cluster.add()
        with pytest.raises(dsm.PageLostError):
            late.call(_total, timeout=10)
        assert late.call(_total_of_new, timeout=10) == PAGES * 512
