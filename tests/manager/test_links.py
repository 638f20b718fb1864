"""A peer that does not read, notices that come in floods, and what a coordinator cannot mean."""

from __future__ import annotations

import select
import socket

import pytest

from dsm.errors import WireError
from dsm.limits import MAX_UNREAD_BYTES
from dsm.manager import border
from dsm.manager.link import Link
from dsm.manager.notices import FIRST, GATHER_S, Notices
from dsm.types import Region, RegionOptions
from dsm.wire import membership as meta
from dsm.wire.header import Family, pack
from dsm.wire.membership import MetaKind


class Loop:
    """A loop that only remembers."""

    def __init__(self):
        self.dirty, self.lazy, self.later = [], [], []

    def watch(self, *_):
        pass

    forget = change = watch

    def after(self, seconds, callback):
        self.later.append((seconds, callback))

    def run_later(self):
        later, self.later = self.later, []
        for _, callback in later:
            callback()


@pytest.fixture
def unread():
    """A link to a peer that never reads: the loop, the link, and what was lost."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    loop, lost = Loop(), []
    link = Link(loop, sock, None, None, None, lambda link, reason: lost.append(reason))
    yield loop, link, lost, peer
    link.close()
    peer.close()
    listener.close()


def test_a_peer_that_does_not_read_is_lost_before_its_messages_fill_memory(unread):
    loop, link, lost, _ = unread
    for _ in range(2 * MAX_UNREAD_BYTES // (1 << 20)):
        link.send(bytes(48), bytes(1 << 20))
        link.flush()
        loop.run_later()
        if lost:
            break
    assert len(lost) == 1 and f"more than {MAX_UNREAD_BYTES} bytes" in lost[0]
    assert link.closed and not link.sending


def test_headers_count_what_they_cost_in_memory(unread):
    loop, link, lost, _ = unread
    sent = 0
    while not lost:
        link.send(bytes(48))
        sent += 1
        if sent % 1000 == 0:
            link.flush()
            loop.run_later()
        assert sent < 2_000_000
    assert sent > 150_000, "what the threads of a whole cluster may wait for is far below"


def test_frames_cost_nothing_and_a_stopped_peer_with_many_of_them_is_kept(unread):
    loop, link, lost, peer = unread
    frames = memoryview(bytearray(1 << 20))
    for _ in range(4 * MAX_UNREAD_BYTES // len(frames)):
        link.send(bytes(48), frames)
        link.flush()
        loop.run_later()
    assert not lost and link.sending
    peer.setblocking(False)
    while link.sending:  # it goes on
        try:
            peer.recv(1 << 20)
        except BlockingIOError:
            link._drain()
    assert link._unread == 0


@pytest.mark.parametrize("queued", [False, True])
def test_what_a_peer_said_before_it_closed_counts_though_it_takes_no_more(unread, queued):
    """As of a node that leaves while pages are on their way to it: sending fails, and it was not lost."""
    loop, link, lost, peer = unread
    heard = []
    link._on_message = lambda link, fields, payload: heard.append(fields[3])
    link.send(bytes(48))
    link.flush()
    while queued and not link.sending:
        link.send(bytes(48), bytes(1 << 20))
        link.flush()
    peer.sendall(pack(Family.METADATA, MetaKind.LEAVE, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    peer.close()  # with bytes that it has not read: the connection is reset
    reset = select.poll()
    reset.register(link.sock, 0)
    assert reset.poll()
    if queued:
        link._ready(select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
    else:
        link.send(bytes(48))
        link.flush()
        loop.run_later()
    assert heard == [MetaKind.LEAVE] and len(lost) == 1


def test_the_first_notices_are_said_and_the_others_counted():
    loop, lines = Loop(), []
    notices = Notices(lines.append, loop.after)
    for number in range(1000):
        notices.say("refusals", f"refused {number}")
    assert lines == [f"refused {number}" for number in range(FIRST)]
    notices.say("others", "another kind has its own budget")
    assert lines.pop() == "another kind has its own budget"
    loop.run_later()
    assert lines[FIRST:] == [f"refusals: {1000 - FIRST} more in {GATHER_S:g} s, the latest: refused 999"]
    notices.say("refusals", "again")
    assert len(lines) == FIRST + 1, "the flood may go on"
    loop.run_later()
    loop.run_later()
    assert not loop.later, "nothing runs when nothing happens"
    notices.say("refusals", "after a pause")
    assert lines[-1] == "after a pause"


GOOD = Region(1, RegionOptions(nbytes=8192), 0x5800_0020_0000, (0, 1))
WELCOME = meta.Welcome(1, 2, "00" * 16, 0, [meta.Member(0, "a:1")], [GOOD])
CANNOT_BE = {
    "no page size": (Region, GOOD, {"options": RegionOptions(8192, page_size=0)}),
    "negative size": (Region, GOOD, {"options": RegionOptions(-1)}),
    "larger than the addresses": (Region, GOOD, {"options": RegionOptions(1 << 60)}),
    "no members": (Region, GOOD, {"members": ()}),
    "members that cannot be": (Region, GOOD, {"members": (0, 64)}),
    "members twice": (Region, GOOD, {"members": (0, 0)}),
    "not aligned": (Region, GOOD, {"address": 4096}),
    "address beyond the machine's": (Region, GOOD, {"address": 1 << 47}),
    "number too large": (Region, GOOD, {"region": 1 << 32}),
    "welcome without the coordinator": (meta.Welcome, WELCOME, {"members": []}),
    "welcome to no number": (meta.Welcome, WELCOME, {"node": 64}),
    "cluster without a name": (meta.Welcome, WELCOME, {"cluster": "xyz"}),
    "epoch too large": (meta.Welcome, WELCOME, {"epoch": 1 << 32}),
    "a region in a welcome": (meta.Welcome, WELCOME, {"regions": [Region(1, RegionOptions(-1), 0, (0,))]}),
    "members without us": (meta.Members, meta.Members(3, [0, 1]), {"nodes": [0, 2]}),
    "members beyond the copyset": (meta.Members, meta.Members(3, [0, 1]), {"nodes": [0, 1, 1 << 40]}),
    "a rank on no node": (meta.Ranks, meta.Ranks({3: 1}), {"missing": {3: 64}}),
    "no rank": (meta.Ranks, meta.Ranks({3: 1}), {"missing": {-1: 0}}),
    "decided too far": (meta.Members, meta.Members(3, [0, 1]), {"decided": 65}),
}


@pytest.mark.parametrize("words", CANNOT_BE)
def test_what_a_coordinator_cannot_mean(words):
    cls, good, change = CANNOT_BE[words]
    border.metadata(good, 1)
    values = {name: getattr(good, name) for name in cls.__struct_fields__} | change
    with pytest.raises(WireError):
        border.metadata(cls(**values), 1)
