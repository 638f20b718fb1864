"""Leases of servers, at the coordinator: who is asked, who answers, and who does not."""

from __future__ import annotations

import pytest

from dsm.errors import Status, UsageError
from dsm.limits import DEMAND_WAIT_S
from dsm.manager.demands import Demands
from dsm.wire import control, leasing

OPENER, FIRST, SECOND = (0, 0), (0, 1), (1, 0)
ID, KEY = b"i" * 16, b"k" * 16
WANTED = leasing.OpenLease(ID, KEY)
NOT_HERE = Status.UNKNOWN_LEASE


class World:
    """Servers that keep what they are asked."""

    def __init__(self, *servers):
        self.timers = []
        self.demands = Demands(self)
        self.asked = {server: [] for server in servers}
        for server in servers:
            self.demands.serve(server)
            self.poll(server)

    def after(self, seconds, callback):
        assert seconds == DEMAND_WAIT_S
        self.timers.append(callback)

    def poll(self, server):
        self.demands.wait(server, self.asked[server].append)

    def search(self, opener=OPENER, body=WANTED):
        found = []
        self.demands.search(opener, body, found.append)
        return found

    def done(self, server, status, message=""):
        """The server answers the oldest demand that it got."""
        self.demands.done(server, leasing.DemandDone(self.asked[server].pop(0).number, status, message))

    def time_passes(self):
        timers, self.timers = self.timers, []
        for each in timers:
            each()


@pytest.fixture
def world():
    return World(FIRST, SECOND)


def test_without_servers_nobody_has_it():
    assert World().search() == [None]


def test_every_server_is_asked_and_all_must_say_no(world):
    found = world.search()
    assert [each[0].id + each[0].key for each in world.asked.values()] == [ID + KEY] * 2
    world.done(FIRST, NOT_HERE)
    assert found == []
    world.done(SECOND, NOT_HERE)
    assert found == [None]


def test_the_one_that_has_it_ends_the_search_at_once(world):
    found = world.search()
    world.done(SECOND, Status.OK)
    assert found == [None]
    world.done(FIRST, NOT_HERE)  # too late to matter
    assert found == [None]


def test_a_server_is_not_asked_for_what_it_opens_itself(world):
    found = world.search(FIRST)
    assert world.asked[FIRST] == []
    world.done(SECOND, NOT_HERE)
    assert found == [None]


def test_a_process_with_two_servers_is_asked_for_what_it_opens_itself(world):
    world.search(FIRST, leasing.OpenLease(ID, KEY, own=True))
    assert len(world.asked[FIRST]) == 1


def test_why_a_server_refuses_is_told(world):
    found = world.search()
    world.done(FIRST, Status.NOT_PERMITTED, "the key is none of it")
    assert found == [control.Failed(Status.NOT_PERMITTED, "the key is none of it")]


def test_a_status_that_is_none_is_an_error_of_ours(world):
    found = world.search()
    world.done(FIRST, 7777, "x" * 5000)
    assert found[0].status == Status.INTERNAL and len(found[0].message) == 1000


def test_two_who_open_the_same_wait_for_one_search(world):
    found = [*[world.search()], world.search((1, 7))]
    assert [len(each) for each in world.asked.values()] == [1, 1]
    world.done(FIRST, Status.OK)
    assert found == [[None], [None]]


def test_another_key_is_another_search(world):
    first, second = world.search(), world.search(body=leasing.OpenLease(ID, b"?" * 16))
    world.done(FIRST, Status.OK)
    assert (first, second) == ([None], [])


def test_a_server_that_joins_a_search_by_opening_does_not_hide_another(world):
    """FIRST opens what SECOND searches: SECOND was not asked by its own search, but is by FIRST's."""
    second, first = world.search(SECOND), world.search(FIRST)
    assert len(world.asked[FIRST]) == len(world.asked[SECOND]) == 1
    world.done(FIRST, NOT_HERE)
    assert first == second == []
    world.done(SECOND, Status.OK)
    assert first == second == [None]


def test_a_busy_server_gets_its_demands_when_it_asks(world):
    world.search()
    world.search(body=leasing.OpenLease(b"j" * 16, KEY))
    assert len(world.asked[FIRST]) == 1
    world.poll(FIRST)
    assert [each.id for each in world.asked[FIRST]] == [ID, b"j" * 16]


def test_what_nobody_waits_for_any_more_is_not_asked(world):
    world.search()
    other = world.search(body=leasing.OpenLease(b"j" * 16, KEY))
    world.poll(SECOND)
    world.asked[SECOND].pop(0)
    world.done(SECOND, Status.OK)
    assert other == [None]
    world.poll(FIRST)
    assert [each.id for each in world.asked[FIRST]] == [ID]


@pytest.mark.parametrize("gone", [lambda each: each == FIRST, lambda each: each[0] == 0])
def test_a_server_that_dies_has_nothing(world, gone):
    found = world.search()
    world.done(SECOND, NOT_HERE)
    world.demands.workers_gone(gone)
    assert found == [None]
    assert world.search(SECOND) == [None]


def test_a_server_that_does_not_ask_again_is_not_waited_for(world):
    found = world.search()
    world.poll(SECOND)  # it lives; FIRST is stopped
    world.time_passes()
    assert found == []
    world.done(SECOND, NOT_HERE)
    assert found[0].status == Status.PAGE_TIMEOUT
    assert "worker 1 of node 0" in found[0].message


def test_a_server_that_asks_again_may_take_its_time(world):
    found = world.search()
    world.done(FIRST, NOT_HERE)
    world.poll(SECOND)
    for _ in range(5):
        world.time_passes()
    assert found == []
    world.done(SECOND, Status.OK)
    assert found == [None] and world.timers
    world.time_passes()
    assert not world.timers


def test_who_is_no_server_gets_no_demands(world):
    with pytest.raises(UsageError, match="ServeLeases"):
        world.demands.wait(OPENER, lambda reply: None)


def test_a_demand_is_answered_by_who_was_asked(world):
    found = world.search()
    number = world.asked[FIRST][0].number
    with pytest.raises(UsageError):
        world.demands.done(SECOND, leasing.DemandDone(number, Status.OK))
    world.demands.done(OPENER, leasing.DemandDone(4711, Status.OK))
    assert found == []


def test_a_server_that_asks_twice_is_answered_twice(world):
    before = world.asked[FIRST]
    world.poll(FIRST)
    assert [type(each) for each in before] == [control.Failed]
