"""Conditions as a user holds them: the lock is back however a wait ends, and no notification is lost."""

import pickle
import subprocess
import sys
import threading
import time

import pytest

import dsm
from dsm.worker import calls
from support import wait_until
from threads import DEADLINE_S, in_threads, interrupt_when


def test_a_queue_between_threads_loses_nothing(node):
    condition, queue, got, each = node.condition("queue"), [], [], 30

    def put():
        for number in range(each):
            with condition:
                queue.append(number)
                condition.notify()

    def get():
        for _ in range(each):
            with condition:
                condition.wait_for(lambda: queue)
                got.append(queue.pop(0))

    assert in_threads(put, get, put, get) == [None] * 4
    assert sorted(got) == sorted([*range(each), *range(each)])


def waiting(condition, count):
    """Wait until so many threads wait for a notification; they have given the lock up, so it can be had."""

    def all_wait():
        with condition:
            return condition_waiters(condition) == count

    wait_until(all_wait)


def condition_waiters(condition):
    return sum(call.request[0] == calls.Op.CONDITION_WAIT for call in list(calls._long))


def held_elsewhere(lock):
    (outcome,) = in_threads(lambda: lock.acquire(timeout=0))
    return outcome is False


def test_notify_wakes_as_many_as_it_says(node):
    condition, woken = node.condition("some"), []

    def wait():
        with condition:
            assert condition.wait() is True
            woken.append(1)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    waiting(condition, 4)
    with condition:
        condition.notify(2)
        assert woken == [], "they go on when they have the lock"
    wait_until(lambda: len(woken) == 2)
    waiting(condition, 2)
    assert len(woken) == 2
    with condition:
        condition.notify_all()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(woken) == 4


def test_both_need_the_lock(node):
    condition = node.condition("unheld")
    for use in (
        condition.wait,
        condition.notify,
        condition.notify_all,
        condition.release,
        condition.consistent,
    ):
        with pytest.raises(dsm.NotOwnerError, match="is not held by thread"):
            use()
    with pytest.raises(dsm.NotOwnerError):
        condition.wait_for(lambda: True)
    with condition:
        outcomes = in_threads(condition.wait, condition.notify)
        assert [type(outcome) for outcome in outcomes] == [dsm.NotOwnerError] * 2


def test_a_timeout_gives_the_lock_back(node):
    condition = node.condition("timeout")
    with condition:
        assert condition.wait(0) is condition.wait(0.01) is False
        assert held_elsewhere(condition.lock)
        began = time.monotonic()
        assert condition.wait_for(lambda: None, timeout=0.05) is None
        assert time.monotonic() - began >= 0.05
    with condition:
        condition.notify()  # nobody is left behind in the queue


def test_wait_for_returns_what_the_predicate_did(node):
    condition, values = node.condition("predicate"), []

    def change():
        for value in ("", "something"):
            with condition:
                values.append(value)
                condition.notify()

    with condition:
        thread = threading.Thread(target=change)
        thread.start()
        assert condition.wait_for(lambda: values and values[-1], timeout=DEADLINE_S) == "something"
    thread.join()


def test_conditions_share_a_lock(node):
    lock = node.lock("shared")
    full, empty = node.condition("full", lock), node.condition("empty", lock)
    assert full.lock.name == empty.lock.name == "shared"

    def wait():
        with full:
            return full.wait(DEADLINE_S)

    thread_result = []
    thread = threading.Thread(target=lambda: thread_result.append(wait()))
    thread.start()
    waiting(full, 1)
    with lock:
        empty.notify_all()
        full.notify()
    thread.join(DEADLINE_S)
    assert thread_result == [True]


def test_a_wrong_lock_is_refused(node):
    with pytest.raises(dsm.UsageError, match="lock is a str"):
        node.condition("wrong", "lock")
    with pytest.raises(dsm.UsageError, match="name of the condition"):
        node.condition("")


def test_ctrl_c_gives_the_lock_back_and_comes_out_of_the_block(node):
    condition, begun = node.condition("interrupted"), threading.Event()
    interrupter = interrupt_when(lambda: begun.is_set() and condition_waiters(condition) == 1)
    with pytest.raises(KeyboardInterrupt), condition:
        begun.set()
        try:
            condition.wait()
        finally:
            assert held_elsewhere(condition.lock)
    interrupter.join()
    assert in_threads(lambda: condition.acquire(timeout=5)) == [True]


@pytest.mark.parametrize("where", ["wait", "discard"])
def test_a_notification_of_who_was_interrupted_goes_to_another(node, monkeypatch, where):
    condition, wait, other = node.condition(f"interrupted {where}"), calls._Call.wait, []
    main = threading.main_thread()

    def wait_in_thread():
        with condition:
            other.append(condition.wait(DEADLINE_S))

    def notify():
        wait_until(lambda: condition_waiters(condition) == 2)
        with condition:
            condition.notify()

    class Interrupting(set):
        def discard(self, call):
            super().discard(call)
            if threading.current_thread() is main and call.request[0] == calls.Op.CONDITION_WAIT:
                raise KeyboardInterrupt

    def interrupted(call, deadline):
        answered = wait(call, deadline)
        if threading.current_thread() is main and call.request[0] == calls.Op.CONDITION_WAIT:
            raise KeyboardInterrupt
        return answered

    threads = [threading.Thread(target=each) for each in (wait_in_thread, notify)]
    with pytest.raises(KeyboardInterrupt), condition:
        if where == "wait":
            monkeypatch.setattr(calls._Call, "wait", interrupted)
        else:
            monkeypatch.setattr(calls, "_long", Interrupting())
        for thread in threads:
            thread.start()
        try:
            condition.wait()  # first in the queue: the others need the lock to begin
        finally:
            monkeypatch.undo()
            assert condition.lock._held.of(condition.lock._number, 0) is None
            assert held_elsewhere(condition.lock)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert other == [True]


def test_an_interruption_before_it_was_asked_keeps_the_lock(node, monkeypatch):
    condition = node.condition("before")

    def begin(call):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), condition:
        monkeypatch.setattr(calls._Call, "begin", begin)
        try:
            condition.wait()
        finally:
            assert held_elsewhere(condition.lock)
    assert in_threads(lambda: condition.acquire(timeout=5)) == [True]


def die_with(name):
    """A process that takes the condition's lock, notifies and is killed with it."""
    program = (
        f"import dsm, os; condition = dsm.attach().condition({name!r}); condition.acquire(); "
        "condition.notify_all(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], timeout=DEADLINE_S)


def test_who_is_woken_by_one_that_died_with_the_lock_is_told_and_holds_it(node):
    condition, told = node.condition("died"), []

    def wait():
        try:
            with condition:
                condition.wait()
        except dsm.OwnerDiedError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting(condition, 1)
    die_with("died")
    thread.join(DEADLINE_S)
    assert "died while it held it" in told[0]
    with pytest.raises(dsm.OwnerDiedError):  # released without consistent(), by the block
        condition.acquire()
    with pytest.raises(dsm.UsageError, match=r"call consistent\(\) before it waits"):
        condition.wait()
    condition.consistent()
    assert condition.wait(0) is False
    condition.release()


def test_a_timeout_meets_a_death_too(node):
    condition = node.condition("late")
    with pytest.raises(dsm.OwnerDiedError), condition:
        thread = threading.Thread(target=die_with, args=("late",))
        thread.start()
        try:
            while True:
                condition.wait(0.01)
        finally:
            thread.join()
    with pytest.raises(dsm.OwnerDiedError):
        condition.acquire()
    condition.consistent()
    condition.release()


def test_a_killed_waiter_passes_its_notification_on(node):
    condition, woken = node.condition("killed"), []
    program = (
        "import dsm; condition = dsm.attach().condition('killed')\n"
        "with condition: print('waits', flush=True); condition.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as victim:
        assert victim.stdout.readline() == b"waits\n"
        with condition:  # it has given the lock up: it waits
            thread = threading.Thread(target=lambda: in_block(condition, woken))
            thread.start()
        waiting(condition, 1)
        with condition:
            condition.notify()  # for the victim, which came first
            victim.kill()
            victim.wait()
            node.arrays()  # the manager hears its sockets in order: after this it knows of the death
    thread.join(DEADLINE_S)
    assert woken == [True]


def in_block(condition, woken):
    with condition:
        woken.append(condition.wait(DEADLINE_S))


def test_a_handle_can_be_sent(node):
    own, lock = node.condition("sent"), node.lock("of another")
    shared = node.condition("sent too", lock)
    for condition in (own, shared):
        copy = pickle.loads(pickle.dumps(condition))
        assert copy.lock.name == condition.lock.name
        with copy:
            condition.notify()  # the same lock, in the same thread
    assert "sent" in repr(own) and "of another" in repr(shared)
