"""Pins that nobody came to hold, or whose holder died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from dsm.testing import Cluster
from support import wait_until


def _hold(node):
    array = node.array("pinned", 8192, "i8")
    array[:] = 1
    node.pinned = node.pin(array, write=True)
    node.pinned.__enter__()


def _let_go(node):
    node.pinned.__exit__(None, None, None)


def _pin(node):
    with node.pin(node.array("pinned", 8192, "i8"), write=True):
        return True


def _pin_interrupted(node):
    with contextlib.suppress(KeyboardInterrupt):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        _pin(node)
    return True


def test_a_worker_killed_while_it_waits_for_a_pin_leaves_its_node_alive():
    with Cluster(nodes=2, workers=2) as cluster:
        holder, _, killed, other = cluster.workers
        holder.call(_hold)
        waiting = killed.start(_pin)
        other.call(_pin_interrupted, timeout=10)
        killed.kill()
        wait_until(lambda: killed.process.poll() is not None)
        del waiting
        holder.call(_let_go)
        assert other.call(_pin, timeout=10)
        other.kill()
        assert holder.call(_pin, timeout=10)
        assert [manager.process.poll() for manager in cluster.managers] == [None, None]


def test_a_pin_ends_with_its_holder():
    with Cluster(nodes=2) as cluster:
        holder, other = cluster.workers
        holder.call(_hold)
        waiting = other.start(_pin)
        holder.kill()
        assert waiting.result(10)
