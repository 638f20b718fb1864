"""The coordinator by itself: what happens while other nodes have not answered yet."""

from __future__ import annotations

import pytest

from dsm.errors import LimitError, Status
from dsm.manager.coordinator import Coordinator, LocalNode
from dsm.manager.metadata.embedded import EmbeddedStore
from dsm.types import RegionOptions
from dsm.wire import control, leasing
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind


class Link:
    """A link that keeps what is sent."""

    closed = False

    def __init__(self, node):
        self.node = node
        self.sent = []

    def send(self, header, payload=None):
        self.sent.append(header)

    def flush(self):
        pass


class Members:
    """Node 0 of two; a header is what it was made of."""

    def __init__(self):
        self.node, self.epoch, self.cluster = 0, 1, b"c" * 16
        self.links = {1: Link(1)}
        self.nodes = [0, 1]

    def expect(self, link, reason):
        pass

    def settled(self, link):
        pass

    def header(self, kind, length, request=0, region=0):
        return kind, request, region

    def adopt(self, node, link):
        link.node = node
        self.links[node] = link


@pytest.fixture
def members():
    return Members()


@pytest.fixture
def local():
    local = LocalNode()
    local.add_region = lambda region: None
    local.drop_region = lambda number, done: done()
    local.members_changed = lambda: None
    local.after = lambda seconds, callback: None
    return local


@pytest.fixture
def coordinator(members, local):
    store = EmbeddedStore()
    store.add_member("")
    store.add_member("")
    yield Coordinator(store, members, local, 0)
    store.close()


def ask(coordinator, body):
    """Return the list that the answer comes to."""
    answers = []
    coordinator.ask(0, meta.Ask(0, body), answers.append)
    return answers


CREATE = control.CreateRegion(RegionOptions(nbytes=4096, name="x"))


def test_a_region_may_be_destroyed_while_it_is_announced(coordinator, members):
    creator = ask(coordinator, CREATE)
    opener = ask(coordinator, control.OpenRegion("x"))
    destroyer = ask(coordinator, control.DestroyRegion("x"))
    assert not creator and not destroyer
    for _, request, _ in list(members.links[1].sent):
        coordinator.acknowledged(1, request)
    assert [each.status for each in creator + opener] == [Status.CLOSED] * 2
    assert all("region 'x' went away" in each.message for each in creator + opener)
    assert isinstance(destroyer[0], meta.Finished)
    members.links[1].sent.clear()
    again = ask(coordinator, CREATE)
    coordinator.acknowledged(1, members.links[1].sent[0][1])
    assert again[0].created


def test_a_region_that_the_coordinator_cannot_keep_is_refused_and_its_name_stays_free(coordinator, local):
    def refuse(region):
        raise LimitError("no descriptors")

    local.add_region = refuse
    assert ask(coordinator, CREATE)[0].status == Status.LIMIT
    local.add_region = lambda region: None
    assert not ask(coordinator, CREATE), "it is being announced"


def test_a_joining_node_keeps_nobody_waiting(coordinator, members):
    joiner = Link(-1)
    coordinator.join(joiner, meta.Join("127.0.0.1:1"))
    joiner.sent.clear()
    created = ask(coordinator, CREATE)
    coordinator.acknowledged(1, members.links[1].sent[-1][1])
    assert created[0].created
    assert joiner.sent == members.links[1].sent, "it is told like the others"


def _lease(number=1):
    return leasing.CreateLease(bytes([number]) * 16, 5000, 1000, bytes(32), bytes(32))


def test_a_lease_whose_worker_dies_while_it_is_announced_ends(coordinator, members):
    answers = ask(coordinator, _lease())
    kept = []
    coordinator.ask(1, meta.Ask(7, _lease(2)), kept.append)
    gone = ask(coordinator, meta.WorkerGone(0))
    for _, request, _ in list(members.links[1].sent):
        coordinator.acknowledged(1, request)
    assert [type(each) for each in answers + kept + gone] == [
        control.Failed,
        leasing.LeaseOpened,
        meta.Finished,
    ]
    drops = [region for kind, _, region in members.links[1].sent if kind == MetaKind.REGION_DROP]
    assert drops == [1] and [row.region for row in coordinator.leases.rows()] == [2]


def test_a_lease_whose_node_dies_while_it_is_announced_ends(coordinator, members):
    members.decided = 2
    kept = []
    coordinator.ask(1, meta.Ask(7, _lease()), kept.append)
    coordinator.node_gone(1, members.links.pop(1))
    assert [type(each) for each in kept] == [control.Failed]
    assert coordinator.leases.used == 0 == len(coordinator.leases)


def test_the_region_of_a_lease_is_opened_and_destroyed_by_its_key_alone(coordinator, members):
    ask(coordinator, _lease())
    coordinator.acknowledged(1, members.links[1].sent[0][1])
    for body in (control.OpenRegion(1), control.DestroyRegion(1)):
        assert ask(coordinator, body)[0].status == Status.NOT_PERMITTED
    own = control.CreateRegion(RegionOptions(nbytes=1, use="lease"))
    assert ask(coordinator, own)[0].status == Status.USAGE
    assert len(coordinator.leases) == 1
