"""Much memory is freed a part at a time: nobody on the node waits for all of it."""

from __future__ import annotations

import os

import pytest

from dsm.manager import frames
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
