"""Questions about a heap to all nodes: who did not answer is named, who has no pool of it has answered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsm.errors import Status
from dsm.manager.heaps import HeapDesk
from dsm.types import HeapOptions, HeapRecord
from dsm.wire import heaps

COUNTS = dict.fromkeys(heaps.PoolCount.__struct_fields__, 0)


class _Link:
    closed = True

    def __init__(self):
        self.requests = []

    def send(self, header, payload):
        self.requests.append(header[2])


class _Node:
    """Node 0 of the nodes 0 to 2, with a worker that has opened heap 1."""

    def __init__(self):
        self.answers, self.timers = [], []
        self.links = {1: _Link(), 2: _Link()}
        self.members = SimpleNamespace(
            node=0,
            nodes=[0, 1, 2],
            links=self.links,
            header=lambda kind, length, request: (kind, length, request),
        )
        manager = SimpleNamespace(
            members=self.members,
            coherence=SimpleNamespace(frames={}),
            loop=SimpleNamespace(after=lambda seconds, then: self.timers.append(then)),
            requests=SimpleNamespace(ask=self.found),
        )
        self.desk = HeapDesk(manager)
        self.session = SimpleNamespace(
            worker=0,
            closed=False,
            answer=lambda number, body, fds=(): self.answers.append(body),
            fail=lambda number, status, message: self.answers.append((status, message)),
        )
        self.desk.handle(self.session, 1, heaps.OpenHeap(self.options))
        self.answers.clear()

    options = HeapOptions("h", "lazy", "pooled", 1 << 20, 0, 4096, "sequential", False)

    def found(self, worker, question, then):
        then(heaps.FoundHeap(HeapRecord(1, self.options), True))

    def ask(self, body):
        self.desk.handle(self.session, 2, body)

    def tell(self, node, body):
        self.desk.told(node, self.links[node].requests[-1], heaps.HeapTold(body))

    def lose(self, node):
        self.members.nodes.remove(node)
        del self.links[node]
        self.desk.node_lost(node)


def _counted(node):
    return heaps.HeapCounted((heaps.PoolCount(**COUNTS | {"node": node}),))


@pytest.fixture
def node():
    node = _Node()
    yield node
    node.desk.drop(1)


def test_a_node_that_is_lost_while_figures_are_asked_for_is_silent(node):
    node.ask(heaps.HeapFigures(1))
    for other in (1, 2):
        node.tell(other, heaps.HeapDone())  # what was freed is home
    node.tell(1, _counted(1))
    node.lose(2)
    [counted] = node.answers
    assert ([pool.node for pool in counted.pools], counted.silent) == ([0, 1], (2,))


def test_a_node_that_is_lost_and_one_that_is_late_are_silent(node):
    node.ask(heaps.HeapCheck(1))
    node.lose(2)
    assert node.answers == []
    node.timers.pop()()
    node.tell(1, heaps.HeapChecked(""))  # too late
    assert node.answers == [heaps.HeapChecked("", (1, 2))]


def test_a_node_without_a_pool_of_the_heap_is_not_silent(node):
    node.ask(heaps.HeapCheck(1))
    node.tell(1, heaps.HeapDone())
    node.tell(2, heaps.HeapChecked("something"))
    assert node.answers == [heaps.HeapChecked("something", ())]


@pytest.mark.parametrize("lost", [True, False])
def test_a_node_that_does_not_list_its_blocks_in_time_is_not_waited_for(node, lost):
    node.ask(heaps.HeapBlocks(1, 2))
    assert node.answers == []
    if lost:
        node.lose(2)
    else:
        node.timers.pop()()
    [(status, message)] = node.answers
    assert status == Status.PAGE_TIMEOUT and "node 2" in message


def test_who_frees_waits_for_the_list_as_long_as_the_node_lives(node):
    node.ask(heaps.HeapBlocks(1, 2, patient=True))
    assert node.answers == node.timers == []
    node.tell(2, heaps.HeapListed((), False))
    assert node.answers == [heaps.HeapListed((), False)]


REFUSED = heaps.HeapRefused(Status.INTERNAL, "an extent is in no list")


def test_a_node_that_cannot_verify_its_pool_is_wrong(node):
    node.ask(heaps.HeapCheck(1))
    node.tell(2, heaps.HeapChecked("something"))
    node.tell(1, REFUSED)
    assert node.answers == [
        heaps.HeapChecked("node 1 could not verify its pool: an extent is in no list", ())
    ]


def test_a_node_that_cannot_count_is_silent(node):
    node.ask(heaps.HeapFigures(1))
    for other in (1, 2):
        node.tell(other, heaps.HeapDone())
    node.tell(1, REFUSED)
    node.lose(2)
    [counted] = node.answers
    assert ([pool.node for pool in counted.pools], counted.silent) == ([0], (1, 2))


def test_a_heap_that_is_destroyed_between_two_questions_makes_nobody_silent(node):
    node.ask(heaps.HeapFigures(1))
    node.desk.drop(1)
    for other in (1, 2):
        node.tell(other, heaps.HeapDone())
    for other in (1, 2):
        node.tell(other, heaps.HeapDone())
    [counted] = node.answers
    assert (counted.pools, counted.silent) == ((), ())
