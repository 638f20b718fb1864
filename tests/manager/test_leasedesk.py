"""Ends of leases at a node: a worker is told of each once, and one that does not ask costs little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsm.manager.leasedesk import MOST_TOLD, MOST_UNTOLD, LeaseDesk
from dsm.wire import leasing


class _Frames(dict):
    """Every region is a lease."""

    def get(self, number):
        return SimpleNamespace(region=SimpleNamespace(options=SimpleNamespace(use="lease")))


class _World:
    """A node with worker 3, which has mapped every lease."""

    def __init__(self):
        self.told = []
        manager = SimpleNamespace(
            coherence=SimpleNamespace(
                frames=_Frames(), pager=SimpleNamespace(is_mapped=lambda number, worker: True)
            ),
            sessions=SimpleNamespace(workers=[3]),
        )
        self.desk = LeaseDesk(manager)
        self.session = SimpleNamespace(
            worker=3,
            answer=lambda number, body: self.told.append(list(body.regions)),
            fail=lambda number, status, message: self.told.append(status),
        )

    def ask(self):
        self.desk.handle(self.session, 1, leasing.AwaitEnds())


@pytest.fixture
def world():
    return _World()


def test_who_asks_is_told_and_asks_again(world):
    world.ask()
    world.desk.region_ends(7)
    world.desk.region_ends(8)
    assert world.told == [[7]]
    world.ask()
    assert world.told == [[7], [8]]
    world.ask()
    assert world.told == [[7], [8]]


def test_many_ends_come_in_parts(world):
    for number in range(MOST_TOLD + 5):
        world.desk.region_ends(number)
    world.ask()
    world.ask()
    assert [len(told) for told in world.told] == [MOST_TOLD, 5]
    assert [number for part in world.told for number in part] == list(range(MOST_TOLD + 5))


def test_a_worker_that_never_asks_takes_no_more_than_its_place(world):
    ends = 2 * MOST_UNTOLD + 7
    for number in range(ends):
        world.desk.region_ends(number)
    for _ in range(MOST_UNTOLD // MOST_TOLD):
        world.ask()
    told = [number for part in world.told for number in part]
    assert told == list(range(ends - MOST_UNTOLD, ends)), "the newest are kept, in their order"


def test_a_worker_that_has_gone_leaves_nothing(world):
    world.desk.region_ends(7)
    world.desk.worker_gone(3)
    world.ask()
    world.desk.worker_gone(3)
    world.desk.region_ends(8)
    assert world.told == []
