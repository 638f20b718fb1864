"""Who dies, and what everybody else sees, wherever they are at that moment."""

from __future__ import annotations

import signal
import time

import pytest

import dsm
import support
from dsm.testing import Cluster

#: Seconds within which the workers of a killed manager know.
KNOWN_S = 2.0
PAGE = 512  # words


def kill(process):
    process.send_signal(signal.SIGKILL)
    return time.monotonic()


def write(node, value):
    node.array("words", PAGE, "i8")[:] = value


def read(node):
    return int(node.array("words", PAGE, "i8")[7])


def hold(node):
    node.lock("held").acquire()


def take(node):
    """Acquire the lock and give it back; what was raised, if anything."""
    lock = node.lock("held")
    try:
        lock.acquire()
    except dsm.OwnerDiedError as error:
        lock.consistent()
        lock.release()
        return str(error)
    lock.release()
    return None


def meet(node):
    node.barrier()


def keep_waiting_in_a_fault(cluster):
    """Worker 0 waits for a page that stopped worker 1 has mapped."""
    cluster.workers[1].call(write, 1)
    cluster.workers[1].kill(signal.SIGSTOP)
    return cluster.workers[0].start(read)


def keep_waiting_for_a_lock(cluster):
    cluster.workers[1].call(hold)
    return cluster.workers[0].start(hold)


def keep_waiting_at_a_barrier(cluster):
    return cluster.workers[0].start(meet)


WAITS = [keep_waiting_in_a_fault, keep_waiting_for_a_lock, keep_waiting_at_a_barrier]


def assert_known_soon(cluster, wait):
    """Let the first worker wait, kill the first manager: the worker knows within two seconds."""
    waiting = wait(cluster)
    support.wait_until(lambda: support.waits_in_futex(cluster.workers[0].pid))
    killed = kill(cluster.managers[0].process)
    with pytest.raises(dsm.NodeLostError):
        waiting.result(10)
    assert time.monotonic() - killed < KNOWN_S


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("wait", WAITS)
def test_whoever_waits_when_its_manager_is_killed_knows_within_two_seconds(wait, nodes):
    if wait is keep_waiting_in_a_fault and nodes == 1:
        pytest.skip("workers of one node have each other's pages")
    with Cluster(nodes=nodes, workers=2 // nodes) as cluster:
        assert_known_soon(cluster, wait)
        # It can end: nothing of the lost node keeps it.
        cluster.workers[0]._pipe.close()
        assert cluster.workers[0].process.wait(5) == 0


@pytest.mark.parametrize("wait", WAITS)
def test_when_the_first_node_dies_every_node_ends(wait):
    with Cluster(nodes=3) as cluster:
        cluster.workers.append(cluster.workers.pop(0))  # those who wait are of the other nodes
        assert_known_soon(cluster, wait)
        for manager in cluster.managers[1:]:
            manager.process.wait(5)


def spread(node):
    """Own a page in every MiB: their directory nodes differ."""
    node.array("spread", (8, 1 << 17), "i8", home="cyclic")[:, 0] = node.rank + 1


def read_spread(node):
    return node.array("spread", (8, 1 << 17), "i8", home="cyclic")[:, 0].tolist()


def survey(node, write):
    """What becomes of an access to each page: the value, or the error's text."""
    array = node.array("spread", (8, 1 << 17), "i8", home="cyclic")
    found = []
    for row in range(8):
        try:
            if write:
                array[row, 0] = 50 + node.rank
            found.append(int(array[row, 0]))
            node.check()
        except dsm.PageLostError as error:
            found.append(str(error))
    return found


def test_pages_whose_directory_and_owner_live_work_on():
    with Cluster(nodes=3) as cluster:
        first, second, _ = cluster.workers
        first.call(spread)
        kill(cluster.managers[2].process)
        support.wait_until(lambda: first.call(live) == (0, 1))
        # Rows 2 and 5 have their directory entry on node 2, the others on nodes 0 and 1; node 0 owns all.
        assert first.call(survey, True) == [50] * 8
        found = second.call(survey, True)
        assert [row for row, what in enumerate(found) if what != 51] == [2, 5]
        for row in (2, 5):
            assert f"page {row * 256} of region 'spread'" in found[row]
            assert "node 2" in found[row]
        # What node 1 wrote, node 0 sees; what it could not write, node 0 still has.
        assert first.call(read_spread) == [51, 51, 50, 51, 51, 50, 51, 51]


def test_pages_of_a_dead_owner_are_lost_and_their_read_copies_are_not():
    with Cluster(nodes=3) as cluster:
        first, second, third = cluster.workers
        third.call(spread)
        assert second.call(read_spread) == [3] * 8
        kill(cluster.managers[2].process)
        support.wait_until(lambda: first.call(live) == (0, 1))
        assert second.call(read_spread) == [3] * 8
        found = first.call(survey, False)
        for row in (2, 5):  # directory and owner are gone
            assert "is lost" in found[row] or "went away" in found[row]
        written = second.call(survey, True)
        for row in (2, 5):
            assert isinstance(written[row], str)


def live(node):
    return node.nodes


def test_new_arrays_work_after_a_node_has_died():
    with Cluster(nodes=3) as cluster:
        first, second, _ = cluster.workers
        cluster.all(spread)
        kill(cluster.managers[2].process)
        support.wait_until(lambda: first.call(live) == (0, 1))
        first.call(write, 4)
        assert second.call(read) == 4


def test_a_worker_killed_with_a_lock_is_told_to_the_next_one_and_to_nobody_else():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        first.call(hold)
        waiting = second.start(take)
        support.wait_until(lambda: support.waits_in_futex(second.pid))
        first.kill()
        assert waiting.result(10) is not None
        assert second.call(take) is None


def test_a_worker_killed_outside_a_barrier_breaks_it_for_those_who_wait():
    with Cluster(nodes=2, workers=2) as cluster:
        waiting = [worker.start(meet) for worker in cluster.workers[:3]]
        for worker in cluster.workers[:3]:
            support.wait_until(lambda pid=worker.pid: support.waits_in_futex(pid))
        cluster.workers[3].kill()
        for future in waiting:
            with pytest.raises(dsm.BrokenBarrierError):
                future.result(10)


def write_for_ever(node):
    array = node.array("words", PAGE, "i8")
    value = 0
    while True:
        value += 1
        array[7] = value
        array[8] = value


def two_words(node):
    array = node.array("words", PAGE, "i8")
    later, earlier = int(array[8]), int(array[7])
    return earlier, later


def test_pages_stay_coherent_when_their_writer_is_killed():
    with Cluster(nodes=2, workers=2) as cluster:
        writer, neighbour, stranger, other = cluster.workers
        writer.start(write_for_ever)
        support.wait_until(lambda: stranger.call(two_words)[1] > 100)
        writer.kill()
        writer.process.wait(10)
        found = [worker.call(two_words) for worker in (neighbour, stranger, other)]
        assert len(set(found)) == 1
        earlier, later = found[0]
        assert earlier - later in (0, 1)
        neighbour.call(write, -1)
        assert other.call(two_words) == (-1, -1)
