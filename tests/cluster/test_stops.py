"""Who stops for a while, and what everybody else sees meanwhile and afterwards."""

from __future__ import annotations

import signal
import time

import pytest

import dsm
import support
from dsm.testing import Cluster

DEADLINE_S = 1.0
#: Seconds that an error may come after the deadline.
LATE_S = 1.0
PAGE = 512  # words


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("DSM_PAGE_TIMEOUT", str(DEADLINE_S))
    with Cluster(nodes=2) as cluster:
        cluster.workers[1].call(write, 1)
        yield cluster


def write(node, value):
    node.array("words", (2, PAGE), "i8")[0] = value


def read(node):
    return int(node.array("words", (2, PAGE), "i8")[0, 7])


def timed(node, value=None):
    """Read the page, or write it; how long it took, and what came of it."""
    array = node.array("words", (2, PAGE), "i8")
    started = time.monotonic()
    try:
        if value is not None:
            array[0, 7] = value
        result = int(array[0, 7])
        node.check()
    except dsm.PageTimeoutError as error:
        result = str(error)
    return time.monotonic() - started, result


@pytest.fixture(params=["worker", "manager"])
def stop(request, cluster):
    """Stop worker 1 or its manager; gives what lets it go on."""
    process = cluster.workers[1].process if request.param == "worker" else cluster.managers[1].process
    process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(process.pid) == "T")
    return lambda: process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("value", [None, 2], ids=["read", "write"])
def test_a_page_of_somebody_who_is_stopped_times_out_and_comes_when_he_goes_on(cluster, stop, value):
    first, second = cluster.workers
    for _ in range(2):  # trying again while he is stopped is no harm
        took, result = first.call(timed, value)
        assert "words" in result and "page 0" in result
        assert DEADLINE_S <= took < DEADLINE_S + LATE_S
    stop()
    took, result = first.call(timed, value)
    assert result == (1 if value is None else 2)
    # Nothing was lost, and nothing of the timed-out accesses is left over.
    assert second.call(read) == result
    second.call(write, 3)
    assert first.call(read) == 3


def test_a_stop_that_is_shorter_than_the_deadline_is_only_a_delay(cluster, stop):
    first, _ = cluster.workers
    reading = first.start(timed)
    support.wait_until(lambda: support.waits_in_futex(first.pid))
    stop()
    took, result = reading.result()
    assert result == 1
    assert took < DEADLINE_S + LATE_S


def touch_own(node):
    """Use pages that are here."""
    array = node.array("own", (2, PAGE), "i8")
    array[node.rank] += 1
    return int(array[node.rank, 0])


def test_pages_that_are_here_are_used_while_others_are_stopped(cluster):
    first, second = cluster.workers
    cluster.all(touch_own)
    first.call(touch_own)
    cluster.managers[1].process.send_signal(signal.SIGSTOP)
    assert first.call(touch_own, timeout=5) == 3
    cluster.managers[1].process.send_signal(signal.SIGCONT)
    assert second.call(touch_own) == 2


def hold_and_write(node, value):
    node.lock("held").acquire()
    write(node, value)


def release(node):
    node.lock("held").release()


def take_and_read(node):
    with node.lock("held"):
        return read(node)


def test_the_holder_of_a_lock_may_be_stopped_for_longer_than_the_deadline(cluster):
    first, second = cluster.workers
    second.call(hold_and_write, 5)
    waiting = first.start(take_and_read)
    second.kill(signal.SIGSTOP)
    with pytest.raises(dsm.PageTimeoutError):  # of the test's own wait: the lock is waited for without an end
        waiting.result(1.5 * DEADLINE_S)
    second.kill(signal.SIGCONT)
    second.call(release)
    assert waiting.result() == 5


def try_lock(node, timeout):
    started = time.monotonic()
    got = node.lock("held").acquire(timeout)
    return got, time.monotonic() - started


@pytest.mark.parametrize("who", [0, 1])
def test_a_timed_wait_for_a_lock_ends_in_time_whoever_is_stopped(cluster, who):
    """Also when it is the node that decides about the lock."""
    first, second = cluster.workers
    second.call(hold_and_write, 5)
    first.call(open_lock)
    other = first if who == 1 else second
    if who == 0:
        second.call(release)
        first.call(hold_and_write, 6)
    cluster.managers[who].process.send_signal(signal.SIGSTOP)
    got, took = other.call(try_lock, 0.3, timeout=10)
    assert not got
    assert took < 0.3 + LATE_S
    cluster.managers[who].process.send_signal(signal.SIGCONT)
    cluster.workers[who].call(release)
    # The request that was given up holds nothing.
    assert other.call(try_lock, 5)[0]
    other.call(release)
    assert cluster.workers[who].call(try_lock, 5)[0]


def open_lock(node):
    node.lock("held")


def test_a_worker_stopped_at_a_barrier_is_waited_for(cluster):
    first, second = cluster.workers
    second.kill(signal.SIGSTOP)
    waiting = first.start(meet)
    with pytest.raises(dsm.PageTimeoutError):  # of the test's own wait
        waiting.result(1.5 * DEADLINE_S)
    second.kill(signal.SIGCONT)
    second.call(meet)
    waiting.result()


def meet(node):
    node.barrier()


def fill_many(node):
    node.array("many", (64, PAGE), "i8")[:] = 1


def total_of_many(node):
    """Touch many pages in one operation; how long it took."""
    words = node.array("many", (64, PAGE), "i8")
    started = time.monotonic()
    with pytest.raises(dsm.PageTimeoutError):
        words.sum().item()
    return time.monotonic() - started


def test_an_operation_on_many_pages_waits_once(cluster):
    worker = cluster.workers[1]
    worker.call(fill_many)
    worker.process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(worker.pid) == "T")
    took = cluster.workers[0].call(total_of_many)
    worker.process.send_signal(signal.SIGCONT)
    assert took < DEADLINE_S + LATE_S


def add_at(node, home):
    """Add one to an atomic that is kept by that node; return what came of it."""
    names = (f"counter {number}" for number in range(100))
    cell = next(atomic for atomic in map(node.atomic, names) if atomic._described.home == home)
    try:
        return cell.fetch_add(1)
    except dsm.PageTimeoutError as error:
        return str(error)


def test_an_atomic_whose_home_is_stopped_ends_at_the_deadline(cluster):
    assert cluster.workers[0].call(add_at, 1) == 0
    manager = cluster.managers[1].process
    manager.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(manager.pid) == "T")
    started = time.monotonic()
    said = cluster.workers[0].call(add_at, 1)
    took = time.monotonic() - started
    manager.send_signal(signal.SIGCONT)
    assert "node 1, which keeps it, did not answer in time" in said
    assert DEADLINE_S <= took < DEADLINE_S + LATE_S
    assert cluster.workers[0].call(add_at, 1) in (1, 2), "the late one was done"


def pin_words(node):
    """Pin what another node has; return what came of it."""
    try:
        with node.pin(node.array("words", (2, PAGE), "i8")):
            return "pinned"
    except dsm.PageTimeoutError as error:
        return str(error), error.region, error.peer


def test_a_pin_ends_at_the_deadline_and_names_what_it_is_about(cluster, stop):
    said, region, peer = cluster.workers[0].call(pin_words)
    stop()
    assert "did not all come in time" in said
    assert (region, peer in (0, 1)) == ("words", True)
    assert cluster.workers[0].call(pin_words) == "pinned"


def publish(node, value):
    """Write some of a page whose home is node 1, and release: what came of it."""
    node.open("shown")[:10] = value
    try:
        node.release()
    except dsm.PageTimeoutError as error:
        return str(error)
    return "released"


def shown(node):
    node.acquire()
    return int(node.array("shown", PAGE, "i8", consistency="release", home=1).sum())


def test_a_release_whose_home_is_stopped_says_so_and_can_be_repeated(cluster):
    first, second = cluster.workers
    cluster.all(shown)
    assert first.call(publish, 1) == "released"
    manager = cluster.managers[1].process
    manager.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(manager.pid) == "T")
    said = first.call(publish, 2)
    assert "what this node has written did not get to its homes in time" in said
    assert "node 0" not in said
    manager.send_signal(signal.SIGCONT)
    assert first.call(publish, 3) == "released"
    assert second.call(shown) == 30
