"""Memory of eager heaps: got piece by piece, all of it, also when it goes away in between."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from dsm.manager import backing
from dsm.manager.frames import Frames
from dsm.types import Region, RegionOptions

MIB = 1 << 20


class Node:
    """A manager's frames, timers and claims."""

    def __init__(self):
        self.timers, self.claims, self.done = [], [], []
        self.frames = {}
        coherence = SimpleNamespace(frames=self.frames, claim=lambda *pages: self.claims.append(pages))
        loop = SimpleNamespace(after=lambda seconds, then: self.timers.append(then))
        self.backing = backing.Backing(SimpleNamespace(coherence=coherence, loop=loop))

    def add(self, number, nbytes, page_size=4096):
        options = RegionOptions(nbytes=nbytes, page_size=page_size)
        self.frames[number] = Frames(Region(number, options, number << 40, (0,)))

    def begin(self, number):
        self.backing.begin(number, lambda locked: self.done.append((number, locked)))

    def step(self):
        [then] = self.timers
        self.timers.clear()
        then()

    def backed(self, number):
        return os.fstat(self.frames[number].frames_fd).st_blocks * 512


@pytest.fixture
def node(monkeypatch):
    """One piece a step; locking is permitted."""
    monkeypatch.setattr(backing, "STEP_NS", 0)
    monkeypatch.setattr(backing, "_libc", SimpleNamespace(mlock=lambda address, nbytes: 0))
    node = Node()
    yield node
    for frames in node.frames.values():
        assert frames.close()


def test_a_region_is_backed_piece_by_piece_and_said_to_be_when_all_is(node):
    node.add(1, 2 * MIB + 5000)
    size = node.frames[1].region.size
    node.begin(1)
    steps = 0
    while node.timers:
        assert node.done == [] and node.backing.pending == size - node.backed(1)
        before = node.backed(1)
        node.step()
        assert 0 < node.backed(1) - before <= backing.PIECE_BYTES
        steps += 1
    assert steps == 5 and node.done == [(1, size)] and node.backed(1) == size
    assert [page for _, low, count in node.claims for page in range(low, low + count)] == list(
        range(size // 4096)
    )


def test_a_step_ends_in_time(node, monkeypatch):
    monkeypatch.setattr(backing, "STEP_NS", 10)
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(backing, "time", SimpleNamespace(monotonic_ns=lambda: next(clock)))
    node.add(1, 16 * backing.PIECE_BYTES)
    node.begin(1)
    node.step()
    assert node.backed(1) == 3 * backing.PIECE_BYTES


def test_large_pages_are_pieces_of_their_own(node):
    node.add(1, 4 * MIB, page_size=2 * MIB)
    node.begin(1)
    node.step()
    assert node.claims == [(1, 0, 1)] and node.backed(1) == 2 * MIB
    node.step()
    assert node.done == [(1, 4 * MIB)]


def test_regions_take_turns(node):
    node.add(1, 8 * backing.PIECE_BYTES)
    node.add(2, backing.PIECE_BYTES)
    node.begin(1)
    node.begin(2)
    node.step()
    node.step()
    assert node.done == [(2, backing.PIECE_BYTES)]
    while node.timers:
        node.step()
    assert node.done[1:] == [(1, 8 * backing.PIECE_BYTES)] and node.backing.pending == 0


def test_a_region_that_is_destroyed_meanwhile_is_done(node):
    node.add(1, 8 * backing.PIECE_BYTES)
    node.begin(1)
    node.step()
    old = node.frames.pop(1)
    node.step()
    assert old.close()  # nobody refers to it
    assert node.done == [(1, 0)] and node.timers == [] and node.backing.pending == 0
    node.begin(1)
    assert node.done == [(1, 0), (1, 0)] and node.timers == []


def test_what_may_not_be_locked_any_more_is_backed_all_the_same(node, monkeypatch):
    room = [0, 0, -1]
    monkeypatch.setattr(backing, "_libc", SimpleNamespace(mlock=lambda address, nbytes: room.pop(0)))
    node.add(1, 8 * backing.PIECE_BYTES)
    node.begin(1)
    while node.timers:
        node.step()
    assert node.done == [(1, 2 * backing.PIECE_BYTES)] and room == []
    assert node.backed(1) == 8 * backing.PIECE_BYTES


def test_memory_that_the_system_does_not_give_comes_page_by_page(node, monkeypatch):
    def refuse(fd, low, nbytes):
        raise OSError(errno.ENOSPC, "no room")

    node.add(1, 2 * backing.PIECE_BYTES)
    node.begin(1)
    node.step()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    node.step()
    assert node.done == [(1, backing.PIECE_BYTES)] and node.timers == []
    assert node.claims == [(1, 0, backing.PIECE_BYTES // 4096)]
