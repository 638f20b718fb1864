"""Calls that are withdrawn while the home of their object is out of reach."""

import struct

import pytest

from dsm.coherence.engine import Engine
from dsm.errors import Status
from dsm.manager.ordering import Ordering
from dsm.manager.sync import Sync
from dsm.types import SyncObject
from dsm.wire.calls import Op, SyncKind
from dsm.wire.header import Family, pack, unpack

LOCK, TOKEN, WORKER = 7, 1, 0
FIRST, SECOND = 50, 51  # waiters


class Link:
    node = 0

    def __init__(self):
        self.sent = []

    def send(self, header, payload=None):
        fields = unpack(header)
        self.sent.append((fields[3], fields[10]))  # kind, ticket


class Node:
    """A node without the lock's home, whose timers run when they are told to."""

    def __init__(self):
        self.link = Link()
        self.woken = []
        self.timers = []
        #: What goes on when this node has acquired the time of the lock.
        self.acquiring = []
        ordering = Ordering(Engine(1).fence, driver=self)
        self.sync = Sync(1, {0: self.link}, self.wake, lambda seconds, do: self.timers.append(do), ordering)
        self.sync.opened(SyncObject(LOCK, "lock", "name", 0, 0))

    def wake(self, waiter, status, result):
        self.woken.append((waiter, status))

    def take_lock(self, waiter):
        self.sync.call(Op.LOCK_ACQUIRE, LOCK, TOKEN, 0, waiter, WORKER)

    def run_timers(self):
        timers, self.timers = self.timers, []
        for do in timers:
            do()

    def acquire(self, target, then):
        """As the driver of acquires: it is done when the test says so."""
        self.acquiring.append(then)

    def answer(self, ticket, status, time=b""):
        reply = pack(Family.SYNC, SyncKind.REPLY, 0, 1, 1, 0, 0, status, ticket, 0, 0)
        self.sync.message(self.link, unpack(reply), memoryview(time))

    def taken(self):
        sent, self.link.sent = self.link.sent, []
        return [kind for kind, _ in sent]


@pytest.fixture
def node():
    """The first call waits; it was withdrawn, and its home has not answered in time."""
    node = Node()
    node.take_lock(FIRST)
    assert node.sync.cancel(FIRST)
    assert node.taken() == [Op.LOCK_ACQUIRE, Op.CANCEL]
    assert node.woken == []
    node.run_timers()
    assert node.woken == [(FIRST, Status.CANCELLED)]
    node.woken.clear()
    return node


def granted_and_cancelled():
    """The lock was granted, but this node still acquires its time when the thread gives up."""
    node = Node()
    node.take_lock(FIRST)
    node.answer(1, Status.OK, time=struct.pack("<HI", 1, 5))
    assert node.sync.cancel(FIRST)
    node.answer(1, Status.TOO_LATE)
    assert node.woken == [], "what was granted decides"
    return node


def test_a_cancel_that_comes_too_late_does_not_overtake_what_was_granted():
    node = granted_and_cancelled()
    [granted] = node.acquiring
    granted()
    assert node.woken == [(FIRST, Status.OK)]


def test_a_lock_that_is_granted_to_nobody_after_a_long_acquire_is_given_back():
    node = granted_and_cancelled()
    node.run_timers()
    assert node.woken == [(FIRST, Status.CANCELLED)]
    node.taken()
    [granted] = node.acquiring
    granted()
    assert node.taken() == [Op.LOCK_RELEASE] and len(node.woken) == 1


def test_a_home_that_answers_in_time_has_the_word():
    node = Node()
    node.take_lock(FIRST)
    node.sync.cancel(FIRST)
    node.answer(1, Status.OK)  # granted before
    node.answer(1, Status.TOO_LATE)
    node.run_timers()
    assert node.woken == [(FIRST, Status.OK)]


@pytest.mark.parametrize("status", [Status.OK, Status.OWNER_DIED])
def test_a_lock_that_comes_after_all_is_given_back(node, status):
    node.answer(1, status)
    node.answer(1, Status.TOO_LATE)
    assert node.taken() == [Op.LOCK_RELEASE]
    assert node.woken == []


def test_a_call_that_was_cancelled_after_all_needs_nothing(node):
    node.answer(1, Status.CANCELLED)
    node.answer(1, Status.OK)
    assert node.taken() == []


def test_the_next_call_of_the_thread_waits_until_the_first_one_is_undone(node):
    node.take_lock(SECOND)
    assert node.taken() == []
    node.answer(1, Status.OK)
    assert node.taken() == [Op.LOCK_RELEASE, Op.LOCK_ACQUIRE]
    node.answer(2, Status.OK)
    assert node.woken == [(SECOND, Status.OK)]


def test_a_call_that_waits_behind_another_is_withdrawn_at_once(node):
    node.take_lock(SECOND)
    assert node.sync.cancel(SECOND)
    assert node.woken == [(SECOND, Status.CANCELLED)]
    node.answer(1, Status.OK)
    assert node.taken() == [Op.LOCK_RELEASE]


def test_other_threads_do_not_wait_behind_it(node):
    node.sync.call(Op.LOCK_ACQUIRE, LOCK, TOKEN + 1, 0, SECOND, WORKER)
    assert node.taken() == [Op.LOCK_ACQUIRE]


CONDITION = 9


def withdrawn(op, b):
    """Return a node of which a thread has withdrawn a call that its home has not answered."""
    node = Node()
    node.sync.call(op, LOCK, TOKEN, b, FIRST, WORKER)
    node.sync.cancel(FIRST)
    node.run_timers()
    assert node.taken() == [op, Op.CANCEL]
    assert node.woken == [(FIRST, Status.CANCELLED)]
    return node


@pytest.mark.parametrize("status", [Status.OK, Status.OWNER_DIED])
@pytest.mark.parametrize(
    ("op", "b", "undone"),
    [
        (Op.RW_READ, 0, [Op.RW_RELEASE]),
        (Op.RW_WRITE, 0, [Op.RW_RELEASE]),
        (Op.CONDITION_WAIT, CONDITION, [Op.CONDITION_NOTIFY, Op.LOCK_RELEASE]),
        (Op.SEMAPHORE_ACQUIRE, 3, [Op.SEMAPHORE_RELEASE]),
        (Op.EVENT_WAIT, 0, []),
        (Op.BARRIER_WAIT, 0, []),
    ],
)
def test_whatever_comes_after_all_is_given_back(op, b, undone, status):
    node = withdrawn(op, b)
    node.answer(1, status)
    node.answer(1, Status.TOO_LATE)
    assert node.taken() == undone


@pytest.mark.parametrize("op", [Op.CONDITION_WAIT, Op.RW_READ])
def test_a_lock_is_asked_for_again_when_the_wait_for_it_is_undone(op):
    node = withdrawn(op, CONDITION)
    node.take_lock(SECOND)
    assert node.taken() == []
    node.answer(1, Status.OK)
    assert node.taken()[-2:] == [Op.RW_RELEASE if op == Op.RW_READ else Op.LOCK_RELEASE, Op.LOCK_ACQUIRE]


def test_units_that_are_given_back_are_as_many_as_came():
    node = withdrawn(Op.SEMAPHORE_ACQUIRE, 3)
    sent = []
    node.link.send = lambda header, payload: sent.append(header)
    node.answer(1, Status.OK)
    assert [unpack(each)[11:] for each in sent] == [(TOKEN, 3)]


def test_the_end_of_the_home_ends_what_waits_behind(node):
    node.take_lock(SECOND)
    node.sync.node_gone(0)
    assert node.woken == [(SECOND, Status.PAGE_LOST)]


def test_the_end_of_the_worker_forgets_both(node):
    node.take_lock(SECOND)
    node.sync.worker_gone(WORKER, -1, True)
    node.taken()
    node.answer(1, Status.OK)
    assert node.taken() == []
    assert node.woken == []


def test_a_call_that_needs_no_wait_has_a_deadline_and_one_that_waits_has_none():
    node = Node()
    node.sync.patience = 2
    node.sync.opened(SyncObject(8, "atomic", "name", 0, 0))
    node.sync.call(Op.ATOMIC_ADD, 8, 1, 0, FIRST, WORKER)
    node.take_lock(SECOND)
    for waiter, op in enumerate(
        (Op.RW_READ, Op.RW_WRITE, Op.SEMAPHORE_ACQUIRE, Op.EVENT_WAIT, Op.CONDITION_WAIT)
    ):
        node.sync.call(op, LOCK, TOKEN + 1 + waiter, 1, SECOND + 1 + waiter, WORKER)
    node.sync.age()
    assert node.woken == []
    node.sync.age()
    node.sync.age()
    assert node.woken == [(FIRST, Status.PAGE_TIMEOUT)]
    node.answer(1, Status.OK)
    assert node.woken == [(FIRST, Status.PAGE_TIMEOUT)], "nobody waits for the late answer"
