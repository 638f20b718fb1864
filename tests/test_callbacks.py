"""Callbacks: in order, one thread while there are some, whatever they raise."""

import itertools
import threading
import time

import pytest

from dsm.callbacks import Callbacks, checked_callback
from dsm.errors import UsageError
from steps import Handler
from support import wait_until


def _threads():
    return [each for each in threading.enumerate() if each.name == "test-callbacks"]


def test_all_are_called_in_order_by_a_thread_that_ends():
    found, callbacks = [], Callbacks("test-callbacks")
    called = threading.Lock()

    def append(what):
        alone = called.acquire(
            blocking=False
        )  # a thread that has nothing to call may still be on its way out
        time.sleep(0)
        found.append((what, alone))
        called.release()

    for i in range(100):
        callbacks.call(append, i)
    wait_until(lambda: len(found) == 100, 10)
    wait_until(lambda: not _threads(), 10)
    callbacks.call(append, 100)
    wait_until(lambda: len(found) == 101, 10)
    assert found == [(i, True) for i in range(101)]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_one_raises_is_logged_and_the_next_is_called(error, caplog):
    def fails(what):
        raise error("a test")

    found, callbacks = [], Callbacks("test-callbacks")
    callbacks.call(fails, "this")
    callbacks.call(found.append, 1)
    wait_until(lambda: found == [1], 10)
    assert "a callback of 'this' raised" in caplog.text and error.__name__ in caplog.text


def test_after_close_nothing_is_called_and_who_runs_is_not_waited_for():
    begun, goes_on, found = threading.Event(), threading.Event(), []
    callbacks = Callbacks("test-callbacks")
    callbacks.call(lambda what: (begun.set(), goes_on.wait(20)), None)
    callbacks.call(found.append, 1)
    assert begun.wait(10)
    callbacks.close()
    callbacks.call(found.append, 2)
    goes_on.set()
    wait_until(lambda: not _threads(), 10)
    assert found == []


def test_a_thread_that_cannot_be_started_is_tried_again_for_the_next(monkeypatch, caplog):
    def fails(thread):
        raise RuntimeError("can't start new thread")

    found, callbacks = [], Callbacks("test-callbacks")
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", fails)
        callbacks.call(found.append, 1)
    assert "can't start new thread" in caplog.text
    callbacks.call(found.append, 2)
    wait_until(lambda: found == [1, 2], 10)


@pytest.mark.parametrize("callback", [None, 7, "print"])
def test_what_cannot_be_called_is_refused(callback):
    with pytest.raises(UsageError, match="pass a function"):
        checked_callback(callback)


def test_a_signal_handler_may_ask_for_one_at_every_step_of_asking_for_one():
    for at in itertools.count(1):
        found, callbacks = [], Callbacks("test-callbacks")
        come = Handler(
            at, lambda to=callbacks, into=found: to.call(into.append, "handler"), {"dsm.callbacks"}
        )
        with come:
            callbacks.call(found.append, "program")
        done = 1 + (come.left <= 0)
        wait_until(lambda into=found, done=done: len(into) == done, 10)
        if come.left > 0:
            break
    assert at > 5
    wait_until(lambda: not _threads(), 10)
