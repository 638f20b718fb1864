"""A pool against a simple model: who has which addresses, and what the figures must then be."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import FullError, InternalError, TooLargeError, UsageError
from dsm.limits import ADDRESS_ALIGNMENT, ADDRESS_LOW
from dsm.memory.buddy import Buddy, smallest_multiple
from dsm.memory.classes import BATCHES, CLASSES, SIZES, class_of
from dsm.memory.pool import Pool

BASE = ADDRESS_LOW
#: Extents of all kinds, small enough to become full.
extent_sizes = st.one_of(
    st.sampled_from([32, 96, 4064, 4096, 16 * 1024, 65_536 + 32, 1 << 20, (1 << 22) + 160, 1 << 40]),
    st.integers(1, 1 << 15).map(lambda count: 32 * count),
)
block_sizes = st.one_of(st.integers(0, 300), st.integers(0, 1 << 17), st.integers(0, 1 << 23))
alignments = st.one_of(st.just(16), st.integers(0, 22).map(lambda power: 1 << power))
classes = st.one_of(st.sampled_from([0, 3, class_of(1024), class_of(16 * 1024)]), st.integers(0, CLASSES - 1))


class Owners(RuleBasedStateMachine):
    """Blocks, objects and extents come and go."""

    @initialize(max_bytes=st.one_of(st.none(), st.integers(0, 1 << 24)))
    def begin(self, max_bytes):
        self.max_bytes = max_bytes
        self.pool = Pool(max_bytes)
        self.next_address = BASE
        #: Address: bytes.
        self.extents = {}
        #: Address: bytes asked for; and address: class.
        self.blocks, self.objects = {}, {}
        self.peak = 0

    def _managed(self):
        return sum(self.extents.values())

    def _place(self, address):
        """Bytes that are this block's, as the pool says: checked against all others in `apart`."""
        return self.pool.usable_size(address)

    # Extents

    @rule(nbytes=extent_sizes, gap=st.sampled_from([0, 32, 4096, 2 << 20]))
    def add_extent(self, nbytes, gap):
        address = self.next_address + gap
        if self.max_bytes is not None and self._managed() + nbytes > self.max_bytes:
            with pytest.raises(FullError):
                self.pool.add_extent(address, nbytes)
            return
        self.pool.add_extent(address, nbytes)
        self.extents[address] = nbytes
        self.next_address = address + nbytes

    @rule(data=st.data(), nbytes=st.sampled_from([32, 4096, 1 << 50]))
    def add_extent_over_another(self, data, nbytes):
        if self.extents:
            start = data.draw(st.sampled_from(sorted(self.extents)))
            with pytest.raises(UsageError, match="overlaps"):
                self.pool.add_extent(start + self.extents[start] - 32, nbytes)

    @rule()
    def remove_empty_extents(self):
        used = {
            start for start in self.extents if any(self._within(start, address) for address in self._out())
        }
        assert sorted(self.pool.empty_extents()) == sorted(self.extents.keys() - used)
        for start in used:
            with pytest.raises(UsageError, match="is in use"):
                self.pool.remove_extent(start)
        for start in self.pool.empty_extents():
            self.pool.remove_extent(start)
            del self.extents[start]

    def _within(self, start, address):
        return start <= address < start + self.extents[start]

    def _out(self):
        return [*self.blocks, *self.objects]

    # Blocks

    @rule(nbytes=block_sizes, align=alignments)
    def allocate(self, nbytes, align):
        address = self.pool.allocate(nbytes, align)
        if address is None:
            figures = self.pool.figures()
            assert align > 32 or (nbytes or 1) > figures.largest_free
            self._grow_for(nbytes, align)
            return
        assert address % align == 0
        assert self.pool.usable_size(address) >= nbytes
        self.blocks[address] = nbytes

    def _grow_for(self, nbytes, align):
        """An extent as large as the pool says holds the block."""
        try:
            needed = self.pool.extent_for(nbytes, align)
        except TooLargeError:
            assert smallest_multiple(nbytes) + align > self.max_bytes
            return
        except FullError:
            assert self._managed() + smallest_multiple(nbytes) + align > self.max_bytes
            return
        start = -(-self.next_address // ADDRESS_ALIGNMENT) * ADDRESS_ALIGNMENT
        self.pool.add_extent(start, needed)
        self.extents[start] = needed
        self.next_address = start + needed
        address = self.pool.allocate(nbytes, align)
        assert address is not None and self._within(start, address) and address % align == 0
        self.blocks[address] = nbytes

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data):
        address = data.draw(st.sampled_from(sorted(self.blocks)))
        assert self.pool.free(address) >= self.blocks.pop(address)
        with pytest.raises(UsageError):
            self.pool.free(address)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), nbytes=block_sizes)
    def grow(self, data, nbytes):
        address = data.draw(st.sampled_from(sorted(self.blocks)))
        before = self.pool.usable_size(address)
        if self.pool.grow(address, nbytes):
            self.blocks[address] = nbytes
            assert self.pool.usable_size(address) >= max(nbytes, before)
        else:
            assert nbytes > before == self.pool.usable_size(address)

    # Objects

    @rule(cls=classes, count=st.integers(0, 70))
    def take(self, cls, count):
        taken = self.pool.take(cls, count)
        assert len(taken) == len(set(taken)) <= count
        if len(taken) < count:
            assert self.pool.figures().largest_free < SIZES[cls], "only if not even one block is left"
        for address in taken:
            assert address not in self.blocks and address not in self.objects
            assert self.pool.usable_size(address) >= SIZES[cls]
            self.objects[address] = cls

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def give(self, data):
        given = data.draw(st.lists(st.sampled_from(sorted(self.objects)), unique=True, max_size=40))
        wrong = data.draw(st.lists(st.sampled_from([BASE - 1, 0, self.next_address + 64]), max_size=2))
        cut = data.draw(st.integers(0, len(given)))
        # Some are given twice in the same batch.
        again = given[:2] if given else []
        assert self.pool.give([*given[:cut], *wrong, *given[cut:], *again]) == [*wrong, *again]
        for address in given:
            del self.objects[address]

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def free_object(self, data):
        address = data.draw(st.sampled_from(sorted(self.objects)))
        size = self.pool.usable_size(address)
        assert self.pool.grow(address, size)
        assert self.pool.free(address) == size
        del self.objects[address]

    @rule(data=st.data(), past=st.sampled_from([-32, -16, -1, 0, 1, 16, 32]))
    def nonsense(self, data, past):
        edges = [BASE, self.next_address, *self.blocks, *self.objects, *self.extents]
        address = data.draw(st.sampled_from(edges)) + past
        if address in self.blocks or address in self.objects:
            return
        for call in (self.pool.free, self.pool.usable_size, lambda place: self.pool.grow(place, 1)):
            with pytest.raises(UsageError, match="is no block"):
                call(address)
        assert self.pool.give([address]) == [address]

    # What holds always

    @invariant()
    def apart(self):
        if not hasattr(self, "pool"):
            return
        places = sorted((address, address + self.pool.usable_size(address)) for address in self._out())
        assert all(end <= start for (_, end), (start, _) in pairwise(places)), "blocks overlap"
        starts = sorted(self.extents)
        for address, end in places:
            start = max(start for start in starts if start <= address)
            assert end <= start + self.extents[start], "a block reaches beyond its extent"

    @invariant()
    def true_figures(self):
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        figures = self.pool.figures()
        used = sum(self.pool.usable_size(address) for address in self._out())
        used += sum(self.pool._shifts.values())
        self.peak = max(self.peak, used)
        assert figures.extents == len(self.extents)
        assert figures.managed == self._managed() == figures.used + figures.spare + figures.free
        assert figures.used == used
        assert figures.live == len(self.blocks) + len(self.objects)
        assert figures.asked == sum(self.blocks.values()) + sum(SIZES[cls] for cls in self.objects.values())
        # Between two looks a call may only have used more for a moment.
        assert figures.peak == self.peak
        assert 0 <= figures.internal_fragmentation <= 1
        assert 0 <= figures.external_fragmentation <= 1

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for address in self.blocks:
            self.pool.free(address)
        assert self.pool.give(self.objects) == []
        self.pool.check()
        figures = self.pool.figures()
        assert (figures.used, figures.live, figures.asked, figures.spans) == (0, 0, 0, 0)
        assert sorted(self.pool.empty_extents()) == sorted(self.extents)
        for start, nbytes in self.extents.items():
            assert self.pool._extents.at(start).buddy._free == Buddy(nbytes)._free, "one decomposition again"
        assert figures.largest_free == max(self.extents.values(), default=0)


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_figures_of_a_pool_said_in_numbers():
    pool = Pool()
    pool.add_extent(BASE, 1 << 20)
    assert pool.allocate(1000) == BASE
    assert len(pool.take(class_of(64), 3)) == 3
    figures = pool.figures()
    assert (figures.managed, figures.used, figures.asked, figures.live) == (1 << 20, 1024 + 192, 1192, 4)
    assert figures.spare == 16 * 1024 - 192
    assert figures.free == (1 << 20) - 1024 - 16 * 1024
    assert figures.largest_free == 1 << 19
    assert figures.internal_fragmentation == 1 - 1192 / 1216
    assert figures.external_fragmentation == 1 - (1 << 19) / figures.free
    pool.free(BASE)
    assert pool.figures().used == 192
    assert pool.figures().peak == 1216


def test_figures_of_a_pool_without_extents():
    figures = Pool().figures()
    assert (figures.managed, figures.free, figures.largest_free, figures.peak) == (0, 0, 0, 0)
    assert (figures.internal_fragmentation, figures.external_fragmentation) == (0, 0)


def _first_span(pool):
    return next(iter(pool._extents.at(BASE).spans.values()))


def _lose_half_a_span(pool):
    pool.take(class_of(112), 1)
    next(extent for extent in pool._extents if len(extent.spans) == 2).spans.popitem()


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda pool: setattr(pool, "_managed", 7), "managed bytes are counted as 7 and are"),
        (lambda pool: setattr(pool, "_used", 7), "used bytes are counted as 7 and are"),
        (lambda pool: setattr(pool, "_asked_bytes", 7), "asked bytes are counted as 7 and are 1000"),
        (lambda pool: setattr(pool, "_objects", 7), "objects are counted as 7 and are 5"),
        (lambda pool: setattr(pool, "_object_bytes", 7), "object bytes are counted as 7 and are 320"),
        (lambda pool: setattr(pool, "_spans", 7), "spans are counted as 7 and are 1"),
        (lambda pool: setattr(pool, "_span_bytes", 7), "span bytes are counted as 7 and are 16384"),
        (lambda pool: setattr(pool, "_peak", 7), "a peak is lower"),
        (lambda pool: setattr(pool, "_peak_managed", 7), "a peak is lower"),
        (lambda pool: pool._extents._starts.reverse(), "the list of extents is not in order"),
        (
            lambda pool: pool._extents._starts.pop(),
            "extents is not in order, or does not name each",
        ),
        (lambda pool: setattr(pool._extents.at(BASE), "end", BASE + 32), "the extent at .* overlaps"),
        (lambda pool: pool._extents.at(BASE).buddy._used.clear(), "buddy: bytes from 0 to"),
        (lambda pool: pool._extents._empty.clear(), "is wrong about being empty"),
        (lambda pool: pool._extents._empty.update({BASE: None}), "is wrong about being empty"),
        (
            lambda pool: setattr(pool._extents.at(BASE), "top", 7),
            "filed under its largest free",
        ),
        (
            lambda pool: pool._extents._by_top[6].update({1: pool._extents.at(BASE)}),
            "an extent is filed that does not exist",
        ),
        (lambda pool: setattr(pool._extents, "_tops", 0), "bit .* of the extents' orders"),
        (lambda pool: setattr(_first_span(pool), "end", BASE), "is no block of its buddy"),
        (_lose_half_a_span, "is not found by its addresses"),
        (
            lambda pool: pool._extents.at(BASE).spans.update({9: _first_span(pool)}),
            "is found where it is not",
        ),
        (lambda pool: pool._extents.at(BASE).spans.clear(), "the block at .* belongs to nobody"),
        (lambda pool: setattr(_first_span(pool), "live", 4), "4 objects are counted, the map has 5"),
        (lambda pool: _first_span(pool).out.__setitem__(0, 2), "5 objects are counted, the map has 6"),
        (lambda pool: setattr(_first_span(pool), "fresh", 1), "its untouched part begins at 0x1"),
        (lambda pool: _first_span(pool).spare.pop(), "objects were lost"),
        (lambda pool: _first_span(pool).spare.__setitem__(0, _first_span(pool).spare[1]), "is here twice"),
        (lambda pool: _first_span(pool).spare.__setitem__(0, _first_span(pool).start), "is here and out"),
        (lambda pool: pool._partial[3].clear(), "not filed under what it has to give"),
        (lambda pool: pool._partial[4].update({object(): None}), "a span is filed that does not exist"),
        (lambda pool: pool._asked.update({BASE + 1 << 19: 1}), "is none of its buddy's"),
        (lambda pool: pool._asked.clear(), "the block at .* belongs to nobody"),
        (lambda pool: pool._shifts.update({BASE + 64: 32}), "a shift is kept of a block that is not out"),
    ],
)
def test_the_check_names_what_does_not_hold(break_it, named):
    pool = Pool()
    pool.add_extent(BASE, 1 << 20)
    pool.allocate(1000)
    objects = pool.take(class_of(64), BATCHES[3])
    pool.give(objects[5:])
    pool.add_extent(BASE + (8 << 20), 1 << 16)
    pool.check()
    break_it(pool)
    with pytest.raises(InternalError, match=named):
        pool.check()


def test_the_check_sees_an_empty_span_that_stayed():
    pool = Pool()
    pool.add_extent(BASE, 1 << 20)
    (address,) = pool.take(0, 1)
    span = _first_span(pool)
    span.out[0], span.live = 0, 0
    span.spare.append(address)
    with pytest.raises(InternalError, match="is empty and was not given back"):
        pool.check()
