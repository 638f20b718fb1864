"""Readers and writers, semaphores, events, conditions between nodes, and what others meet when one dies."""

from __future__ import annotations

import os
import re
import signal

import pytest

import dsm
from dsm.cli.status import ask
from dsm.testing import Cluster
from support import wait_until, waits_in_futex

#: Seconds within which a wait that cannot be fulfilled must have ended.
SOON_S = 10
SHAPES = [(1, 3), (2, 2), (3, 1)]
MODELS = ["sequential", "release"]


def kill(process):
    """Kill a worker or manager, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.process.wait()


def waits(worker):
    """Whether a worker waits for its manager (it must have opened the object before: that is a wait, too)."""
    return waits_in_futex(worker.pid)


# ---- functions that workers run --------------------------------------------------------------------


def name_at(node, kind, home, value=0):
    """Return a name of which an object of that kind has its home on that node."""
    names = (f"{kind} {number}" for number in range(1000))
    return next(name for name in names if node._objects.get(kind, name, value).home == home)


def prepare(node):
    """Open what is used: that is a wait, too."""
    node.rwlock("table"), node.semaphore("units", 2, bounded=True), node.event("go")
    node.condition("full")


def create(node, consistency):
    """Make the arrays that are shared."""
    node.array("rows", (8, 512), "i8", consistency=consistency)
    node.array("queue", 1000, "i8", consistency=consistency)


def change_rows(node, times):
    rows, table = node.open("rows"), node.rwlock("table")
    for _ in range(times):
        with table.write():
            rows += 1


def read_rows(node, times):
    """How many different values a reader has ever seen at once."""
    rows, table, seen = node.open("rows"), node.rwlock("table"), set()
    for _ in range(times):
        with table.read():
            seen.add(len(set(rows.ravel().tolist())))
    return seen


def put(node, first, last):
    queue, condition = node.open("queue"), node.condition("full")
    for number in range(first, last):
        with condition:
            queue[0] += 1
            queue[queue[0]] = number
            condition.notify()


def get(node, count):
    queue, condition, got = node.open("queue"), node.condition("full"), []
    for _ in range(count):
        with condition:
            condition.wait_for(lambda: queue[0] > 0)
            got.append(int(queue[queue[0]]))
            queue[0] -= 1
    return got


def use_units(node, times):
    units, most = node.semaphore("units", 2, bounded=True), 0
    inside = node.atomic("inside")
    for _ in range(times):
        with units:
            most = max(most, inside.fetch_add(1) + 1)
            inside.fetch_add(-1)
    return most


def put_and_signal(node, count):
    queue, filled = node.open("queue"), node.semaphore("filled", 0)
    for number in range(1, count + 1):
        queue[number] = number
        filled.release()


def get_when_signalled(node, count):
    queue, filled = node.open("queue"), node.semaphore("filled", 0)
    seen = []
    for number in range(1, count + 1):
        filled.acquire()
        seen.append(int(queue[number]))
    return seen


def publish(node, value):
    node.open("rows")[:] = value
    node.event("go").set()


def read_when_published(node):
    assert node.event("go").wait(SOON_S)
    return int(node.open("rows").sum())


def acquire_read(node, name="table"):
    return node.rwlock(name).acquire_read()


def acquire_write(node, name="table"):
    return node.rwlock(name).acquire_write()


def release(node):
    node.rwlock("table").release()


def repair(node, how):
    """Take the lock over, and say what the error said."""
    table = node.rwlock("table")
    try:
        with getattr(table, how)():
            return None
    except dsm.OwnerDiedError as error:
        said = str(error)
    table.consistent()
    with getattr(table, how)():
        return said


def take_units(node, n):
    return node.semaphore("units", 2, bounded=True).acquire(n)


def wait_for_event(node, name="go"):
    return node.event(name).wait()


def wait_for_notification(node):
    with node.condition("full") as condition:
        node.array("waiting", 1, "i8")[0] += 1
        return condition.wait()


def waiting(node):
    """How many have ever waited for a notification: who has the lock then knows that they do."""
    with node.condition("full"):
        return int(node.array("waiting", 1, "i8")[0])


def notify(node, count):
    with node.condition("full") as condition:
        condition.notify(count)


def notify_and_hang(node):
    condition = node.condition("full")
    condition.acquire()
    condition.notify_all()
    node.event("notified").set()
    signal.pause()


def is_set(node, name):
    return node.event(name).is_set()


# ---- what they are for -----------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", MODELS)
@pytest.mark.parametrize(("nodes", "workers"), SHAPES)
def test_readers_see_whole_writes(nodes, workers, consistency):
    with Cluster(nodes, workers) as cluster:
        *readers, first = cluster.workers
        first.call(create, consistency)
        writer = first.start(change_rows, 10)
        seen = [reader.start(read_rows, 10) for reader in readers]
        assert [each.result() for each in seen] == [{1}] * len(readers)
        writer.result()


@pytest.mark.parametrize("consistency", MODELS)
@pytest.mark.parametrize(("nodes", "workers"), SHAPES)
def test_a_queue_loses_nothing(nodes, workers, consistency):
    with Cluster(nodes, workers) as cluster:
        first, second, *getters = cluster.workers
        first.call(create, consistency)
        puts = [first.start(put, 0, 12), second.start(put, 12, 24)]
        share = 24 // len(getters)
        got = [getter.start(get, share) for getter in getters]
        for each in puts:
            each.result()
        assert sorted(number for each in got for number in each.result()) == list(range(24))


@pytest.mark.parametrize(("nodes", "workers"), SHAPES)
def test_no_more_use_units_than_there_are(nodes, workers):
    with Cluster(nodes, workers) as cluster:
        used = [worker.start(use_units, 10) for worker in cluster.workers]
        assert all(1 <= each.result() <= 2 for each in used)


@pytest.mark.parametrize("consistency", MODELS)
@pytest.mark.parametrize(("nodes", "workers"), [(1, 2), (2, 1)])
def test_what_was_written_before_a_unit_was_released_is_seen(nodes, workers, consistency):
    with Cluster(nodes, workers) as cluster:
        first, second = cluster.workers
        first.call(create, consistency)
        seen = second.start(get_when_signalled, 20)
        first.call(put_and_signal, 20)
        assert seen.result() == list(range(1, 21))


@pytest.mark.parametrize("consistency", MODELS)
@pytest.mark.parametrize(("nodes", "workers"), SHAPES)
def test_what_was_written_before_an_event_is_seen(nodes, workers, consistency):
    with Cluster(nodes, workers) as cluster:
        first, *others = cluster.workers
        first.call(create, consistency)
        sums = [other.start(read_when_published) for other in others]
        first.call(publish, 3)
        assert [each.result() for each in sums] == [3 * 8 * 512] * len(others)


# ---- deaths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.parametrize(("nodes", "workers"), [(1, 3), (3, 1)])
def test_who_comes_after_a_killed_writer_is_told_once(nodes, workers, how):
    with Cluster(nodes, workers) as cluster:
        first, second, third = cluster.workers
        for worker in (second, third):
            worker.call(prepare)
        first.call(acquire_write)
        after = second.start(repair, how)
        wait_until(lambda: waits(second))
        kill(first)
        assert "rank 0 on node 0 died while it held it. This thread holds it now, alone" in after.result(
            SOON_S
        )
        assert third.call(repair, how) is None


def test_a_killed_reader_lets_a_writer_in():
    with Cluster(nodes=2, workers=2) as cluster:
        first, second, writer, late = cluster.workers
        for worker in (writer, late):
            worker.call(prepare)
        first.call(acquire_read)
        second.call(acquire_read)
        writing = writer.start(acquire_write)
        wait_until(lambda: waits(writer))
        reading = late.start(acquire_read)
        wait_until(lambda: waits(late))
        kill(first)
        second.call(release)
        assert writing.result(SOON_S) is True
        writer.call(release)
        assert reading.result(SOON_S) is True


def test_a_killed_writer_that_waited_lets_readers_in():
    with Cluster(nodes=2, workers=2) as cluster:
        reader, writer, late, _ = cluster.workers
        for worker in (writer, late):
            worker.call(prepare)
        reader.call(acquire_read)
        writer.start(acquire_write)
        wait_until(lambda: waits(writer))
        reading = late.start(acquire_read)
        wait_until(lambda: waits(late))
        kill(writer)
        assert reading.result(SOON_S) is True


def test_units_of_a_killed_worker_are_free():
    with Cluster(nodes=2, workers=2) as cluster:
        first, second, _, _ = cluster.workers
        second.call(prepare)
        first.call(take_units, 2)
        waiting = second.start(take_units, 1)
        wait_until(lambda: waits(second))
        kill(first)
        assert waiting.result(SOON_S) is True


def test_units_of_a_killed_node_are_free():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        name = first.call(unit_at, 0)
        second.call(take_unit, name)
        waiting = first.start(take_unit, name)
        wait_until(lambda: waits(first))
        kill(cluster.managers[1])
        assert waiting.result(SOON_S) is True


def unit_at(node, home):
    """Return a name of which a bounded semaphore of one unit has its home on that node."""
    names = (f"semaphore {number}" for number in range(1000))
    return next(name for name in names if node.semaphore(name, 1, bounded=True)._described.home == home)


def take_unit(node, name):
    return node.semaphore(name, 1, bounded=True).acquire()


def _waiters(cluster):
    """How many wait for a notification, as far as the homes of conditions know."""
    [found] = ask.look(cluster.managers[0].socket).clusters
    objects = [it for node in found.nodes for it in node.objects]
    return sum(len(it.waiting) for it in objects if it.kind == "condition")


def test_a_killed_waiter_does_not_keep_a_notification():
    with Cluster(nodes=2, workers=2) as cluster:
        first, second, _, other = cluster.workers
        ends = []
        for count, worker in enumerate((first, second), 1):
            ends.append(worker.start(wait_for_notification))
            wait_until(lambda count=count: other.call(waiting) == count)
        kill(first)
        wait_until(lambda: _waiters(cluster) == 1)  # else it dies with the lock in its hands, perhaps
        other.call(notify, 1)
        assert ends[1].result(SOON_S) is True


def test_who_was_notified_by_one_that_died_with_the_lock_is_told():
    with Cluster(nodes=2, workers=2) as cluster:
        first, second, victim, _ = cluster.workers
        woken = first.start(wait_for_notification)
        wait_until(lambda: second.call(waiting) == 1)
        victim.start(notify_and_hang)
        wait_until(lambda: second.call(is_set, "notified"))
        kill(victim)
        with pytest.raises(
            dsm.OwnerDiedError, match=r"rank 2 on node 1 died while it held it.*consistent\(\)"
        ):
            woken.result(SOON_S)


@pytest.mark.parametrize(
    ("kind", "wait"),
    [("rwlock", acquire_read), ("rwlock", acquire_write), ("event", wait_for_event)],
)
def test_what_a_killed_node_kept_is_lost_by_name(kind, wait):
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        name = first.call(name_at, kind, 1)
        if kind == "rwlock":
            second.call(acquire_write, name)
        waiting = first.start(wait, name)
        wait_until(lambda: waits(first))
        kill(cluster.managers[1])
        lost = f"{re.escape(repr(name))}.*was kept by node 1, which is gone; use another name"
        with pytest.raises(dsm.PageLostError, match=lost):
            waiting.result(SOON_S)


def condition_at(node, home):
    """Return a name of which a condition (its lock) has its home on that node."""
    names = (f"condition {number}" for number in range(1000))
    return next(name for name in names if node.condition(name)._described.home == home)


def wait_in_block(node, name):
    """A wait that ends without the lock ends its block with its own error."""
    with node.condition(name) as condition:
        return condition.wait()


def test_a_condition_whose_home_died_is_lost_with_its_lock():
    with Cluster(nodes=2) as cluster:
        first, _ = cluster.workers
        name = first.call(condition_at, 1)
        waiting = first.start(wait_in_block, name)
        wait_until(lambda: waits(first))
        kill(cluster.managers[1])
        with pytest.raises(dsm.PageLostError, match="was kept by node 1, which is gone; use another name"):
            waiting.result(SOON_S)


# ---- orders of one's own ---------------------------------------------------------------------------


def write_and_release(node, value):
    node.open("rows")[:] = value
    node.release()


def acquire_and_read(node):
    node.acquire()
    return int(node.open("rows").sum())


@pytest.mark.parametrize("consistency", MODELS)
@pytest.mark.parametrize(("nodes", "workers"), SHAPES)
def test_release_and_acquire_order_what_dsm_does_not_see(nodes, workers, consistency):
    with Cluster(nodes, workers) as cluster:
        cluster.workers[0].call(create, consistency)
        for value in range(1, 4):
            writer, *readers = cluster.workers[value % 3 :] + cluster.workers[: value % 3]
            writer.call(write_and_release, value)  # told by the test's own pipes, after it has returned
            assert {reader.call(acquire_and_read) for reader in readers} == {value * 8 * 512}


def open_reserved(node):
    return node.atomic("dsm.fence")


def relaxed_adds(node, times):
    cell = node.atomic("relaxed", relaxed=True)
    for _ in range(times):
        cell.fetch_add()
    return cell.relaxed


def load(node):
    return node.atomic("relaxed").load()


def test_relaxed_operations_are_as_indivisible_as_others():
    with Cluster(nodes=2, workers=2) as cluster:
        done = [worker.start(relaxed_adds, 50) for worker in cluster.workers]
        assert [each.result() for each in done] == [True] * 4
        assert cluster.workers[0].call(load) == 200
        with pytest.raises(dsm.UsageError, match=r"dsm\.fence. is reserved"):
            cluster.workers[0].call(open_reserved)
