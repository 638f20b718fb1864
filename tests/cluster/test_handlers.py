"""A signal handler comes at every step of every call that maps or closes memory, and does the same itself.

No call waits for a thread that waits for it, whatever was interrupted.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest

from dsm import callbacks
from dsm.errors import UnknownNameError
from dsm.testing import Cluster
from dsm.worker import leasebook, leasing, ranges, regions, session
from dsm.worker.node import leases
from steps import Handler
from support import wait_until

#: Where the handler comes at each line, too.
LINES = {module.__name__ for module in (callbacks, leasebook, leases, leasing, ranges, regions, session)}
NBYTES = 5000

pytestmark = pytest.mark.usefixtures("patient")


class _Program:
    """Calls of a program, and of a handler that does the same with other names."""

    def __init__(self, node, prefix):
        self.node = node
        self.names = (f"{prefix}{i}" for i in itertools.count())
        self.over = []

    def array(self):
        name = next(self.names)
        a = self.node.array(name, 1000)
        a[:] = 1.0
        self.node.destroy(a)
        assert name not in self.node.arrays()

    def named(self):
        name = next(self.names)
        self.node.region(name, NBYTES).buffer[0] = 1
        self.node.destroy(name)

    def refused(self):
        with contextlib.suppress(UnknownNameError):
            self.node.destroy(next(self.names))

    def lease(self):
        with self.node.lease(NBYTES, "1h") as lease:
            lease.on_expiry(self.over.append)
            lease.array()[:] = 7
            assert self.node.open_lease(lease.token).get(0, 3) == b"\7\7\7"
        lease.on_expiry(self.over.append)

    def unused(self):
        """As a lease server does, which closes here what nobody uses, and opens it again."""
        with self.node.lease(NBYTES, "1h") as lease:
            lease.set(b"abc")
            for _ in range(2):
                self.node._leases.give_up(lease._held)
                lease = self.node.open_lease(lease.token)
                assert lease.get(0, 3) == b"abc"

    def pin(self):
        a = self.node.array(next(self.names), 1000)
        with self.node.pin(a), self.node.pin(a[500:]):
            a[:] = 3.0
        self.node.destroy(a)

    def direct(self):
        heap = self.node.heap("direct", manager="direct")
        block = heap.alloc(NBYTES)
        block.array()[:] = 1
        heap.free(block)


def _step(node, call, action):
    """Interrupt a call at each of its steps; return how many these are."""
    program, handler = (
        _Program(node, f"{call} {action} program "),
        _Program(node, f"{call} {action} handler "),
    )
    for at in itertools.count(1):
        come = Handler(at, getattr(handler, action), LINES)
        with come:
            getattr(program, call)()
        if come.left > 0:
            break
    times = 2 * (at * (call == "lease") + (at - 1) * (action == "lease"))
    wait_until(lambda: len(program.over) + len(handler.over) == times, 20)
    return at, len(node._pins._held)


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=1) as cluster:
        yield cluster


CALLS = ["array", "named", "refused", "lease", "unused", "pin", "direct"]


@pytest.mark.parametrize("action", ["array", "lease", "pin"])
@pytest.mark.parametrize("call", CALLS)
def test_at_every_step(cluster, call, action):
    steps, pinned = cluster.workers[0].call(_step, call, action)
    assert steps > 20 and pinned == 0
