"""The buddy allocator of one extent, against a list of intervals."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import InternalError, UsageError
from dsm.memory.buddy import MIN_BLOCK_BYTES, Buddy, rounded, smallest_multiple

#: Extents of all kinds: one block, odd multiples of 32 bytes, just below and above powers of two, huge.
EXTENTS = [32, 64, 96, 4096 - 32, 4096, 4096 + 32, 7 * 1024, 31 * 32, 12_345 * 32, (1 << 40) - 32, 1 << 40]
sizes = st.one_of(st.integers(0, 200), st.integers(0, 1 << 16), st.integers(0, 1 << 41))


class Intervals(RuleBasedStateMachine):
    """Blocks are intervals: aligned, inside the extent, apart; what is free is what lies between them."""

    @initialize(nbytes=st.one_of(st.sampled_from(EXTENTS), st.integers(1, 1 << 13).map(lambda n: 32 * n)))
    def begin(self, nbytes):
        self.nbytes = nbytes
        self.buddy = Buddy(nbytes)
        #: Offset: end.
        self.blocks = {}

    def _free(self, start, end):
        return end <= self.nbytes and all(end <= low or high <= start for low, high in self.blocks.items())

    @rule(nbytes=sizes, power=st.one_of(st.just(0), st.integers(0, 14), st.integers(0, 41)))
    def allocate(self, nbytes, power):
        largest, needed = self.buddy.largest_free, nbytes or 1
        offset = self.buddy.allocate(nbytes, 1 << power)
        if power <= 5:
            assert (offset is None) == (needed > largest), "the figure says exactly what is to be had"
        if offset is None:
            assert needed > largest or not self._whole_power(max(needed, 1 << power))
            return
        assert offset % max(1 << power, MIN_BLOCK_BYTES) == 0
        size = self.buddy.size_of(offset)
        assert size in (rounded(nbytes), smallest_multiple(nbytes))
        assert self._free(offset, offset + size)
        self.blocks[offset] = offset + size

    def _whole_power(self, nbytes):
        """True if a free block of the power of two that holds `nbytes` exists."""
        return 1 << self.buddy.largest_order >= nbytes if self.buddy.largest_order >= 0 else False

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data):
        offset = data.draw(st.sampled_from(sorted(self.blocks)))
        assert self.buddy.free(offset) == self.blocks.pop(offset) - offset

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), nbytes=sizes)
    def grow(self, data, nbytes):
        offset = data.draw(st.sampled_from(sorted(self.blocks)))
        end = self.blocks.pop(offset)
        wanted = offset + smallest_multiple(nbytes)
        fits = wanted <= end or self._free(end, wanted)
        assert self.buddy.grow(offset, nbytes) == fits, "exactly where the bytes behind are free"
        self.blocks[offset] = offset + self.buddy.size_of(offset)
        assert self.blocks[offset] >= (wanted if fits else end)

    @rule(data=st.data(), past=st.integers(-64, 64))
    def free_nonsense(self, data, past):
        around = st.sampled_from([0, self.nbytes, *self.blocks, *self.blocks.values()])
        offset = data.draw(around) + past
        if offset in self.blocks:
            return
        within = any(low < offset < high for low, high in self.blocks.items())
        if not 0 <= offset < self.nbytes:
            why = f"the extent has {self.nbytes} bytes"
        else:
            why = "inside a block, not at its start" if within else r"its memory is free \(freed twice\?\)"
        with pytest.raises(UsageError, match=why):
            self.buddy.free(offset)

    @invariant()
    def whole(self):
        if not hasattr(self, "buddy"):
            return
        self.buddy.check()
        assert self.buddy.blocks() == {low: high - low for low, high in self.blocks.items()}
        edges = sorted(self.blocks.items())
        assert all(high <= low for (_, high), (low, _) in pairwise(edges))
        assert self.buddy.free_bytes == self.nbytes - sum(high - low for low, high in edges)
        assert len(self.buddy) == len(self.blocks)

    def teardown(self):
        if not hasattr(self, "buddy"):
            return
        for offset in self.blocks:
            self.buddy.free(offset)
        assert self.buddy._free == Buddy(self.nbytes)._free, "all is one decomposition again"
        assert self.buddy.largest_free == self.nbytes


TestIntervals = Intervals.TestCase
TestIntervals.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("nbytes", EXTENTS)
def test_an_untouched_extent_holds_a_block_of_each_size_up_to_its_own(nbytes):
    for size in {1, 32, nbytes // 3, nbytes // 2 + 1, nbytes - 1, nbytes}:
        buddy = Buddy(nbytes)
        assert buddy.allocate(size) is not None
        buddy.check()
    assert Buddy(nbytes).allocate(nbytes + 1) is None


@pytest.mark.parametrize("nbytes", EXTENTS[:-2])
def test_an_extent_is_used_up_to_its_last_32_bytes(nbytes):
    buddy = Buddy(nbytes)
    offsets = {buddy.allocate(32) for _ in range(nbytes // 32)}
    assert offsets == set(range(0, nbytes, 32))
    assert buddy.allocate(1) is None
    assert buddy.free_bytes == buddy.largest_free == 0
    buddy.check()


@pytest.mark.parametrize("nbytes", [-32, -1, 0, 1, 31, 33, 4095])
def test_what_is_no_extent(nbytes):
    with pytest.raises(UsageError, match=f"extent of {nbytes} bytes"):
        Buddy(nbytes)


def test_a_negative_size_is_refused():
    buddy = Buddy(4096)
    with pytest.raises(UsageError, match="-1 bytes: pass a number that is not negative"):
        buddy.allocate(-1)
    assert buddy.free_bytes == 4096


@given(nbytes=st.integers(0, 1 << 64))
def test_at_most_an_eighth_is_wasted_beyond_the_smallest_block(nbytes):
    size = rounded(nbytes)
    assert smallest_multiple(nbytes) <= size
    assert size - (nbytes or 1) < max(32, size / 8)
    assert rounded(size) == size
    assert size % 32 == 0


def test_blocks_that_were_apart_are_one_again():
    buddy = Buddy(1 << 20)
    blocks = [buddy.allocate(1 << 16) for _ in range(16)]
    for offset in blocks[::2]:
        buddy.free(offset)
    assert buddy.largest_free == 1 << 16
    for offset in blocks[1::2]:
        buddy.free(offset)
    assert buddy.largest_free == 1 << 20


class _Counted(dict):
    """A set of free blocks that counts what is done to it."""

    steps = 0

    def _count(name, whole=False):
        def counted(self, *args):
            _Counted.steps += len(self) if whole else 1
            return getattr(dict, name)(self, *args)

        return counted

    __contains__ = _count("__contains__")
    __setitem__ = _count("__setitem__")
    __delitem__ = _count("__delitem__")
    popitem = _count("popitem")
    __iter__ = _count("__iter__", whole=True)
    keys, items, values = _count("keys", True), _count("items", True), _count("values", True)


@pytest.mark.parametrize("power", [10, 20, 40, 60])
@pytest.mark.parametrize("end", [0, -32])
def test_steps_grow_with_the_logarithm_of_the_extent(power, end):
    """The worst cases: one small block from a whole extent and back, with thousands of others or none."""
    buddy = Buddy((1 << power) + end)
    buddy._free = [_Counted(blocks) for blocks in buddy._free]

    def steps(call, *args):
        _Counted.steps = 0
        return call(*args), _Counted.steps

    bound = 4 * power + 8
    for others in (0, 3000):
        others = [buddy.allocate(32) for _ in range(others)]
        offset, taken = steps(buddy.allocate, 32)
        if offset is not None:
            assert taken <= bound
            _, taken = steps(buddy.grow, offset, 1 << power - 1)
            assert taken <= bound * power
            assert steps(buddy.free, offset)[1] <= bound
        assert steps(buddy.allocate, 1 << power + 1)[1] <= bound
        for other in others[::2]:
            if other is not None:
                assert steps(buddy.free, other)[1] <= bound
        buddy.check()


def test_a_terabyte_costs_what_a_kilobyte_costs():
    """The books are as large as there are blocks."""

    def books(buddy):
        return sum(map(sys.getsizeof, buddy._free)) + sys.getsizeof(buddy._used)

    small, huge = Buddy(1024), Buddy(1 << 40)
    assert books(huge) < 2 * books(small) + 30 * sys.getsizeof({})
    huge.allocate(1 << 39)
    huge.check()
    assert huge.largest_free == 1 << 39


def _lose_a_free_block(buddy):
    buddy._free[11].clear()
    buddy._orders &= ~(1 << 11)


def _split(buddy):
    del buddy._free[11][2048]
    buddy._free[10].update({2048: None, 3072: None})
    buddy._orders = buddy._orders & ~(1 << 11) | 1 << 10


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda buddy: buddy._used.update({2048: 64}), "two blocks overlap at 2048"),
        (lambda buddy: buddy._used.update({0: 4096}), "two blocks overlap at"),
        (lambda buddy: buddy._used.update({0: 512}), "bytes from 512 to 1024 belong to no block"),
        (lambda buddy: buddy._used.pop(0), "bytes from 0 to 1024 belong to no block"),
        (_lose_a_free_block, "blocks end at 2048, the extent at 4096"),
        (_split, "free buddies of order 10 at 2048 are not one block"),
        (lambda buddy: buddy._free[10].update({1040: None}), "free block of order 10 at 1040 is not aligned"),
        (lambda buddy: buddy._free[4].update({0: None}), "bit 4 of the free orders"),
        (lambda buddy: setattr(buddy, "_orders", 1 << 11), "bit 10 of the free orders"),
        (lambda buddy: setattr(buddy, "free_bytes", 3073), "3072 bytes are free, 3073 are counted"),
        (lambda buddy: buddy._used.update({0: 1023}), "block of 1023 bytes at 0 is no multiple"),
    ],
)
def test_the_check_names_what_does_not_hold(break_it, named):
    buddy = Buddy(4096)
    assert buddy.allocate(1024) == 0
    buddy.check()
    break_it(buddy)
    with pytest.raises(InternalError, match=named):
        buddy.check()
