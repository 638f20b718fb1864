"""A node that stops for long, and two nodes that cannot reach each other."""

from __future__ import annotations

import signal
import socket

import pytest

import dsm
import programs
from dsm.manager.link import Link
from dsm.testing import Cluster


def test_a_manager_that_is_stopped_for_a_while_loses_nothing():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        second.call(_fill)
        cluster.managers[1].process.send_signal(signal.SIGSTOP)
        reading = first.start(_total)
        with pytest.raises(dsm.PageTimeoutError):
            reading.result(1.0)
        cluster.managers[1].process.send_signal(signal.SIGCONT)
        assert reading.result(20) == 4_000_000.0


def test_a_killed_member_is_lost_to_all_others():
    with Cluster(nodes=3) as cluster:
        cluster.workers[2].call(_fill)
        cluster.managers[2].process.send_signal(signal.SIGKILL)
        for worker in cluster.workers[:2]:
            with pytest.raises(dsm.PageLostError):
                worker.call(_total, timeout=20)
        assert cluster.workers[0].call(programs.live_nodes) == [0, 1]


class _Loop:
    """Just enough of a loop for a link that is only asked about its silence."""

    def watch(self, *_):
        pass

    forget = change = watch


def test_unacknowledged_data_alone_is_no_silence():
    """A closed window is not a dead host: its kernel answers the probes."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    lost = []
    link = Link(_Loop(), sock, None, None, None, lambda link, reason: lost.append(reason))
    try:
        link.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                link.sock.send(bytes(1 << 20))
        link.check_silence()
        assert not lost
    finally:
        link.close()
        peer.close()
        listener.close()


def _fill(node):
    node.array("data", 4_000_000, "f8")[:] = 1.0


def _total(node):
    return float(node.array("data", 4_000_000, "f8").sum())
