"""A link that is cut: for a moment, for longer than a page may take, for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import dsm
import support
from dsm.limits import PEER_SILENCE_S
from dsm.testing import Cluster, Network
from dsm.testing.network import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

DEADLINE_S = 1.0
#: Makes a network and is killed.
KILLED = """
import os, signal
from dsm.testing import Network
print(*Network(1).hosts, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
PAGE = 512  # words
#: Enough for every node to keep some.
LOCKS = 12


@pytest.fixture
def network():
    with Network(3) as network:
        yield network
    assert network.remains() == []


@pytest.fixture
def cluster(network, monkeypatch):
    monkeypatch.setenv("DSM_PAGE_TIMEOUT", str(DEADLINE_S))
    with Cluster(nodes=3, network=network) as cluster:
        yield cluster


def test_the_network_of_a_process_that_was_killed_is_removed_by_the_next_one():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as killed:
        (host,) = killed.stdout.read().split()
        # While it is not waited for, nobody else's network removes what it left.
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        assert os.path.exists(f"/run/netns/{host}")
    with Network(1) as network:
        assert not os.path.exists(f"/run/netns/{host}")
        assert len(network.remains()) == 2
    assert network.remains() == []


def write(node, name, value):
    node.array(name, PAGE, "i8", home=0)[:] = value


def read(node, name):
    return int(node.array(name, PAGE, "i8", home=0)[7])


def insist(node, name):
    """Read until the page comes; how often it timed out, and the value."""
    array = node.array(name, PAGE, "i8", home=0)
    failed = 0
    while True:
        try:
            value = int(array[7])
            node.check()
            return failed, value
        except dsm.PageTimeoutError:
            failed += 1


def test_a_cut_that_heals_before_the_deadline_is_only_a_delay(network):
    with Cluster(nodes=3, network=network) as cluster:
        first, second, third = cluster.workers
        second.call(write, "x", 1)
        network.cut(0, 1)
        reading = first.start(insist, "x")
        support.wait_until(lambda: support.waits_in_futex(first.pid))
        network.heal()
        assert reading.result() == (0, 1)
        first.call(write, "x", 2)
        assert third.call(read, "x") == second.call(read, "x") == 2


def test_after_a_longer_cut_the_same_access_works(cluster, network):
    first, second, third = cluster.workers
    second.call(write, "x", 1)
    first.call(write, "y", 2)
    network.cut(0, 1)
    reading = first.start(insist, "x")
    # The others reach each other meanwhile.
    assert third.call(read, "y") == 2
    with pytest.raises(dsm.PageTimeoutError):  # of the test's own wait
        reading.result(1.5 * DEADLINE_S)
    network.heal()
    failed, value = reading.result()
    assert failed >= 1
    assert value == 1
    assert [worker.call(live) for worker in cluster.workers] == [(0, 1, 2)] * 3


def live(node):
    return node.nodes


def hold_and_write(node):
    for number in range(LOCKS):
        node.lock(f"held {number}").acquire()
    write(node, "owned", 1)
    return read(node, "shared")


def write_on(node):
    """Write what this node owns and what it only has a copy of, until this node is lost."""
    owned, shared = (node.array(name, PAGE, "i8", home=0) for name in ("owned", "shared"))
    for array in (owned, shared):
        for value in range(100, 10_000_000):
            try:
                array[7] = value
                node.check()
            except dsm.PageTimeoutError:
                continue
            except dsm.NodeLostError:
                break
    node.check()


def take_all(node):
    """Acquire every lock; what each says."""
    said = set()
    for number in range(LOCKS):
        try:
            node.lock(f"held {number}").acquire()
            said.add("free")
        except (dsm.OwnerDiedError, dsm.PageLostError) as error:
            said.add(type(error).__name__)
    return said


def test_a_node_that_was_declared_dead_and_wakes_up_writes_nothing(cluster, network):
    first, second, third = cluster.workers
    first.call(write, "shared", 5)
    assert second.call(hold_and_write) == 5
    network.cut(0, 1)
    cluster.managers[1].process.send_signal(signal.SIGSTOP)
    cut = time.monotonic()
    support.wait_until(lambda: first.call(live) == (0, 2), 2 * PEER_SILENCE_S, "node 1 is declared dead")
    assert time.monotonic() - cut > PEER_SILENCE_S / 2
    assert third.call(live) == (0, 2)
    # Some of the locks were kept by node 1 itself.
    assert third.call(take_all) == {"OwnerDiedError", "PageLostError"}
    writing = second.start(write_on)
    network.heal()
    cluster.managers[1].process.send_signal(signal.SIGCONT)
    with pytest.raises(dsm.NodeLostError):
        writing.result(20)
    cluster.managers[1].process.wait(10)
    for worker in (first, third):
        assert worker.call(read, "shared") == 5
        with pytest.raises(dsm.PageLostError):
            worker.call(read, "owned")
    first.call(write, "shared", 6)
    assert third.call(read, "shared") == 6
