"""Locks, barriers and atomics as a user holds them: ownership, timeouts, interruptions, deaths."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import dsm
from dsm.worker import calls
from support import wait_until
from threads import DEADLINE_S, in_threads, interrupt_when

# ---- locks -----------------------------------------------------------------------------------------


def test_a_lock_excludes(node):
    counter = node.array(None, 1, "i8")
    lock = node.lock("excludes")

    def add():
        for _ in range(50):
            with lock:
                counter[0] = counter[0] + 1

    assert in_threads(*[add] * 4) == [None] * 4
    assert counter[0] == 200


def test_acquire_and_release(node):
    lock = node.lock("plain")
    assert lock.acquire() is True
    lock.release()
    assert lock.acquire(timeout=0) is True
    lock.release()


def test_a_lock_is_owned_by_its_thread(node):
    lock = node.lock("owned")
    with pytest.raises(dsm.NotOwnerError, match="owned"):
        lock.release()
    with lock:
        (outcome,) = in_threads(lock.release)
        assert isinstance(outcome, dsm.NotOwnerError)
        node.lock("owned").release()  # another handle, the same thread
        lock.acquire()


def test_a_lock_is_not_reentrant(node):
    lock = node.lock("once")
    with lock, pytest.raises(dsm.UsageError, match="already"):
        lock.acquire()
    assert lock.acquire(timeout=5)
    lock.release()


def test_a_timeout_is_false_or_raises(node):
    with node.lock("busy"):
        lock = node.lock("busy", timeout=0.02)

        def enter():
            with lock:
                pass

        outcomes = in_threads(lambda: lock.acquire(timeout=0), lambda: lock.acquire(timeout=0.02), enter)
    assert outcomes[:2] == [False, False]
    assert isinstance(outcomes[2], dsm.WaitTimeoutError)
    assert isinstance(outcomes[2], TimeoutError)
    with lock:  # those who gave up are no longer in the queue
        pass


@pytest.mark.parametrize(
    "timeout", [1e10, 1e300, 10**400, float("inf")], ids=["1e10", "1e300", "10**400", "inf"]
)
def test_a_timeout_longer_than_the_clock_is_none(node, timeout):
    with node.lock("long", timeout=timeout):
        pass
    node.barrier("long", parties=1, timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_a_wrong_timeout_is_named(node, timeout):
    with pytest.raises(dsm.UsageError, match="timeout"):
        node.lock("wrong").acquire(timeout=timeout)
    with pytest.raises(dsm.UsageError, match="timeout"):
        node.lock("wrong", timeout=timeout)


def test_ctrl_c_leaves_no_request_behind(node):
    lock, held, go = node.lock("interrupted"), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go.wait(DEADLINE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(DEADLINE_S)
    waiting = threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        lock.acquire()
    interrupter.join()
    go.set()
    holder.join()
    (acquired,) = in_threads(lambda: lock.acquire(timeout=5))
    assert acquired


def orphaned(node, name):
    """Return a lock whose owner was killed."""
    program = (
        f"import dsm, sys; dsm.attach().lock({name!r}).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as owner:
        assert owner.stdout.readline() == b"held\n"
        owner.kill()
    return node.lock(name)


def held_elsewhere(lock):
    """Whether another thread finds the lock taken."""
    (outcome,) = in_threads(lambda: lock.acquire(timeout=0))
    return outcome is False


def test_who_is_told_that_an_owner_died_holds_the_lock(node):
    lock = orphaned(node, "orphan")
    with pytest.raises(dsm.OwnerDiedError, match=r"orphan.*died while it held it.*consistent\(\)"), lock:
        raise AssertionError("the block was entered")
    assert held_elsewhere(lock)
    lock.consistent()
    assert held_elsewhere(lock)
    lock.release()
    with lock:
        pass


def test_a_loop_around_a_block_repairs_and_goes_on(node):
    lock, happened = orphaned(node, "loop"), []
    while True:
        try:
            with lock:
                happened.append("block")
            break
        except dsm.OwnerDiedError:
            happened.append("repaired")
            node.lock("loop").consistent()  # another handle, the same thread
    assert happened == ["repaired", "block"]
    with pytest.raises(dsm.NotOwnerError):
        lock.release()
    (outcome,) = in_threads(lambda: lock.acquire(timeout=5))
    assert outcome is True


def test_releasing_without_consistent_tells_the_next_one_too(node):
    lock = orphaned(node, "again")
    for _ in range(2):
        with pytest.raises(dsm.OwnerDiedError):
            lock.acquire()
        lock.release()
    outcomes = in_threads(lock.acquire)  # and the thread ends with it: a hold that nobody can end
    assert isinstance(outcomes[0], dsm.OwnerDiedError)


def test_before_it_is_consistent_the_lock_cannot_be_acquired_again(node):
    lock = orphaned(node, "early")
    with pytest.raises(dsm.OwnerDiedError):
        lock.acquire()
    with pytest.raises(dsm.UsageError, match=r"early.*consistent\(\).*release\(\)"):
        lock.acquire()
    lock.consistent()
    assert lock.acquire(timeout=0) is True, "the hold is adopted"
    with pytest.raises(dsm.UsageError, match="not reentrant"):
        lock.acquire()
    lock.release()


def test_consistent_is_for_the_one_who_was_told(node):
    lock = orphaned(node, "told")
    with pytest.raises(dsm.NotOwnerError, match="told"):
        lock.consistent()
    with pytest.raises(dsm.OwnerDiedError):
        lock.acquire()
    (outcome,) = in_threads(lock.consistent)
    assert isinstance(outcome, dsm.NotOwnerError)
    lock.consistent()
    with pytest.raises(dsm.UsageError, match="consistent already"):
        lock.consistent()
    lock.release()
    with lock, pytest.raises(dsm.UsageError, match="consistent already"):
        lock.consistent()


def test_an_interrupted_acquire_does_not_swallow_the_death(node, monkeypatch):
    lock, wait, threads = orphaned(node, "swallowed"), calls._Call.wait, []

    def interrupted(call, deadline):
        answered = wait(call, deadline)
        if call.request[0] == calls.Op.LOCK_ACQUIRE and not threads:
            threads.append(threading.current_thread())
            raise KeyboardInterrupt
        return answered

    monkeypatch.setattr(calls._Call, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert threads == [threading.main_thread()]
    with pytest.raises(dsm.OwnerDiedError):
        lock.acquire()
    lock.consistent()
    lock.release()


@pytest.mark.parametrize("dead", [False, True])
def test_an_interruption_behind_the_grant_releases_the_lock(node, monkeypatch, dead):
    lock = orphaned(node, "behind") if dead else node.lock("behind, free")

    class Interrupting(set):
        def discard(self, call):
            monkeypatch.undo()
            super().discard(call)
            raise KeyboardInterrupt

    monkeypatch.setattr(calls, "_long", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    (outcome,) = in_threads(lock.acquire)
    assert isinstance(outcome, dsm.OwnerDiedError) if dead else outcome is True


def test_a_timeout_that_comes_too_late_still_tells(node):
    lock = orphaned(node, "late")
    with pytest.raises(dsm.OwnerDiedError):
        lock.acquire(timeout=0)
    lock.consistent()
    lock.release()


def test_a_child_of_fork_holds_nothing(node):
    lock = orphaned(node, "forked")
    with pytest.raises(dsm.OwnerDiedError):
        lock.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            lock.consistent()
        except dsm.NotOwnerError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lock.consistent()
    lock.release()


def test_who_closes_its_node_with_the_lock_tells_the_next_one(manager, monkeypatch, run_worker):
    program = "import dsm; node = dsm.attach(); node.lock('left').acquire(); node.close()"
    assert run_worker(program).returncode == 0
    monkeypatch.setenv("DSM_NODE", manager)
    with dsm.attach() as node, pytest.raises(dsm.OwnerDiedError, match="ended without releasing it"):
        node.lock("left").acquire()


@pytest.mark.parametrize("name", ["", None, "x" * 300, 5])
def test_a_wrong_name_is_refused(node, name):
    with pytest.raises(dsm.UsageError, match="name"):
        node.lock(name)


# ---- barriers --------------------------------------------------------------------------------------


def test_a_barrier_gives_everybody_another_index(node):
    outcomes = in_threads(*[lambda: node.barrier("three", parties=3)] * 3)
    assert sorted(outcomes) == [0, 1, 2]


def test_without_a_launcher_parties_are_required(node):
    for name in (None, "unsaid"):
        with pytest.raises(dsm.UsageError, match="parties"):
            node.barrier(name)


def test_everybody_must_give_the_same_parties(node):
    node.barrier("alone", parties=1)
    with pytest.raises(dsm.UsageError, match="1 parties, not 2"):
        node.barrier("alone", parties=2)


@pytest.mark.parametrize("parties", [0, -1, 1.5, True, "3"])
def test_wrong_parties_are_named(node, parties):
    with pytest.raises(dsm.UsageError, match="parties"):
        node.barrier("odd", parties=parties)


def test_a_timeout_breaks_the_barrier_and_it_mends(node):
    outcomes = in_threads(
        lambda: node.barrier("slow", parties=3, timeout=0.05), lambda: node.barrier("slow", parties=3)
    )
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds == {dsm.WaitTimeoutError, dsm.BrokenBarrierError}
    node.reset_barrier("slow", parties=3)
    assert sorted(in_threads(*[lambda: node.barrier("slow", parties=3)] * 3)) == [0, 1, 2]


def ends_of_a_member(run_worker, node, name, end):
    """What this process meets at a barrier of two that a worker which ended by `end` had met it at."""
    program = f"import dsm, os, sys\nnode = dsm.attach()\nnode.barrier({name!r}, parties=2)\n{end}"
    ended, _ = in_threads(lambda: run_worker(program), lambda: node.barrier(name, parties=2))
    assert isinstance(ended, subprocess.CompletedProcess)
    node.arrays()  # the manager hears its sockets in order: when it answers this, it knows of the end
    outcomes = in_threads(*[lambda: node.barrier(name, parties=2, timeout=10)] * 2)
    return {type(outcome) for outcome in outcomes}


@pytest.mark.parametrize(
    "end", ["", "node.close()", "sys.exit(3)", "with node: sys.exit()", "del node"], ids=str
)
def test_a_member_that_leaves_is_not_waited_for(run_worker, node, end):
    assert ends_of_a_member(run_worker, node, f"left {end}", end) == {int}


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "1 / 0", "with node: 1 / 0"], ids=str
)
def test_a_member_that_dies_or_fails_breaks_the_barrier(run_worker, node, end):
    assert ends_of_a_member(run_worker, node, f"died {end}", end) == {dsm.BrokenBarrierError}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_child_of_multiprocessing_leaves_at_its_end(node, tmp_path, method, fails):
    name = f"{method} {fails}"
    program = f"""
import multiprocessing, sys
import dsm

def child(fails):
    dsm.attach().barrier({name!r}, parties=2)
    if fails:
        raise ValueError("on purpose")

if __name__ == "__main__":
    if {method!r} == "fork":
        dsm.attach()
    process = multiprocessing.get_context({method!r}).Process(target=child, args=({fails},))
    process.start()
    process.join()
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    ended, _ = in_threads(
        lambda: subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=DEADLINE_S),
        lambda: node.barrier(name, parties=2),
    )
    assert ended.returncode == 0, ended.stderr
    node.arrays()  # as above
    outcomes = in_threads(*[lambda: node.barrier(name, parties=2, timeout=10)] * 2)
    assert {type(outcome) for outcome in outcomes} == {dsm.BrokenBarrierError if fails else int}


def test_a_broken_barrier_says_who_gave_up(node):
    outcomes = in_threads(
        lambda: node.barrier("who", parties=3, timeout=0.05), lambda: node.barrier("who", parties=3)
    )
    assert any("gave up (timeout or interruption)" in str(outcome) for outcome in outcomes)


def test_an_interrupted_barrier_can_be_run_again(node):
    waiting = threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        node.barrier("cell", parties=2)
    interrupter.join()
    node.reset_barrier("cell", parties=2)
    assert sorted(in_threads(*[lambda: node.barrier("cell", parties=2)] * 2)) == [0, 1]


# ---- atomics ---------------------------------------------------------------------------------------


def test_an_atomic(node):
    n = node.atomic("cell", initial=-5)
    assert n.load() == -5
    assert n.fetch_add(7) == -5
    assert n.exchange(-1) == 2
    n.store(-(2**63))
    assert n.fetch_add(-1) == -(2**63)
    assert n.load() == 2**63 - 1
    assert n.compare_exchange(3, 4) is False
    assert n.compare_exchange(2**63 - 1, 0) is True
    assert node.atomic("cell", initial=99).load() == 0


def test_an_atomic_counts_every_one(node):
    n = node.atomic("count")
    in_threads(*[lambda: [n.fetch_add() for _ in range(50)]] * 4)
    assert n.load() == 200


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5, "1", None])
def test_a_wrong_value_is_named(node, value):
    n = node.atomic("values")
    for use in (n.store, n.exchange, n.fetch_add, lambda v: n.compare_exchange(0, v)):
        with pytest.raises(dsm.UsageError):
            use(value)
    assert n.load() == 0


# ---- prefetching and pinning -----------------------------------------------------------------------


def test_prefetch_takes_any_view(node):
    a = node.array(None, (100, 1000))
    for view in (a, a[3:5], a[::-2, 7], a[50:50], a.T, node.region(None, 5000)):
        node.prefetch(view)
        node.prefetch(view, write=True)


def test_what_is_no_shared_memory_is_refused(node, manager):
    a = node.array(None, 10)
    for what in ([1, 2], a.copy(), a + 1, 5):
        with pytest.raises(dsm.UsageError):
            node.prefetch(what)
        with pytest.raises(dsm.UsageError):
            node.pin(what)


def test_pins_may_overlap(node):
    a = node.array(None, 10_000)
    with node.pin(a[:5000]) as first, node.pin(a[2000:]) as second:
        first[:] = 1
        second[:] = 2
    with pytest.raises(ZeroDivisionError), node.pin(a):
        raise ZeroDivisionError
    assert a.sum() == 2000 + 2 * 8000


def test_ctrl_c_ends_a_prefetch(node, needs_fake):
    a = node.array("hang-1", 1000)
    waiting = threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        node.prefetch(a)
    interrupter.join()


def test_too_many_that_wait_are_refused_and_nobody_hangs(node):
    n, lock, refused = node.atomic("crowded"), node.lock("crowd"), []

    def work():
        try:
            with lock:
                n.fetch_add()
        except dsm.LimitError:
            refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(calls.MAX_LONG_CALLS + 20)]
    with lock:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(refused) == 20)
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert n.load() == calls.MAX_LONG_CALLS


def test_closing_ends_what_waits(node):
    lock = node.lock("closing")
    lock.acquire()
    started = threading.Event()
    outcomes = []

    def wait():
        started.set()
        try:
            outcomes.append(lock.acquire())
        except dsm.DSMError as error:
            outcomes.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait(DEADLINE_S)
    node.close()
    thread.join(DEADLINE_S)
    assert outcomes == [dsm.ClosedError]


def test_the_loss_of_the_manager_ends_what_waits(private):
    with dsm.attach() as node:
        lock = node.lock("lost")
        lock.acquire()
        pid = node._connection.attached.manager_pid
        killer = interrupt = threading.Thread(target=os.kill, args=(pid, signal.SIGKILL))
        interrupt.start()
        with pytest.raises(dsm.NodeLostError):
            node.barrier("never", parties=2)
        killer.join()
        wait_until(lambda: node.lost)
        with pytest.raises(dsm.NodeLostError):
            node.statistics()


@pytest.mark.parametrize("told", [False, True])
def test_an_interrupted_release_can_be_done_again(node, monkeypatch, told):
    lock, tell = node.lock("interrupted release"), calls.tell

    def interrupted(*request, **what):
        if told:
            tell(*request, **what)
        raise KeyboardInterrupt

    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(calls, "tell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.release()
    lock.release()
    assert lock.acquire(timeout=5)
    lock.release()
