"""Twins of a region's pages, and what they cost."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest

from dsm.errors import InternalError, LimitError, WireError
from dsm.limits import MAX_DIFF_BYTES
from dsm.manager import twins as module
from dsm.manager.frames import Frames
from dsm.manager.twins import Twins
from dsm.types import Region, RegionOptions

PAGE = 4096


def rows(*runs):
    return np.array(runs, np.int64).reshape(-1, 2)


class Side:
    """One node's frames and twins of a region."""

    def __init__(self, pages=16, page_size=PAGE):
        options = RegionOptions(nbytes=pages * page_size, page_size=page_size, consistency="release")
        self.frames = Frames(Region(1, options, 0x5900_0000_0000, (0, 1)))
        self.twins = Twins(self.frames)

    @property
    def bytes(self):
        return np.frombuffer(self.frames.view(0, self.frames.region.pages), np.uint8)

    def close(self):
        self.twins.close()
        assert self.frames.close()


@pytest.fixture
def side():
    made = []

    def make(**options):
        made.append(Side(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_a_writer_changed_arrives_at_the_home(side):
    writer, home = side(), side()
    writer.twins.make(2, 4)
    writer.twins.make(9, 1)
    writer.bytes[2 * PAGE : 6 * PAGE : 7] = 9
    writer.bytes[9 * PAGE + 5] = 8
    [payload], changed = writer.twins.diff(rows((2, 4), (9, 1)))
    assert changed.tolist() == home.frames.named(payload).tolist() == [[2, 4], [9, 1]]
    home.frames.apply(payload)
    assert (home.bytes == writer.bytes).all()


def test_a_page_that_was_not_changed_is_not_named(side):
    writer = side()
    writer.twins.make(0, 16)
    writer.bytes[PAGE * 3] = 1
    payloads, changed = writer.twins.diff(rows((0, 16)))
    assert len(payloads) == 1 and changed.tolist() == [[3, 1]]
    writer.twins.make(0, 16)
    payloads, changed = writer.twins.diff(rows((0, 16)))
    assert payloads == [] and changed.tolist() == []


def test_a_part_is_applied_and_another_forwarded(side):
    writer, home, other = side(), side(), side()
    writer.twins.make(0, 16)
    writer.bytes[:] = 5
    [payload], _ = writer.twins.diff(rows((0, 16)))
    home.frames.apply(payload, rows((0, 3), (8, 2)))
    other.frames.apply(home.frames.forwarded(payload, rows((3, 5), (10, 6))))
    assert (home.bytes + other.bytes == 5).all()
    assert home.frames.forwarded(payload, rows()) == b""


def test_what_is_kept_is_compared_with_what_was_sent(side):
    writer = side()
    writer.twins.make(1, 1)
    writer.bytes[PAGE] = 1
    assert len(writer.twins.diff(rows((1, 1)), keep=True)[0]) == 1
    assert writer.twins.diff(rows((1, 1)), keep=True)[0] == []
    writer.bytes[PAGE + 1] = 1
    assert len(writer.twins.diff(rows((1, 1)))[0]) == 1
    with pytest.raises(InternalError, match="has no twin"):
        writer.twins.diff(rows((1, 1)))


def test_a_second_twin_is_an_error(side):
    writer = side()
    writer.twins.make(4, 2)
    with pytest.raises(InternalError, match="pages 3 to 4 of region 1 have a twin"):
        writer.twins.make(3, 2)
    writer.twins.drop(rows((0, 16)))
    writer.twins.make(3, 2)


def test_messages_are_no_larger_than_their_limit(side):
    writer, home = side(pages=6, page_size=2 << 20), side(pages=6, page_size=2 << 20)
    writer.twins.make(0, 6)
    writer.bytes[:] = 1
    payloads, changed = writer.twins.diff(rows((0, 6)))
    assert [len(payload) <= MAX_DIFF_BYTES for payload in payloads] == [True] * 4
    assert changed.tolist() == [[0, 6]]
    for payload in payloads:
        home.frames.apply(payload)
    assert (home.bytes == 1).all()


def test_nothing_of_a_malformed_payload_is_stored(side):
    writer, home = side(), side(pages=3)
    writer.twins.make(0, 16)
    writer.bytes[::PAGE] = 1
    [payload], _ = writer.twins.diff(rows((0, 16)))
    for wrong in (b"", payload, payload[:-1], bytes(8)):
        for use in (home.frames.apply, home.frames.named, lambda data: home.frames.forwarded(data, rows())):
            with pytest.raises(WireError, match="not well formed"):
                use(wrong)
    assert not home.bytes.any()


def test_twins_of_frames_that_were_never_touched_are_zeros(side):
    writer, home = side(pages=64), side(pages=64)
    writer.bytes[8 * PAGE] = 1  # so that only what lies beside it is a hole
    writer.twins.make(0, 64)
    writer.twins.drop(rows((0, 64)))
    for start, count in [(9, 20), (0, 9), (29, 35)]:
        writer.twins.make(start, count)
    writer.bytes[::5] = 3
    payloads, changed = writer.twins.diff(rows((0, 64)))
    for payload in payloads:
        home.frames.apply(payload)
    home.bytes[8 * PAGE] = writer.bytes[8 * PAGE]
    assert (home.bytes == writer.bytes).all() and changed.tolist() == [[0, 64]]


def test_a_twin_of_zeros_where_an_old_one_was_is_zeros(side):
    writer = side(pages=32)
    writer.bytes[:] = 7
    writer.twins.make(0, 32)
    writer.twins.drop(rows((0, 32)))
    writer.frames.reclaim(np.zeros(32, np.uint8))
    writer.twins.make(0, 32)
    assert not writer.bytes.any()
    assert writer.twins.diff(rows((0, 32)))[0] == []


def test_frames_whose_memory_was_given_back_are_stored_into(side):
    writer, home = side(pages=32), side(pages=32)
    for value in (1, 2):
        writer.twins.make(0, 32)
        writer.bytes[::9] = value
        [payload], _ = writer.twins.diff(rows((0, 32)))
        home.frames.apply(payload)
        assert (home.bytes == writer.bytes).all()
        home.frames.reclaim(np.zeros(32, np.uint8))
        assert not home.bytes.any()
        writer.frames.reclaim(np.zeros(32, np.uint8))


def test_memory_of_frames_that_were_given_a_twin_and_never_written_can_be_given_back(side):
    writer = side(pages=256)
    writer.twins.make(0, 256)
    writer.twins.drop(rows((0, 256)))
    assert os.fstat(writer.frames.frames_fd).st_blocks
    writer.frames.reclaim(np.zeros(256, np.uint8))
    assert not os.fstat(writer.frames.frames_fd).st_blocks


def _resident(twins):
    """Return how many bytes of the twins' map have memory, whatever else this process has."""
    first = np.frombuffer(twins._map, np.uint8).ctypes.data
    pages = np.zeros(len(twins._map) // PAGE, np.uint8)
    arguments = [ctypes.c_void_p(first), ctypes.c_size_t(len(twins._map)), ctypes.c_void_p(pages.ctypes.data)]
    assert ctypes.CDLL(None).mincore(*arguments) == 0
    return int((pages & 1).sum()) * PAGE


def test_ended_twins_keep_a_bounded_amount_of_memory(side, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 4 << 20)
    writer = side(pages=4096)
    writer.bytes[:] = 1
    for start in range(0, 4096, 256):
        writer.twins.make(start, 256)
        writer.twins.diff(rows((start, 256)))
    assert _resident(writer.twins) <= 4 << 20
    writer.twins.make(0, 4096)
    assert _resident(writer.twins) == 16 << 20
    writer.bytes[::PAGE] = 2
    _, changed = writer.twins.diff(rows((0, 4096)))
    assert changed.tolist() == [[0, 4096]]
    assert _resident(writer.twins) <= 4 << 20


def test_a_region_without_twins_has_no_map_for_them(side, monkeypatch):
    made = []
    real = module.mmap.mmap
    writer = side()
    monkeypatch.setattr(module.mmap, "mmap", lambda *words: made.append(words[1]) or real(*words))
    writer.twins.drop(rows((0, 10)))
    assert writer.twins.diff(rows())[0] == [] and made == []
    writer.twins.make(0, 1)
    assert made == [writer.frames.region.size]


def test_no_addresses_for_twins_is_said_so(side, monkeypatch):
    def refuse(*arguments):
        raise OSError(12, "Cannot allocate memory")

    writer = side()
    monkeypatch.setattr(module.mmap, "mmap", refuse)
    with pytest.raises(LimitError, match="twins of region 1"):
        writer.twins.make(0, 1)
