"""Bounded staleness on real managers and workers over loopback TCP."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import staleness
import support
from dsm.testing import Cluster

#: Seconds.
BOUND = 0.1
LONG = 60.0
SECOND = 1e9


@pytest.fixture
def two():
    with Cluster(nodes=2, workers=1) as cluster:
        yield cluster


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("DSM_PAGE_TIMEOUT", "1")
    with Cluster(nodes=2, workers=1) as cluster:
        yield cluster


@contextlib.contextmanager
def load(processes):
    """Other programs want the processors, too."""
    code = "while True: pass"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextlib.contextmanager
def stopped(*processes):
    """These processes do nothing meanwhile."""
    for process in processes:
        process.process.send_signal(signal.SIGSTOP)
    for process in processes:
        support.wait_until(lambda pid=process.pid: support.state(pid) == "T")
    try:
        yield
    finally:
        for process in processes:
            process.process.send_signal(signal.SIGCONT)


def check(cluster, stamped, looked, bound):
    """Nothing was too old, but for the time that the machine kept our thread from its processor."""
    ages = staleness.ages(stamped, looked)
    late = cluster.workers[1].call(staleness.late)
    assert ages.max() <= bound * SECOND + late
    assert ages.max() > 0.3 * bound * SECOND, "nothing was old: this shows nothing"


# ---- the bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound, threads, busy", [(BOUND, 1, 0), (BOUND, 4, 0), (0.02, 2, 0), (BOUND, 2, 4), (0.5, 2, 2)]
)
def test_nothing_is_read_that_is_older_than_the_bound(two, bound, threads, busy):
    writer, reader = two.workers
    with load(busy):
        writing = writer.start(staleness.write, bound, 2.5 + bound, 4, 0.0005)
        looked = reader.call(staleness.read, bound, 2, 4, threads, 0.0002)
        check(two, writing.result(), looked, bound)


@pytest.mark.parametrize("what", ["the reader's manager", "the writer's node"])
def test_nobody_reads_on_while_somebody_is_stopped(two, what):
    writer, reader = two.workers
    writing = writer.start(staleness.write, BOUND, 3, 4, 0.0005)
    looking = reader.start(staleness.read, BOUND, 2.5, 4, 2, 0.0002)
    time.sleep(0.5)
    doomed = [two.managers[1]] if what == "the reader's manager" else [two.managers[0], writer]
    with stopped(*doomed):
        time.sleep(5 * BOUND)
    looked = looking.result()
    check(two, writing.result(), looked, BOUND)
    # Its copies ended: until others went on, it had to wait.
    assert np.diff(np.sort(looked[0])).max() > 3 * BOUND * SECOND


def test_within_the_bound_what_is_read_may_be_old(two):
    writer, reader = two.workers
    writer.call(staleness.put, LONG, 1)
    assert reader.call(staleness.get, LONG) == 1
    writer.call(staleness.put, LONG, 2)
    assert reader.call(staleness.get, LONG) == 1
    assert writer.call(staleness.get, LONG) == 2


def test_whoever_writes_is_not_disturbed_by_readers():
    with Cluster(nodes=3, workers=1) as cluster:
        writer, *readers = cluster.workers
        writer.call(staleness.write, BOUND, 0.1)
        before = writer.call(staleness.counters)
        writing = writer.start(staleness.write, BOUND, 1.0, 4, 0.0005)
        looking = [reader.start(staleness.read, BOUND, 1.0, 4, 1, 0.0005) for reader in readers]
        for each in looking:
            assert len(set(each.result()[1].tolist())) > 1, "it read what was written meanwhile"
        writing.result()
        assert writer.call(staleness.counters) == before


# ---- the token ---------------------------------------------------------------------------------------


def test_one_node_at_a_time_writes_a_page_and_nothing_written_is_lost():
    with Cluster(nodes=3, workers=2) as cluster:
        assert cluster.all(staleness.own_words, BOUND, 150) == [[150] * 6] * 6


def test_a_pin_to_read_holds_the_page_itself_and_no_copy(two):
    writer, reader = two.workers
    writer.call(staleness.put, BOUND, 7)
    writing = writer.start(staleness.write_when_pinned, BOUND, 8)
    *found, ended = reader.call(staleness.pinned_look, BOUND, 5 * BOUND)
    assert found == [7, 7]
    assert writing.result() > ended


def test_prefetched_copies_are_read_without_a_fault(two):
    writer, reader = two.workers
    writer.call(staleness.fill, LONG, 600)
    assert reader.call(staleness.prefetched_faults, LONG, 600) == (0, 600 * 599 // 2)


# ---- who is gone -------------------------------------------------------------------------------------


def test_pages_are_lost_with_who_wrote_them_and_copies_end():
    with Cluster(nodes=3, workers=1) as cluster:
        _, writer, reader = cluster.workers
        writer.call(staleness.put, 1.0, 5)
        assert reader.call(staleness.get_or_error, 1.0)[0] == 5
        cluster.managers[1].process.kill()
        # A copy may be read to its end.
        assert reader.call(staleness.get_or_error, 1.0)[0] in (5, "PageLostError")
        support.wait_until(
            lambda: reader.call(staleness.get_or_error, 1.0)[0] == "PageLostError", what="its lease is over"
        )


def test_a_reader_that_dies_is_missed_by_nobody(two):
    writer, reader = two.workers
    writer.call(staleness.put, BOUND, 1)
    assert reader.call(staleness.get, BOUND) == 1
    two.managers[1].process.kill()
    reader.kill()
    for value in range(2, 20):
        writer.call(staleness.put, BOUND, value)
    assert writer.call(staleness.get, BOUND) == 19


def test_a_page_of_somebody_who_is_stopped_times_out_when_its_copy_has_ended(impatient):
    reader, writer = impatient.workers
    writer.call(staleness.put, BOUND, 1)
    assert reader.call(staleness.get, BOUND) == 1
    with stopped(impatient.managers[1]):
        time.sleep(2 * BOUND)
        found, took = reader.call(staleness.get_or_error, BOUND)
        assert found == "PageTimeoutError"
        assert 0.9 < took < 3
    assert reader.call(staleness.get_or_error, BOUND)[0] == 1


# ---- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"consistency": "bounded"}, ["max_staleness is missing", "0.005 to 3600"]),
        ({"consistency": "bounded", "max_staleness": 0.001}, ["max_staleness is 0.001", "0.005 to 3600"]),
        ({"consistency": "bounded", "max_staleness": 1e9}, ["1000000000.0", "0.005 to 3600"]),
        ({"consistency": "bounded", "max_staleness": float("nan")}, ["nan", "0.005 to 3600"]),
        ({"consistency": "bounded", "max_staleness": "1"}, ["max_staleness is '1'", "0.005 to 3600"]),
        ({"consistency": "bounded", "max_staleness": True}, ["max_staleness is True"]),
        ({"max_staleness": 1.0}, ["max_staleness is 1.0", "'sequential'", "leave it out"]),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(one, options, words):
    said = one.workers[0].call(staleness.refused, options)
    assert all(word in said for word in words), said


@pytest.fixture(scope="module")
def one():
    with Cluster() as cluster:
        yield cluster
