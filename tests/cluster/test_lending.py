"""Locks that are lent to the node that uses them: messages, writes, and deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

import dsm
from dsm.testing import Cluster
from support import wait_until, waits_in_futex

#: Seconds within which a wait that cannot be fulfilled must have ended.
SOON_S = 10


def kill(process):
    """Kill a worker or manager, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.process.wait()


def name_at(node, home):
    """Return the name of a lock whose home is that node."""
    names = (f"lock {number}" for number in range(1000))
    return next(name for name in names if node._objects.get("lock", name, 0).home == home)


def use(node, name, times):
    for _ in range(times):
        with node.lock(name):
            pass


def add(node, name, times):
    """Add to cells of several pages under one lock."""
    cells = node.array("cells", (4, 512), "i8", consistency="release")
    lock = node.lock(name)
    for _ in range(times):
        with lock:
            cells[:, 7] += 1


def total(node, name):
    cells = node.array("cells", (4, 512), "i8", consistency="release")
    with node.lock(name):
        return cells[:, 7].tolist()


def acquire(node, name):
    return node.lock(name).acquire(timeout=SOON_S)


def release(node, name):
    node.lock(name).release()


def messages(node):
    return node.statistics().messages_out


def close(node):
    node.close()


@pytest.fixture
def cluster():
    """Two nodes of two workers."""
    with Cluster(nodes=2, workers=2) as cluster:
        yield cluster


def lent_to_node_1(cluster, times=3):
    """Return a lock whose home is node 0, and which is lent to node 1, free."""
    name = cluster.workers[0].call(name_at, 0)
    cluster.workers[2].call(use, name, times)
    return name


def test_workers_of_a_node_pass_a_lock_on_without_messages(cluster):
    name = lent_to_node_1(cluster)
    third, fourth = cluster.workers[2:]
    fourth.call(use, name, 1)
    before = third.call(messages)
    ends = [worker.start(use, name, 200) for worker in (third, fourth)]
    for end in ends:
        end.result(60)
    assert third.call(messages) - before < 20, "in 400 turns"


@pytest.mark.parametrize("home", [0, 1])
def test_increments_on_all_nodes_under_one_lock_are_all_there(cluster, home):
    name = cluster.workers[0].call(name_at, home)
    for round_ in range(1, 4):
        for worker in cluster.workers:  # it is lent to each node in turn, and owes
            worker.call(add, name, 3)
        ends = [worker.start(add, name, 40) for worker in cluster.workers]
        for end in ends:
            end.result(60)
        assert [worker.call(total, name) for worker in cluster.workers] == [[4 * 43 * round_] * 4] * 4


def test_what_a_killed_holder_wrote_is_seen_by_the_next_one_on_each_node(cluster):
    name = lent_to_node_1(cluster)
    first, _, third, fourth = cluster.workers
    third.call(add, name, 5)
    third.call(acquire, name)
    waiting = fourth.start(acquire, name)
    kill(third)
    with pytest.raises(dsm.OwnerDiedError, match="died while it held it"):
        waiting.result(SOON_S)
    fourth.call(release, name)
    with pytest.raises(dsm.OwnerDiedError):  # nobody said that it is consistent
        first.call(total, name)
    first.call(repair, name)
    assert first.call(total, name) == [5] * 4


def repair(node, name):
    """Say that what the lock, which this thread holds, protects is consistent."""
    lock = node.lock(name)
    lock.consistent()
    lock.release()


def test_a_lock_that_a_killed_holder_had_is_told_on_another_node(cluster):
    name = lent_to_node_1(cluster)
    first, third = cluster.workers[0], cluster.workers[2]
    third.call(acquire, name)
    waiting = first.start(acquire, name)
    kill(third)
    with pytest.raises(dsm.OwnerDiedError, match="rank 2 on node 1 died while it held it"):
        waiting.result(SOON_S)


def test_a_lock_goes_with_the_node_that_it_was_lent_to(cluster):
    name = lent_to_node_1(cluster)
    kill(cluster.managers[1])
    with pytest.raises(dsm.OwnerDiedError, match="node 1 died"):
        cluster.workers[0].call(acquire, name)
    cluster.workers[0].call(release, name)


def test_workers_that_close_leave_no_lock_on_their_node(cluster):
    name = lent_to_node_1(cluster)
    cluster.workers[2].call(add, name, 2)
    for worker in cluster.workers[2:]:
        worker.call(close)
    first = cluster.workers[0]
    assert first.call(acquire, name)
    kill(cluster.managers[1])
    first.call(release, name)
    assert first.call(acquire, name)


def test_a_condition_of_a_lock_that_is_lent_works(cluster):
    name = lent_to_node_1(cluster)
    waits = [worker.start(wait_for_one, name) for worker in cluster.workers[:3]]
    cluster.workers[3].call(set_one, name)
    assert [end.result(60) for end in waits] == [1, 1, 1]


def wait_for_one(node, name):
    flag = node.array("flag", 8, "i8", consistency="release")
    condition = node.condition(name + " changed", lock=node.lock(name))
    with condition:
        condition.wait_for(lambda: flag[0] == 1, timeout=30)
        return int(flag[0])


def set_one(node, name):
    flag = node.array("flag", 8, "i8", consistency="release")
    condition = node.condition(name + " changed", lock=node.lock(name))
    with condition:
        flag[0] = 1
        condition.notify_all()


def test_status_tells_who_holds_a_lock_that_is_lent(cluster):
    name = lent_to_node_1(cluster)
    cluster.workers[3].call(acquire, name)
    waiting = cluster.workers[2].start(acquire, name)
    wait_until(lambda: waits_in_futex(cluster.workers[2].pid))
    socket = cluster.managers[0].socket
    command = [sys.executable, "-m", "dsm", "status", socket, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    [told] = json.loads(done.stdout)["clusters"]
    objects = [it for node in told["nodes"] for it in node["objects"] if it["name"] == name]
    [it] = objects
    [waits] = it["waiting"]
    assert (it["lent"], it["holder"]["node"], waits["node"]) == (1, 1, 1)
    assert {it["holder"]["worker"], waits["worker"]} == {0, 1}
    cluster.workers[3].call(release, name)
    assert waiting.result(SOON_S)
