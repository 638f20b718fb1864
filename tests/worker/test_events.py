"""Events as a user holds them."""

import pickle
import threading

import pytest

import dsm
from threads import in_threads, interrupt_when


def test_who_waits_goes_on_when_it_is_set(node):
    event = node.event("go")
    assert not event.is_set()
    outcomes = in_threads(*[lambda: event.wait(10)] * 3, event.set)
    assert outcomes == [True, True, True, None]
    assert event.is_set() and event.wait() and event.wait(0)
    event.clear()
    assert not event.is_set()
    assert event.wait(0) is event.wait(0.01) is False


def test_what_was_written_before_is_seen(node):
    data, event = node.array(None, 1000), node.event("published")

    def publish():
        data[:] = 1.0
        event.set()

    assert in_threads(publish, lambda: event.wait(10) and data.sum()) == [None, 1000.0]


def test_ctrl_c_ends_a_wait(node):
    event, waiting = node.event("interrupted"), threading.Event()
    interrupter = interrupt_when(waiting.is_set)
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        event.wait()
    interrupter.join()
    event.set()
    assert event.wait()


def test_a_wrong_timeout_or_name_is_refused(node):
    with pytest.raises(dsm.UsageError, match="timeout"):
        node.event("x").wait("soon")
    with pytest.raises(dsm.UsageError, match="name of the event"):
        node.event(None)


def test_a_handle_can_be_sent(node):
    pickle.loads(pickle.dumps(node.event("sent"))).set()
    assert node.event("sent").is_set()
    assert repr(node.event("sent")) == "<dsm.Event 'sent'>"
