"""Much memory is got and freed a part at a time: nobody on the node waits for all of it."""

from __future__ import annotations

import os
from collections import deque
from types import SimpleNamespace

import pytest

from dsm.manager import frames, heaps
from dsm.manager.frames import Frames
from dsm.types import Region, RegionOptions

MIB = 1 << 20


def _region(nbytes, page_size=4096):
    return Region(7, RegionOptions(nbytes=nbytes, page_size=page_size), 1 << 40, (0,))


def _allocated(fd):
    return os.fstat(fd).st_blocks * 512


@pytest.mark.parametrize("ahead", [False, True])
def test_memory_of_a_region_is_freed_in_parts(monkeypatch, ahead):
    monkeypatch.setattr(frames, "FREE_BYTES", MIB)
    memory = Frames(_region(8 * MIB))
    file = os.dup(memory.frames_fd)
    if ahead:
        os.posix_fallocate(memory.frames_fd, 0, 8 * MIB)
        memory.allocates_ahead = True
    else:
        for page in (0, 5, 600, 2047):  # most of it is a hole
            memory.write(page, memoryview(b"\1" * 4096))
    before = [_allocated(file)]
    while not memory.close():
        assert memory.freeing
        before.append(_allocated(file))
        assert before[-2] - before[-1] <= MIB
    assert _allocated(file) == os.fstat(file).st_size == 0
    assert len(before) == (15 if ahead else 5)
    os.close(file)


def test_memory_that_somebody_refers_to_is_not_freed(monkeypatch):
    monkeypatch.setattr(frames, "FREE_BYTES", MIB)
    memory = Frames(_region(4 * MIB))
    for page in range(1024):
        memory.write(page, memoryview(b"\1" * 4096))
    sending = memory.view(100, 2)
    for _ in range(10):
        assert not memory.close()
    assert not memory.freeing, "nothing is to be done before the reference is gone"
    assert bytes(sending) == b"\1" * 8192
    del sending
    while not memory.close():
        assert memory.freeing


class _Node:
    """What the desk of heaps knows of its node."""

    def __init__(self, region):
        self.frames = {region.region: Frames(region)}
        self.coherence = SimpleNamespace(frames=self.frames, claim=self.claim)
        self.loop = SimpleNamespace(after=lambda seconds, callback: self.later.append(callback))
        self.later = deque()
        self.claimed = []

    def claim(self, region, page, count):
        self.claimed += range(page, page + count)

    def allocated(self):
        return _allocated(self.frames[7].frames_fd)


@pytest.mark.parametrize("page_size", [4096, MIB, 2 * MIB])
def test_eager_memory_comes_in_parts(page_size):
    region = _region(6 * MIB, page_size)
    node = _Node(region)
    told = []
    heaps.HeapDesk(node).back(region, told.append)
    parts = 1
    while node.later:
        assert not told and node.allocated() == parts * heaps.BACK_BYTES
        node.later.popleft()()
        parts += 1
    assert told in ([0], [6 * MIB])
    assert parts == 6 * MIB // heaps.BACK_BYTES and node.allocated() == 6 * MIB
    assert node.claimed == list(range(region.pages))
    while not node.frames[7].close():
        pass


def test_eager_memory_of_a_region_that_is_destroyed_meanwhile():
    region = _region(6 * MIB)
    node = _Node(region)
    told = []
    heaps.HeapDesk(node).back(region, told.append)
    assert node.frames.pop(7).close()
    node.later.popleft()()
    assert told == [0] and not node.later
