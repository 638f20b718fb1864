"""A node is declared dead: what went away with it is lost, everything else goes on.

Engines joined by queues, one a pair of nodes; every node hears of the death when its test says so.
"""

from __future__ import annotations

from collections import deque

import pytest

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Kind, Lower, Send, SendPages, Wake
from dsm.coherence.states import State
from dsm.coherence.table import LOST
from dsm.errors import Status
from dsm.limits import ADDRESS_LOW
from dsm.types import Region, RegionOptions

OK, PAGE_LOST, PAGE_TIMEOUT = Status.OK, Status.PAGE_LOST, Status.PAGE_TIMEOUT


class Cluster:
    """`home` keeps every page's directory; a payload arrives with its message."""

    def __init__(self, nodes=4, home=0, pages=64, patience=0, page_size=4096):
        options = RegionOptions(nbytes=pages * page_size, page_size=page_size, home=home)
        region = Region(1, options, ADDRESS_LOW, tuple(range(nodes)))
        self.engines = [Engine(node, patience) for node in range(nodes)]
        for engine in self.engines:
            engine.add_region(region)
        self.links = {(a, b): deque() for a in range(nodes) for b in range(nodes) if a != b}
        self.wakes = []
        #: Nodes whose workers do not acknowledge: tokens of their `Lower`.
        self.stopped = {}
        self.closed = set()

    def collect(self, node):
        engine = self.engines[node]
        while engine.effects:
            for effect in engine.take():
                if isinstance(effect, Send | SendPages):
                    if (node, effect.node) not in self.closed:
                        self.links[node, effect.node].append(effect.message)
                elif isinstance(effect, Lower):
                    if node in self.stopped:
                        self.stopped[node].append(effect.token)
                    else:
                        engine.lowered(effect.token, 0)
                elif isinstance(effect, Wake):
                    self.wakes.append((node, effect.waiter, effect.status, effect.peer))
                    engine.applied(effect.waiter, 0)

    def fault(self, node, page, write=False, waiter=1, ip=1):
        self.engines[node].fault(1, page, write, waiter, 0, ip, 10**12)
        self.collect(node)

    def deliver(self, a, b, count=None):
        """Let the next messages (default: all) of a link arrive; returns their kinds."""
        kinds = []
        while self.links[a, b] and (count is None or len(kinds) < count):
            message = self.links[a, b].popleft()
            kinds.append(Kind(message.kind))
            engine = self.engines[b]
            if message.kind == Kind.DATA:
                engine.received(message, 10**12)
            else:
                engine.message(message, 10**12)
            self.collect(b)
        return kinds

    def settle(self):
        """Let everything arrive that can."""
        while any(self.deliver(a, b) for (a, b), link in list(self.links.items()) if link):
            pass

    def access(self, node, page, write=False, waiter=1):
        """Fault and let everything happen; returns status and peer."""
        self.wakes.clear()
        self.fault(node, page, write, waiter, ip=100 * page + waiter)
        for engine in self.engines:
            engine.tick(10**13)
            self.collect(engine.node)
        self.settle()
        (found,) = [wake for wake in self.wakes if wake[:2] == (node, waiter)]
        return found[2:]

    def hears(self, node, dead):
        """`node` hears that `dead` is dead: their link is closed, what is on it does not arrive."""
        self.closed |= {(node, dead), (dead, node)}
        self.links[node, dead].clear()
        self.links[dead, node].clear()
        self.engines[node].node_lost(dead, 10**12)
        self.collect(node)

    def state(self, node, page):
        return State(self.engines[node].state(1, page))

    def owner(self, page):
        table = self.engines[0].regions[1].table
        return table.owner[page] - 1, table.copyset[page]


def test_pages_of_a_dead_directory_stay_where_they_are():
    it = Cluster(nodes=3, home=2)
    it.access(0, 0, write=True)
    it.access(1, 1, write=True)
    it.access(0, 1)
    for node in (0, 1):
        it.hears(node, 2)
    assert it.access(0, 0, write=True) == (OK, -1), "owned exclusively: goes on"
    assert it.access(0, 1) == (OK, -1), "a read copy: goes on"
    assert it.access(0, 1, write=True) == (PAGE_LOST, 2)
    assert it.access(0, 2) == (PAGE_LOST, 2)
    assert it.access(1, 0) == (PAGE_LOST, 2)


def test_waits_for_a_dead_directory_end():
    it = Cluster(nodes=2, home=1)
    it.fault(0, 0, write=True, waiter=7)
    it.engines[0].pin(1, 1, 2, False, 8, 0)
    it.hears(0, 1)
    assert it.wakes == [(0, 7, PAGE_LOST, 1), (0, 8, PAGE_LOST, 1)]
    assert {it.state(0, page) for page in range(4)} == {State.INVALID}
    it.wakes.clear()
    it.engines[0].prefetch(1, 0, 4, False, 9, 0)
    it.collect(0)
    assert it.wakes == [(0, 9, PAGE_LOST, 1)]


def test_the_only_copy_dies_with_its_owner_and_nothing_else_does():
    it = Cluster()
    it.access(1, 0, write=True)
    it.access(2, 1, write=True)
    for node in (0, 2, 3):
        it.hears(node, 1)
    assert it.access(2, 0) == (PAGE_LOST, 1)
    assert it.access(3, 0, write=True) == (PAGE_LOST, 1)
    assert it.access(3, 1, write=True) == (OK, -1)
    assert it.access(3, 40) == (OK, -1), "never touched"


def test_a_read_copy_survives_its_owner():
    it = Cluster()
    it.access(1, 0, write=True)
    it.access(2, 0)
    for node in (0, 2, 3):
        it.hears(node, 1)
    it.settle()
    assert it.owner(0) == (2, 1 << 2)
    assert it.access(3, 0) == (OK, -1)
    assert it.access(3, 0, write=True) == (OK, -1)
    assert it.state(2, 0) == State.INVALID


def test_pages_read_ahead_from_the_dead_are_asked_for_again():
    it = Cluster()
    for page in range(8):
        it.access(1, page, write=True)
    it.access(3, 4)  # this one has another copy
    it.fault(2, 0, waiter=1)
    it.deliver(2, 0), it.deliver(0, 1), it.deliver(1, 2), it.deliver(2, 0)
    it.fault(2, 1, waiter=1, ip=2)  # a sequence: reads ahead
    it.deliver(2, 0)
    it.deliver(0, 1)
    assert it.state(2, 4) == State.AHEAD
    it.fault(2, 4, waiter=5, ip=3)  # waits for what is on its way
    it.wakes.clear()
    for node in (0, 2, 3):
        it.hears(node, 1)
    it.settle()
    assert (2, 5, OK, -1) in it.wakes, "from the surviving copy"
    assert (2, 1, PAGE_LOST, 1) in it.wakes
    assert it.access(2, 5) == (PAGE_LOST, 1)
    assert not it.engines[2].regions[1].requester.requests


def source_dies(write, reader=None):
    """Node 2 waits for a page that node 1 was asked for when it died; node 0 has heard of it."""
    it = Cluster()
    it.access(1, 0, write=True)
    if reader is not None:
        it.access(reader, 0)
    it.wakes.clear()
    it.fault(2, 0, write, waiter=5)
    it.deliver(2, 0)
    return it


def test_void_a_request_whose_pages_died():
    it = source_dies(write=False, reader=3)
    it.hears(0, 1)
    assert it.deliver(0, 2) == [Kind.VOID]
    assert it.deliver(2, 0) == [Kind.ABSENT, Kind.GET]
    it.settle()
    assert it.wakes == [(2, 5, OK, -1)]
    assert it.owner(0) == (3, 0b1100)


def test_void_a_request_whose_pages_died_without_a_copy():
    it = source_dies(write=True)
    it.hears(0, 1)
    it.settle()
    assert it.wakes == [(2, 5, PAGE_LOST, 1)]


@pytest.mark.parametrize("write", [False, True])
def test_void_meets_a_confirmation(write):
    it = source_dies(write)
    it.deliver(0, 1)
    assert it.deliver(1, 2) == [Kind.DATA]
    it.hears(0, 1)
    assert it.deliver(0, 2) == [Kind.VOID]
    assert it.deliver(2, 0)[0] == Kind.CONFIRM
    it.settle()
    assert it.wakes == [(2, 5, OK, -1)]
    assert it.owner(0) == (2, 0b100)


def test_what_a_zombie_sends_after_its_request_was_voided_is_not_installed():
    it = source_dies(write=True)
    it.deliver(0, 1)
    it.hears(0, 1)
    it.deliver(0, 2)
    assert it.deliver(1, 2) == [Kind.DATA], "node 2 has not heard yet"
    assert it.state(2, 0) == State.WRITING
    it.settle()
    assert it.wakes == [(2, 5, PAGE_LOST, 1)]


def test_a_dead_requester_in_the_middle_of_invalidations():
    it = Cluster()
    it.access(0, 0, write=True)
    it.access(2, 0)
    it.access(3, 0)
    it.fault(1, 0, write=True, waiter=5)
    it.deliver(1, 0)
    it.deliver(0, 2), it.deliver(2, 0)
    it.fault(2, 0, waiter=6)
    it.deliver(2, 0)
    it.hears(0, 1)
    it.settle()
    assert (2, 6, OK, -1) in it.wakes, "the owner has it still"
    assert it.owner(0) == (0, 0b101)


def test_a_dead_requester_that_had_the_last_copy():
    it = Cluster()
    it.access(0, 0, write=True)
    it.access(1, 0)
    it.access(2, 0)
    it.fault(1, 0, write=True, waiter=5)
    it.deliver(1, 0)
    it.fault(3, 0, waiter=6)
    it.deliver(3, 0)
    it.hears(0, 1)
    it.settle()
    assert (3, 6, PAGE_LOST, 1) in it.wakes


@pytest.mark.parametrize("write", [False, True])
def test_a_dead_requester_to_which_pages_were_on_their_way(write):
    it = Cluster()
    it.access(2, 0, write=True)
    it.fault(1, 0, write, waiter=5)
    it.deliver(1, 0)
    it.fault(3, 0, waiter=6)
    it.deliver(3, 0)
    for node in (0, 2, 3):
        it.hears(node, 1)
    it.settle()
    assert (3, 6, *((PAGE_LOST, 1) if write else (OK, -1))) in it.wakes


def test_the_acknowledgement_of_the_dead_is_not_waited_for():
    it = Cluster()
    it.access(0, 0, write=True)
    it.access(1, 0)
    it.access(2, 0)
    it.fault(3, 0, write=True, waiter=5)
    it.deliver(3, 0)
    it.deliver(0, 2), it.deliver(2, 0)
    assert not [wake for wake in it.wakes if wake[:2] == (3, 5)]
    it.hears(0, 1)
    it.settle()
    assert (3, 5, OK, -1) in it.wakes


def test_a_demand_of_a_dead_directory_is_forgotten():
    it = Cluster(nodes=3, home=2)
    it.access(0, 0, write=True)
    it.engines[0].pin(1, 0, 1, True, 8, 0)
    it.collect(0)
    it.fault(1, 0, write=True, waiter=5)
    it.deliver(1, 2), it.deliver(2, 0)
    assert it.engines[0].regions[1].holder.demands
    for node in (0, 1):
        it.hears(node, 2)
    it.engines[0].unpin(1, 0, 1, True, 0)
    it.settle()
    assert it.state(0, 0) == State.EXCLUSIVE
    assert (1, 5, PAGE_LOST, 2) in it.wakes


def test_a_second_death_during_the_search():
    it = Cluster()
    it.access(1, 0, write=True)
    it.access(2, 0), it.access(3, 0)
    it.hears(0, 1)
    it.deliver(0, 3), it.deliver(3, 0)
    it.hears(0, 2)
    assert it.owner(0) == (3, 0b1000)
    it = Cluster()
    it.access(1, 0, write=True)
    it.access(2, 0)
    it.hears(0, 1)
    it.fault(3, 0, waiter=5)
    it.deliver(3, 0)
    it.hears(0, 2)
    it.settle()
    assert it.owner(0)[0] == LOST
    assert (3, 5, PAGE_LOST, 1) in it.wakes


def test_a_node_that_joins_later_knows_the_dead():
    engine = Engine(3)
    engine.node_lost(1, 0)
    engine.add_region(Region(1, RegionOptions(nbytes=8 * 4096, home=1), ADDRESS_LOW, (0, 1)))
    engine.fault(1, 0, False, 7, 0, 1, 0)
    assert engine.take() == [Wake(7, PAGE_LOST, 1)]


def test_a_stopped_worker_costs_its_peers_an_error_and_no_page():
    it = Cluster(patience=3)
    it.access(1, 0, write=True)
    it.stopped[1] = []
    it.fault(2, 0, write=True, waiter=5)
    it.settle()
    for ages in range(3):
        assert not [wake for wake in it.wakes if wake[:2] == (2, 5)], ages
        it.engines[2].age(0)
        it.collect(2)
    assert (2, 5, PAGE_TIMEOUT, 0) in it.wakes, "node 0 was asked; it knows who is late"
    it.engines[1].lowered(it.stopped.pop(1)[0], 0)
    it.collect(1)
    it.settle()
    assert it.state(2, 0) == State.EXCLUSIVE
    assert it.access(2, 0, write=True) == (OK, -1)


def test_the_directory_itself_names_who_is_late():
    it = Cluster(patience=2)
    it.access(1, 0, write=True)
    it.stopped[1] = []
    it.fault(0, 0, waiter=5)
    it.engines[0].prefetch(1, 0, 2, True, 6, 0)
    it.collect(0), it.settle()
    it.wakes.clear()
    for _ in range(2):
        it.engines[0].age(0)
        it.collect(0)
    assert it.wakes == [(0, 5, PAGE_TIMEOUT, 1), (0, 6, PAGE_TIMEOUT, 1)]


@pytest.mark.parametrize("owner", [0, 2])
def test_a_page_that_has_not_left_its_owner_stays_there(owner):
    it = Cluster()
    it.access(owner, 0, write=True)
    it.engines[owner].pin(1, 0, 1, True, 8, 0)
    it.collect(owner)
    it.fault(1, 0, write=True, waiter=5)
    it.deliver(1, 0), it.settle()
    it.fault(3, 0, waiter=6)
    it.deliver(3, 0)
    for node in (0, 2, 3):
        it.hears(node, 1)
    it.settle()
    assert it.state(owner, 0) == State.EXCLUSIVE
    it.engines[owner].unpin(1, 0, 1, True, 10**13)
    it.collect(owner), it.settle()
    assert (3, 6, OK, -1) in it.wakes
    assert it.owner(0) == (owner, 1 << owner | 0b1000)


def test_a_range_of_which_dead_readers_had_read_a_part():
    it = Cluster()
    it.access(1, 0, write=True), it.access(1, 1, write=True)
    it.access(2, 1)
    for node in (0, 1, 3):
        it.hears(node, 2)
    it.engines[3].prefetch(1, 0, 2, False, 5, 0)
    it.collect(3), it.settle()
    assert (3, 5, OK, -1) in it.wakes
    assert it.access(3, 1, write=True) == it.access(1, 0, write=True) == (OK, -1)


def test_a_pin_that_grows_gives_way_to_a_range_with_the_page_it_waits_for():
    """Pages 2 and 3 are alike for the directory, but page 3 is only shared here: its reader died."""
    it = Cluster()
    it.access(1, 2, write=True), it.access(1, 3, write=True)
    it.access(2, 3)
    for node in (0, 1, 3):
        it.hears(node, 2)
    it.wakes.clear()
    it.engines[1].pin(1, 2, 2, True, 8, 10**13)
    it.collect(1)
    it.engines[3].prefetch(1, 2, 2, True, 5, 10**13)
    it.collect(3)
    it.deliver(3, 0), it.deliver(0, 1), it.deliver(1, 0)
    it.settle()
    assert (3, 5, OK, -1) in it.wakes
    it.engines[3].tick(10**14)
    it.collect(3), it.settle()
    assert (1, 8, OK, -1) in it.wakes
    assert (it.state(1, 2), it.state(1, 3)) == (State.EXCLUSIVE, State.EXCLUSIVE)


def test_a_prefetch_that_ends_over_a_lost_page_starts_nothing_in_its_middle():
    """Its next page is held here no longer, and somebody wants it."""
    it = Cluster(nodes=3, home="cyclic", page_size=1 << 20)  # page n: directory n % 3
    it.access(2, 3, write=True)
    it.access(0, 3)
    region = it.engines[0].regions[1]
    it.engines[0].hold.granted(99, region.base + 3, 10**12)  # a thread that has not mapped it yet
    it.fault(2, 3, write=True, waiter=5)
    it.deliver(2, 0)
    assert region.holder.demands, "held back"
    it.hears(0, 1), it.hears(2, 1)
    it.engines[0].prefetch(1, 1, 3, True, 9, 10**13)
    it.collect(0)
    assert (0, 9, PAGE_LOST, 1) in it.wakes
    it.settle()
    assert (2, 5, OK, -1) in it.wakes
