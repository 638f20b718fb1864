"""Readers-writer locks as a user holds them."""

import pickle
import subprocess
import sys
import threading

import pytest

import dsm
from dsm.worker import calls
from threads import DEADLINE_S, in_threads, interrupt_when


def test_writers_exclude_each_other_and_readers_see_whole_writes(node):
    pair = node.array(None, 2, "i8")
    rw = node.rwlock("pair")

    def write():
        for _ in range(30):
            with rw.write():
                pair[0] += 1
                pair[1] += 1

    def read():
        seen = set()
        for _ in range(30):
            with rw.read():
                seen.add(int(pair[0] - pair[1]))
        return seen

    assert in_threads(write, read, write, read) == [None, {0}, None, {0}]
    assert pair.tolist() == [60, 60]


def test_readers_hold_it_together_and_a_writer_alone(node):
    rw, met = node.rwlock("together"), threading.Barrier(3)

    def read():
        with rw.read():
            met.wait(DEADLINE_S)  # all of them are inside

    assert in_threads(*[read] * 3) == [None] * 3
    with rw.read():
        outcomes = in_threads(lambda: rw.acquire_write(timeout=0), lambda: rw.acquire_write(timeout=0.02))
        assert outcomes == [False, False]
    with rw.write():
        outcomes = in_threads(lambda: rw.acquire_read(timeout=0), lambda: rw.acquire_write(timeout=0))
        assert outcomes == [False, False]
    with rw.write():  # nobody who gave up is in the queue
        pass


def test_a_timeout_of_a_block_raises(node):
    rw = node.rwlock("busy")

    def enter(section):
        with section:
            raise AssertionError("the block was entered")

    with rw.write():
        outcomes = in_threads(lambda: enter(rw.read(0.01)), lambda: enter(rw.write(timeout=0.01)))
    assert [type(outcome) for outcome in outcomes] == [dsm.WaitTimeoutError] * 2
    assert "could not be had for reading within 0.01 s" in str(outcomes[0])
    with pytest.raises(dsm.UsageError, match="timeout"):
        rw.read(timeout=-1)


def test_it_is_not_reentrant_and_cannot_be_upgraded(node):
    rw = node.rwlock("once")
    with rw.read():
        with pytest.raises(dsm.UsageError, match="for reading already; release it first"):
            rw.acquire_write()
        with pytest.raises(dsm.UsageError, match="for reading already; a dsm rwlock is not reentrant"):
            rw.acquire_read()
        with pytest.raises(dsm.UsageError, match="consistent already"):
            rw.consistent()
    with rw.write(), pytest.raises(dsm.UsageError, match="alone already"):
        rw.acquire_read()
    with rw.write():
        pass


def test_it_belongs_to_the_thread_that_acquired_it(node):
    rw = node.rwlock("owned")
    with pytest.raises(dsm.NotOwnerError, match="rwlock 'owned' is not held"):
        rw.release()
    rw.acquire_read()
    (outcome,) = in_threads(rw.release)
    assert isinstance(outcome, dsm.NotOwnerError)
    node.rwlock("owned").release()  # another handle, the same thread
    with rw.write():
        pass


def orphaned(node, name, how="write"):
    """Return a rwlock whose holder was killed."""
    program = (
        f"import dsm, sys; dsm.attach().rwlock({name!r}).acquire_{how}(); print('held', flush=True); "
        "sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as owner:
        assert owner.stdout.readline() == b"held\n"
        owner.kill()
    return node.rwlock(name)


@pytest.mark.parametrize("how", ["read", "write"])
def test_who_is_told_that_a_writer_died_has_it_alone_and_repairs(node, how):
    rw, happened = orphaned(node, f"orphan {how}"), []
    while True:
        try:
            with getattr(rw, how)():
                happened.append("block")
            break
        except dsm.OwnerDiedError as error:
            assert "This thread holds it now, alone" in str(error)
            assert in_threads(lambda: rw.acquire_read(timeout=0)) == [False]
            happened.append("repaired")
            rw.consistent()
    assert happened == ["repaired", "block"]
    assert in_threads(lambda: rw.acquire_read(timeout=5), rw.acquire_read) == [True, True]


def test_released_without_consistent_the_next_one_is_told(node):
    rw = orphaned(node, "again")
    for acquire in (rw.acquire_read, rw.acquire_write):
        with pytest.raises(dsm.OwnerDiedError):
            acquire()
        with pytest.raises(dsm.UsageError, match=r"consistent\(\)"):
            rw.acquire_read()
        rw.release()
    with pytest.raises(dsm.OwnerDiedError):
        rw.acquire_write()
    rw.consistent()
    rw.release()
    with rw.read():
        pass


def test_a_reader_that_died_is_nobodys_news(node):
    with orphaned(node, "reader", "read").write(timeout=10):
        pass


@pytest.mark.parametrize("how", ["read", "write"])
def test_ctrl_c_leaves_no_request_behind(node, how):
    rw, held, go = node.rwlock(f"interrupted {how}"), threading.Event(), threading.Event()

    def hold():
        with rw.write():
            held.set()
            go.wait(DEADLINE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(DEADLINE_S)
    waiting = threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        getattr(rw, f"acquire_{how}")()
    interrupter.join()
    go.set()
    holder.join()
    assert in_threads(lambda: rw.acquire_write(timeout=5)) == [True]


@pytest.mark.parametrize("how", ["read", "write"])
def test_an_interruption_behind_the_grant_releases(node, monkeypatch, how):
    rw = node.rwlock(f"behind {how}")

    class Interrupting(set):
        def discard(self, call):
            monkeypatch.undo()
            super().discard(call)
            raise KeyboardInterrupt

    monkeypatch.setattr(calls, "_long", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        getattr(rw, f"acquire_{how}")()
    assert in_threads(lambda: rw.acquire_write(timeout=5)) == [True]


def test_an_exception_in_a_block_comes_out_of_it(node):
    rw = node.rwlock("error")
    with pytest.raises(ZeroDivisionError), rw.write():
        rw.release()
        raise ZeroDivisionError
    with pytest.raises(dsm.NotOwnerError), rw.write():
        rw.release()


def test_a_handle_can_be_sent(node):
    with pickle.loads(pickle.dumps(node.rwlock("sent"))).read():
        assert in_threads(lambda: node.rwlock("sent").acquire_write(timeout=0)) == [False]
    assert repr(node.rwlock("sent")) == "<dsm.RWLock 'sent'>"
