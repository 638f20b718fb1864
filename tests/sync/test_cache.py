"""Locks that are lent to nodes: home and caches together, over links that keep the order of messages."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.coherence.engine import Engine
from dsm.errors import InternalError, Status, WireError
from dsm.manager.ordering import Ordering
from dsm.manager.sync import Sync
from dsm.sync.cache import LockCache
from dsm.sync.reply import Reply
from dsm.sync.service import SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import (
    Cause,
    Op,
    Returned,
    SyncKind,
    cause_word,
    notify_word,
    returned_of,
    returned_word,
)
from dsm.wire.header import Family, pack, unpack

LOCK, CONDITION = 7, 8
RETURN = SyncKind.RETURN
NODES = 3


class Link:
    """One direction: what was sent and has not arrived."""

    def __init__(self, node):
        self.node = node
        self.sent = deque()

    def send(self, header, payload=None):
        self.sent.append(header)


class Nodes:
    """Managers' synchronization without the rest; a call is identified by its waiter."""

    def __init__(self, nodes=NODES, owes=False):
        self.answers = []
        self.timers = []
        #: What goes on when the release of a node is done, by node.
        self.releases = [deque() for _ in range(nodes)]
        self.links = {(a, b): Link(a) for a in range(nodes) for b in range(nodes) if a != b}
        self.syncs = [self._sync(node, nodes, owes) for node in range(nodes)]
        self.calls = 0
        self.open(SyncObject(LOCK, "lock", "best", 0))

    def _sync(self, node, nodes, owes):
        ordering = Ordering(Engine(node).fence, driver=None)
        if owes:
            ordering.owed = self.releases[node].append
        links = {other: self.links[node, other] for other in range(nodes) if other != node}

        def wake(waiter, status, result):
            self.answers.append((waiter, Status(status), result))

        return Sync(node, links, wake, lambda seconds, do: self.timers.append(do), ordering)

    def open(self, described):
        for sync in self.syncs:
            sync.opened(described)
        self.syncs[0].create(described)

    def call(self, node, op, worker=0, token=1, b=0):
        self.calls += 1
        self.syncs[node].call(op, LOCK, token, b, self.calls, worker)
        return self.calls

    def acquire(self, node, worker=0, token=1):
        return self.call(node, Op.LOCK_ACQUIRE, worker, token)

    def release(self, node, worker=0, token=1, inconsistent=False):
        self.syncs[node].tell(Op.LOCK_RELEASE, LOCK, token, int(inconsistent), worker)

    def deliver(self, sender, receiver):
        """One message arrives."""
        fields = unpack(self.links[sender, receiver].sent.popleft())
        # The receiver knows the sender by its own end of the link.
        self.syncs[receiver].message(Link(sender), fields, memoryview(b""))
        return fields[3]

    def run(self):
        """Everything arrives; returns how many messages there were."""
        count = 0
        while True:
            busy = [key for key, link in self.links.items() if link.sent]
            if not busy:
                return count
            for key in busy:
                self.deliver(*key)
                count += 1

    def taken(self):
        answers, self.answers = self.answers, []
        return [(waiter, status) for waiter, status, _ in answers]

    def lend(self, node, worker=0, token=1):
        """Let a node take the lock twice: it is lent then; that thread holds it."""
        self.acquire(node, worker, token)
        self.run()
        self.release(node, worker, token)
        self.acquire(node, worker, token)
        self.run()
        assert LOCK in self.syncs[node].cache
        self.taken()


@pytest.fixture
def nodes():
    """The lock's home is node 0; it is lent to node 1, where worker 0 holds it."""
    nodes = Nodes()
    nodes.lend(1)
    return nodes


def test_a_lock_that_changes_nodes_is_not_lent():
    nodes = Nodes()
    for node in (1, 2, 1, 2):
        nodes.acquire(node)
        nodes.run()
        nodes.release(node)
        nodes.run()
    assert not any(LOCK in sync.cache for sync in nodes.syncs)


def test_workers_of_a_node_pass_a_lent_lock_on_without_a_message(nodes):
    for turn in range(20):
        other = nodes.acquire(1, worker=(turn + 1) % 2)
        assert nodes.taken() == []
        nodes.release(1, worker=turn % 2)
        assert nodes.taken() == [(other, Status.OK)]
    assert nodes.run() == 0


def test_a_lent_lock_that_is_free_goes_to_who_asks(nodes):
    nodes.release(1)
    waits = nodes.acquire(2)
    assert nodes.run() == 4, "acquire, recall, return, reply"
    assert nodes.taken() == [(waits, Status.OK)]


def test_a_lent_lock_that_is_held_goes_back_with_its_holder(nodes):
    local = nodes.acquire(1, worker=1)
    waits = nodes.acquire(2)
    nodes.run()
    assert nodes.taken() == []
    assert LOCK not in nodes.syncs[1].cache
    nodes.release(1)
    nodes.run()
    assert nodes.taken() == [(local, Status.OK)], "the next of the same node is preferred, as ever"
    nodes.release(1, worker=1)
    nodes.run()
    assert nodes.taken() == [(waits, Status.OK)]


def test_a_lent_lock_goes_back_only_when_its_releases_are_paid():
    nodes = Nodes(owes=True)
    nodes.lend(1)
    nodes.release(1)
    waits = nodes.acquire(2)
    nodes.run()
    assert nodes.taken() == []
    local = nodes.acquire(1, worker=1)
    assert nodes.taken() == [], "it is on its way"
    [paid] = nodes.releases[1]
    paid()
    nodes.run()
    assert nodes.taken() == [(waits, Status.OK)]
    nodes.release(2)
    nodes.run()
    assert nodes.taken() == [(local, Status.OK)]


def test_calls_that_cross_the_grant_are_taken_by_the_node():
    nodes = Nodes()
    nodes.acquire(1)
    nodes.run()
    first, second = nodes.acquire(1, worker=1), nodes.acquire(1, worker=2)
    assert nodes.deliver(1, 0) == Op.LOCK_ACQUIRE  # the second is still on its way
    nodes.release(1)
    third = nodes.acquire(1, worker=3)
    nodes.taken()
    nodes.run()
    assert nodes.taken() == [(first, Status.OK)]
    assert LOCK in nodes.syncs[1].cache
    for worker, waiter in ((1, second), (2, third)):
        nodes.release(1, worker=worker)
        assert nodes.taken() == [(waiter, Status.OK)]
    assert nodes.run() == 0


def test_a_cancel_that_crosses_the_grant_ends_the_call():
    nodes = Nodes()
    nodes.acquire(1)
    nodes.run()
    nodes.release(1)
    nodes.acquire(1, worker=1)
    cancelled = nodes.acquire(1, worker=2)
    nodes.syncs[1].cancel(cancelled)
    nodes.taken()
    nodes.run()
    assert (cancelled, Status.CANCELLED) in nodes.taken()
    nodes.release(1, worker=1)
    assert nodes.taken() == []


def test_a_call_that_waits_for_a_lent_lock_is_cancelled_at_once(nodes):
    waits = nodes.acquire(1, worker=1)
    assert nodes.syncs[1].cancel(waits)
    assert nodes.taken() == [(waits, Status.CANCELLED)]
    nodes.release(1)
    assert (nodes.taken(), nodes.run()) == ([], 0)


def test_a_lock_lent_for_a_call_that_was_withdrawn_goes_back():
    nodes = Nodes()
    nodes.acquire(1)
    nodes.run()
    nodes.release(1)
    withdrawn = nodes.acquire(1, worker=1)
    waits = nodes.acquire(1, worker=2)
    nodes.syncs[1].cancel(withdrawn)
    nodes.taken()
    while nodes.timers:
        nodes.timers.pop()()
    assert nodes.taken() == [(withdrawn, Status.CANCELLED)]
    nodes.run()
    assert nodes.taken() == [(waits, Status.OK)]
    assert nodes.syncs[0].home.describe()[0].waiting == ()


def test_recursion_and_release_by_another_are_errors(nodes):
    again = nodes.acquire(1)
    released = nodes.call(1, Op.LOCK_RELEASE, worker=1)
    assert nodes.taken() == [(again, Status.USAGE), (released, Status.NOT_OWNER)]
    assert nodes.run() == 0


def test_the_death_of_a_holder_is_told_to_the_next_one_here(nodes):
    waits = nodes.acquire(1, worker=1)
    nodes.syncs[1].worker_gone(0, rank=5, died=True)
    assert nodes.answers == [(waits, Status.OWNER_DIED, cause_word(Cause.DIED, 1, 5))]
    nodes.release(1, worker=1, inconsistent=True)
    nodes.taken()
    nodes.acquire(1, worker=2)
    assert nodes.answers[0][1:] == (Status.OWNER_DIED, cause_word(Cause.DIED, 1, 5))
    nodes.release(1, worker=2)
    nodes.taken()
    nodes.acquire(1, worker=3)
    assert nodes.answers[0][1:] == (Status.OK, 0)


def test_the_death_of_a_holder_is_told_to_the_next_one_elsewhere(nodes):
    waits = nodes.acquire(2)
    nodes.syncs[1].worker_gone(0, rank=5, died=True)
    nodes.run()
    assert nodes.answers == [(waits, Status.OWNER_DIED, cause_word(Cause.DIED, 1, 5))]


def test_a_holder_that_was_told_here_and_repaired_nothing_tells_who_is_elsewhere(nodes):
    waits = nodes.acquire(1, worker=1)
    nodes.syncs[1].worker_gone(0, rank=5, died=True)
    assert nodes.taken() == [(waits, Status.OWNER_DIED)]
    nodes.acquire(2)
    nodes.run()  # it goes back with its holder
    nodes.release(1, worker=1, inconsistent=True)
    nodes.run()
    assert nodes.answers[0][1:] == (Status.OWNER_DIED, cause_word(Cause.DIED, 1, 5))


def test_the_last_worker_takes_no_lock_along(nodes):
    nodes.release(1)
    nodes.syncs[1].worker_gone(0, rank=0, died=False)
    nodes.run()
    nodes.syncs[0].node_gone(1)
    waits = nodes.acquire(2)
    nodes.run()
    assert nodes.taken() == [(waits, Status.OK)]


def test_a_node_that_dies_with_a_lock_is_an_owner_that_died(nodes):
    nodes.release(1)
    waits = nodes.acquire(2)
    nodes.syncs[0].node_gone(1)
    nodes.links[0, 1].sent.clear()
    nodes.links[2, 0].sent and nodes.deliver(2, 0)
    nodes.deliver(0, 2)
    assert nodes.answers == [(waits, Status.OWNER_DIED, cause_word(Cause.NODE_DIED, 1))]


def test_the_end_of_the_home_ends_who_waits_for_what_it_lent(nodes):
    waits = nodes.acquire(1, worker=1)
    nodes.syncs[1].node_gone(0)
    assert nodes.taken() == [(waits, Status.PAGE_LOST)]
    assert LOCK not in nodes.syncs[1].cache


def test_a_condition_takes_its_lock_home(nodes):
    nodes.open(SyncObject(CONDITION, "condition", "c", 0, LOCK))
    local = nodes.acquire(1, worker=1)
    waits = nodes.call(1, Op.CONDITION_WAIT, b=CONDITION)
    nodes.run()
    assert nodes.taken() == [(local, Status.OK)]
    notified = nodes.call(1, Op.CONDITION_NOTIFY, worker=1, b=notify_word(CONDITION, 1))
    nodes.release(1, worker=1)
    nodes.run()
    assert nodes.taken() == [(notified, Status.OK), (waits, Status.OK)]
    assert LOCK not in nodes.syncs[1].cache


def test_a_condition_of_a_lock_that_another_thread_holds(nodes):
    nodes.open(SyncObject(CONDITION, "condition", "c", 0, LOCK))
    waits = nodes.call(1, Op.CONDITION_WAIT, worker=1, b=CONDITION)
    assert nodes.taken() == [(waits, Status.NOT_OWNER)]


def test_status_has_the_holder_from_the_borrower(nodes):
    nodes.acquire(1, worker=1)
    [home] = nodes.syncs[0].home.describe()
    assert (home.lent, home.holder, home.waiting) == (1, None, ())
    [lent] = nodes.syncs[1].lending.describe()
    assert (lent.holder.node, lent.holder.worker, lent.holder.token) == (1, 0, 1)
    assert [party.worker for party in lent.waiting] == [1]


def test_nonsense_about_lending_ends_the_link(nodes):
    for node, sender in ((1, 0), (2, 1)):  # it is lent already; it is not the sender's
        with pytest.raises(WireError):
            nodes.syncs[node].message(Link(sender), _reply_that_lends(node), memoryview(b""))
    with pytest.raises(WireError):
        nodes.syncs[2].message(Link(1), _recall(), memoryview(b""))


def test_what_returns_without_having_been_lent_is_ignored():
    home = SyncHome(lambda node: True)
    home.create(SyncObject(LOCK, "lock", "best", 0))
    assert home.request(Op.LOCK_ACQUIRE, LOCK, 1, 1, (0, 1), 1) == [Reply(1, 1, object=LOCK)]
    assert home.request(RETURN, LOCK, 2, 0, (0, 0), 0, returned_word(0, 0)) == []
    assert home.describe()[0].holder.node == 1


def test_a_lock_cannot_be_lent_twice():
    cache = LockCache(1)
    cache.lend(LOCK, (0, 1), (), 0)
    with pytest.raises(InternalError):
        cache.lend(LOCK, (0, 1), (), 0)


def test_the_word_of_a_return_has_room_for_every_cause():
    cause = cause_word(Cause.HOME_DIED, 0xFFFF, 0xFFFF_FFFF)
    for what in (Returned(0), Returned.HELD, Returned.DIED):
        assert returned_of(returned_word(what, cause)) == (what, cause)


def _reply_that_lends(node):
    return unpack(pack(Family.SYNC, SyncKind.REPLY, 0, node, 1, 0, LOCK, 0, 99, 1, 0))


def _recall():
    return unpack(pack(Family.SYNC, SyncKind.RECALL, 0, 1, 1, 0, LOCK, 0, 0, 0, 0))


WORKERS = 2
places = st.tuples(st.integers(0, NODES - 1), st.integers(0, WORKERS - 1))


class Lending(RuleBasedStateMachine):
    """Home and caches against what threads may see: exclusion, one telling a death, nobody forgotten."""

    def __init__(self):
        super().__init__()
        self.nodes = Nodes(owes=True)
        self.waiting = {}  # waiter -> (node, worker)
        self.cancelled = set()
        self.holder = None
        self.died = False
        self.tokens = 10
        self.token = {}  # (node, worker) -> token of its only thread; new after a death
        self.dead_nodes = set()
        self.unsure = 0  # deaths of nodes that may have had the lock, or of workers with calls under way

    def thread(self, place):
        if place not in self.token:
            self.tokens += 1
            self.token[place] = self.tokens
        return self.token[place]

    def look(self):
        """Threads go on with what was answered."""
        for waiter, status, _ in self.nodes.answers:
            place = self.waiting.pop(waiter, None)
            if place is None:
                continue  # it died
            if status == Status.CANCELLED:
                assert waiter in self.cancelled
                continue
            assert self.holder is None, "two hold the lock"
            if status == Status.OWNER_DIED:
                assert self.died or self.unsure, "told without a death"
                if not self.died:
                    self.unsure -= 1
            else:
                assert status == Status.OK
                assert not self.died, "not told of a death"
            self.holder, self.died = place, False
        self.nodes.answers.clear()

    def may(self, place):
        return place[0] not in self.dead_nodes and place != self.holder and place not in self.waiting.values()

    @initialize(place=places)
    def is_lent(self, place):
        """Mostly the lock is lent when everything begins."""
        if place[0]:
            self.nodes.lend(*place, self.thread(place))
            self.holder = place

    @rule(place=places)
    def acquire(self, place):
        if self.may(place):
            waiter = self.nodes.calls + 1
            self.waiting[waiter] = place
            self.nodes.acquire(*place, self.thread(place))
            self.look()

    @precondition(lambda self: self.holder)
    @rule(inconsistent=st.booleans())
    def release(self, inconsistent):
        place, self.holder = self.holder, None
        self.died = inconsistent
        self.nodes.release(*place, self.token[place], inconsistent)
        self.look()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        self.cancelled.add(waiter)
        self.nodes.syncs[self.waiting[waiter][0]].cancel(waiter)
        self.look()

    @precondition(lambda self: self.nodes.timers)
    @rule()
    def go_on_without_the_home(self):
        self.nodes.timers.pop(0)()
        self.look()

    @rule(data=st.data(), count=st.integers(1, 12))
    def arrives(self, data, count):
        for _ in range(count):
            busy = [key for key, link in self.nodes.links.items() if link.sent]
            if busy:
                self.nodes.deliver(*data.draw(st.sampled_from(busy)))
                self.look()

    @rule(data=st.data())
    def pays(self, data):
        owing = [node for node, queue in enumerate(self.nodes.releases) if queue]
        if owing:
            self.nodes.releases[data.draw(st.sampled_from(owing))].popleft()()
            self.look()

    @rule(place=places, really=st.integers(0, 3))
    def worker_dies(self, place, really):
        if place[0] in self.dead_nodes or really:
            return
        waited = [waiter for waiter, at in self.waiting.items() if at == place]
        for waiter in waited:
            del self.waiting[waiter]
            self.unsure += 1  # it may have been granted the lock
        if self.holder == place:
            self.holder, self.died = None, True
        self.token.pop(place, None)
        self.nodes.syncs[place[0]].worker_gone(place[1], 0, True)
        self.look()

    @precondition(lambda self: not self.dead_nodes)
    @rule(node=st.integers(1, NODES - 1), really=st.integers(0, 9))
    def node_dies(self, node, really):
        if really:
            return
        self.dead_nodes.add(node)
        for key, link in self.nodes.links.items():
            if node in key:
                link.sent.clear()
        self.nodes.releases[node].clear()
        self.waiting = {waiter: at for waiter, at in self.waiting.items() if at[0] != node}
        if self.holder is not None and self.holder[0] == node:
            self.holder, self.died = None, True
        self.unsure += 1
        for other, sync in enumerate(self.nodes.syncs):
            if other != node:
                sync._links.pop(node)
                sync.node_gone(node)
        self.look()

    @invariant()
    def at_most_one_node_has_it(self):
        having = [
            n for n, sync in enumerate(self.nodes.syncs) if n not in self.dead_nodes and LOCK in sync.cache
        ]
        assert len(having) <= 1
        [home] = self.nodes.syncs[0].home.describe()
        assert not having or home.lent == having[0]

    def teardown(self):
        """Nobody waits for ever."""
        for _ in range(200):
            self.nodes.run()
            for queue in self.nodes.releases:
                while queue:
                    queue.popleft()()
            self.look()
            if self.holder is not None:
                self.release(False)
            elif not self.waiting and not any(link.sent for link in self.nodes.links.values()):
                break
        assert not self.waiting, "waits for ever"


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
