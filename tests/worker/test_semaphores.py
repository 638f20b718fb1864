"""Semaphores as a user holds them."""

import pickle
import subprocess
import sys
import threading

import pytest

import dsm
from dsm.worker import calls
from threads import in_threads, interrupt_when


def test_no_more_than_its_units_are_used_at_a_time(node):
    semaphore, lock, inside, most = node.semaphore("three", 3), threading.Lock(), [0], [0]

    def work():
        for _ in range(10):
            with semaphore:
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1

    assert in_threads(*[work] * 6) == [None] * 6
    assert 1 <= most[0] <= 3
    assert semaphore.acquire(3, timeout=0)


def test_units_by_the_number(node):
    semaphore = node.semaphore("many", 2)
    assert semaphore.acquire(2)
    assert semaphore.acquire(timeout=0) is False
    outcomes = in_threads(lambda: semaphore.acquire(3, timeout=10), lambda: semaphore.release(n=3))
    assert outcomes == [True, None]


def test_anybody_releases_an_unbounded_one(node):
    semaphore = node.semaphore("signals", 0)
    outcomes = in_threads(lambda: semaphore.acquire(timeout=10), semaphore.release)
    assert outcomes == [True, None]
    with pytest.raises(dsm.UsageError, match="so many units it never has"):
        for _ in range(3):
            semaphore.release(2**62)


def test_a_bounded_one_has_never_more_units_than_in_the_beginning(node):
    semaphore = node.semaphore("bounded", 2, bounded=True)
    with pytest.raises(dsm.NotOwnerError, match="has not taken so many units"):
        semaphore.release()
    with semaphore:
        assert in_threads(semaphore.release) == [None], "another thread of this process"
        semaphore.acquire()
    with pytest.raises(dsm.UsageError, match="has 2 units in all"):
        semaphore.acquire(3)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "node.close()", "sys.exit()"])
@pytest.mark.parametrize("bounded", [True, False])
def test_units_of_who_is_gone(node, run_worker, end, bounded):
    name = f"{end} {bounded}"
    semaphore = node.semaphore(name, 2, bounded=bounded)
    run_worker(
        f"import dsm, os, sys; node = dsm.attach(); node.semaphore({name!r}, 2, {bounded}).acquire(2); {end}"
    )
    if bounded:
        assert semaphore.acquire(2, timeout=10)
    else:
        node.arrays()  # the manager hears its sockets in order: when it answers this, it knows of the end
        assert not semaphore.acquire(timeout=0)


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", 2**63])
def test_wrong_values_are_named(node, value):
    with pytest.raises(dsm.UsageError, match="value is"):
        node.semaphore("wrong", value)
    with pytest.raises(dsm.UsageError, match="from 1 to"):
        node.semaphore("wrong", 0, bounded=True)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_wrong_numbers_are_named(node, n):
    semaphore = node.semaphore("n", 1)
    for use in (semaphore.acquire, semaphore.release):
        with pytest.raises(dsm.UsageError, match="n is"):
            use(n)


def test_a_timeout_of_a_block_raises(node):
    with (
        pytest.raises(dsm.WaitTimeoutError, match=r"had no free unit within 0\.01 s"),
        node.semaphore("none", 0, timeout=0.01),
    ):
        raise AssertionError("the block was entered")


def test_ctrl_c_leaves_no_request_behind(node):
    semaphore, waiting = node.semaphore("interrupted", 0), threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        semaphore.acquire()
    interrupter.join()
    semaphore.release()
    assert semaphore.acquire(timeout=5)


@pytest.mark.parametrize("where", ["wait", "discard"])
def test_an_interruption_behind_the_grant_gives_the_units_back(node, monkeypatch, where):
    semaphore, wait = node.semaphore(f"behind {where}", 2), calls._Call.wait

    class Interrupting(set):
        def discard(self, call):
            monkeypatch.undo()
            super().discard(call)
            raise KeyboardInterrupt

    def interrupted(call, deadline):
        wait(call, deadline)
        monkeypatch.undo()
        raise KeyboardInterrupt

    if where == "wait":
        monkeypatch.setattr(calls._Call, "wait", interrupted)
    else:
        monkeypatch.setattr(calls, "_long", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        semaphore.acquire(2)
    assert semaphore.acquire(2, timeout=5)
    assert not semaphore.acquire(timeout=0), "given back once"


def test_a_handle_can_be_sent(node):
    semaphore = pickle.loads(pickle.dumps(node.semaphore("sent", 1, bounded=True)))
    assert semaphore.bounded
    with semaphore:
        assert node.semaphore("sent", 1, bounded=True).acquire(timeout=0) is False
    assert repr(semaphore) == "<dsm.Semaphore 'sent', bounded>"


def test_many_processes_share_its_units(node, tmp_path):
    """A file counts who is inside; more than two at a time would be seen."""
    program = f"""
import os, dsm
node = dsm.attach()
for _ in range(10):
    with node.semaphore("shared", 2, bounded=True):
        path = os.path.join({str(tmp_path)!r}, str(os.getpid()))
        open(path, "w").close()
        assert len(os.listdir({str(tmp_path)!r})) <= 2
        os.unlink(path)
"""
    workers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [worker.wait(30) for worker in workers] == [0, 0, 0]
