"""A node hears of lost members from the coordinator, from its own link, or from both in any order."""

from __future__ import annotations

import types

import pytest

from dsm.coherence.messages import Kind
from dsm.errors import WireError
from dsm.manager.addresses import announced, parse_address
from dsm.manager.link import Traffic
from dsm.manager.manager import Manager
from dsm.manager.membership import Membership
from dsm.wire.header import Family, pack, unpack
from dsm.wire.membership import Members, MetaKind


class Link:
    def __init__(self, manager, node):
        self.manager, self.node = manager, node
        self.closed = self.leaving = False
        self.sent = []
        self.traffic = Traffic()
        self.name = "a peer"

    def send(self, header, payload=None):
        self.sent.append(header)

    def flush(self):
        pass

    def lose(self, reason):
        self.closed = True
        self.manager._lost(self, reason)


@pytest.fixture
def manager():
    """Node 1 of three, without processes; `manager.said` is what its parts were told."""
    manager = object.__new__(Manager)
    manager.said = said = []
    manager.coordinator = None
    manager.members = Membership(None, b"", None, lambda line: None)
    manager.members._notices = types.SimpleNamespace(say=lambda kind, line: None)
    manager.members.node = 1
    manager.members.nodes = [0, 1, 2]
    manager.members.links = {node: Link(manager, node) for node in (0, 2)}
    manager.coherence = types.SimpleNamespace(
        epoch=0,
        link_lost=lambda link: None,
        node_lost=lambda node: said.append(("pages", node)),
    )
    manager.sync = types.SimpleNamespace(epoch=0, node_gone=lambda node: said.append(("sync", node)))
    manager.heaps = types.SimpleNamespace(node_lost=lambda node: said.append(("heaps", node)))
    return manager


LOST = [("pages", 2), ("sync", 2), ("heaps", 2)]


def test_the_coordinator_says_it_first(manager):
    manager._members_changed(Members(5, [0, 1]))
    assert manager.said == LOST
    assert manager.members.nodes == [0, 1]


def test_the_link_says_it_first(manager):
    """Then the coordinator is told, and only its word counts."""
    coordinator = manager.members.links[0]
    manager.members.links[2].lose("reset")
    assert manager.said == []
    assert [unpack(header, 0)[3] for header in coordinator.sent] == [MetaKind.LOST]
    manager._members_changed(Members(5, [0, 1]))
    assert manager.said == LOST


def test_a_member_whose_link_was_lost_before_it_was_announced(manager):
    manager.members.nodes = [0, 1]
    manager.members.links[2].lose("reset")
    manager._members_changed(Members(5, [0, 1, 2]))
    assert manager.members.unreachable() == [2]
    manager._members_changed(Members(6, [0, 1]))
    assert manager.said == LOST


@pytest.mark.parametrize(
    ("listening", "outward", "told"),
    [
        ("0.0.0.0:7000", "10.0.0.2", "10.0.0.2:7000"),
        ("[::]:7000", "fe80::1", "[fe80::1]:7000"),
        ("b:7000", "10.0.0.2", "b:7000"),
    ],
)
def test_a_node_that_listens_everywhere_tells_where_it_is(listening, outward, told):
    assert announced(listening, outward) == told


@pytest.mark.parametrize("family", [Family.COHERENCE, Family.SYNC])
def test_a_node_without_a_number_is_heard_in_metadata_only(family):
    manager = Manager.__new__(Manager)  # neither pages nor calls are reached
    fields = unpack(pack(family, Kind.GET, 0, 0, 1, 0, 1, 1, 1, 0, 0), 0)
    with pytest.raises(WireError, match="not joined"):
        manager._message(types.SimpleNamespace(node=-1), fields, memoryview(b""))


@pytest.mark.parametrize("text", ["", "host", ":7000", "h:²", "host:65536", "[::1]", "a b:1"])
def test_a_node_without_a_whole_address_is_refused(text):
    with pytest.raises(WireError, match="HOST:PORT"):
        parse_address(text)
