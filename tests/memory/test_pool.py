"""A pool: blocks of any size and objects of size classes over extents that come and go."""

import pytest

from dsm.errors import FullError, TooLargeError, UsageError
from dsm.limits import ADDRESS_LOW
from dsm.memory.classes import class_of, span_bytes
from dsm.memory.pool import Pool

BASE = ADDRESS_LOW
MIB = 1 << 20


def _pool(*sizes):
    pool, address = Pool(), BASE
    for size in sizes:
        pool.add_extent(address, size)
        address += (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB) + 2 * MIB
    return pool


def test_a_pool_that_is_no_power_of_two_gives_all_its_bytes_in_one_block():
    for nbytes in (32, 96, 4064, 7 * 1024, 100_000 * 32, 3 * MIB, (1 << 40) + 32):
        pool = _pool(nbytes)
        assert pool.figures().largest_free == nbytes
        assert pool.allocate(nbytes) == BASE
        assert pool.allocate(1) is None
        pool.free(BASE)
        pool.check()


def test_a_pool_without_room_says_none_and_an_extent_helps():
    pool = _pool(MIB)
    assert pool.allocate(2 * MIB) is None
    pool.add_extent(BASE + 16 * MIB, pool.extent_for(2 * MIB))
    assert pool.allocate(2 * MIB) == BASE + 16 * MIB


def test_an_extent_of_the_size_asked_for_holds_the_block():
    for nbytes in (1, 33, 5 * MIB + 1, 100_000_000):
        for align in (16, 4096, MIB, 1 << 30):
            pool = Pool()
            pool.add_extent(BASE + 2 * MIB, pool.extent_for(nbytes, align))
            address = pool.allocate(nbytes, align)
            assert address is not None and address % align == 0
            pool.check()


def test_memory_is_given_back_when_it_is_empty():
    pool = _pool(MIB, MIB)
    blocks = [pool.allocate(600_000), pool.allocate(600_000)]
    assert pool.empty_extents() == []
    assert [pool.free(block) for block in blocks] == [655_360] * 2
    assert sorted(pool.empty_extents()) == sorted(block for block in blocks)
    for extent in pool.empty_extents():
        pool.remove_extent(extent)
    assert pool.figures().managed == 0
    pool.check()


def test_an_extent_in_use_stays():
    pool = _pool(MIB)
    pool.allocate(100)
    with pytest.raises(UsageError, match="is in use: 128 of 1048576 bytes are given away"):
        pool.remove_extent(BASE)
    with pytest.raises(UsageError, match="no extent at"):
        pool.remove_extent(BASE + 32)


def test_too_large_and_full_are_different():
    pool = Pool(max_bytes=4 * MIB)
    with pytest.raises(TooLargeError, match="the whole pool may have at most 4194304"):
        pool.extent_for(4 * MIB + 1)
    pool.add_extent(BASE, 3 * MIB)
    with pytest.raises(FullError, match="may grow by 1048576 bytes"):
        pool.extent_for(2 * MIB)
    assert pool.extent_for(MIB) == MIB
    with pytest.raises(FullError, match="of at most 4194304 bytes"):
        pool.add_extent(BASE + 16 * MIB, 2 * MIB)


@pytest.mark.parametrize(
    ("address", "nbytes", "text"),
    [
        (0, 4096, "positive multiple of 32"),
        (-32, 4096, "positive multiple of 32"),
        (BASE + 16, 4096, "positive multiple of 32"),
        (BASE, 0, "an extent of 0 bytes"),
        (BASE, 31, "an extent of 31 bytes"),
        (BASE, 4095, "an extent of 4095 bytes"),
        (BASE, -32, "an extent of -32 bytes"),
        (BASE + 8 * MIB, 4096, "overlaps"),
        (BASE + 8 * MIB - 32, 64, "overlaps"),
        (BASE + 8 * MIB + 4064, 64, "overlaps"),
    ],
)
def test_a_wrong_extent(address, nbytes, text):
    pool = Pool()
    pool.add_extent(BASE + 8 * MIB, 4096)
    with pytest.raises(UsageError, match=text):
        pool.add_extent(address, nbytes)
    pool.check()
    assert pool.figures().managed == 4096


def test_what_is_no_block_is_named():
    pool = _pool(MIB)
    block = pool.allocate(1000)
    pool.allocate(1000)
    (first,) = pool.take(class_of(64), 1)
    pool.take(class_of(64), 1)
    with pytest.raises(UsageError, match="lies in no extent"):
        pool.free(BASE - 32)
    with pytest.raises(UsageError, match="inside a block, not at its start"):
        pool.free(block + 32)
    with pytest.raises(UsageError, match="16 bytes inside an object of 64 bytes"):
        pool.free(first + 16)
    assert pool.free(block) == 1024
    with pytest.raises(UsageError, match=r"is free \(freed twice\?\)"):
        pool.free(block)
    assert pool.free(first) == 64
    with pytest.raises(UsageError, match=r"is free \(freed twice\?\)"):
        pool.free(first)
    pool.check()


@pytest.mark.parametrize(("nbytes", "align"), [(-1, 16), (1, 0), (1, -16), (1, 24)])
def test_nonsense_is_refused(nbytes, align):
    pool = _pool(MIB)
    for call in (pool.allocate, pool.extent_for):
        with pytest.raises(UsageError):
            call(nbytes, align)


def test_something_huge_does_not_fit():
    pool = _pool(MIB)
    for nbytes in (MIB + 1, 1 << 63, (1 << 64) - 1, 1 << 64, (1 << 64) + 1, 1 << 100):
        assert pool.allocate(nbytes) is None
        assert pool.grow(pool.allocate(1), nbytes) is False
    pool.check()


def test_nothing_is_a_block_of_its_own():
    pool = _pool(MIB)
    first, second = pool.allocate(0), pool.allocate(0)
    assert first != second
    assert pool.usable_size(first) == 32


def test_blocks_of_nothing_are_apart_and_aligned_where_an_extent_is_not():
    pool = Pool()
    pool.add_extent(BASE + 32, 4096)
    blocks = [pool.allocate(0, 64) for _ in range(8)]
    assert len(set(blocks)) == 8
    assert all(block % 64 == 0 and pool.usable_size(block) >= 32 for block in blocks)
    pool.check()
    assert sum(pool.free(block) for block in blocks) == 8 * 64
    assert pool.figures().largest_free == 4096


def test_a_block_grows_where_it_lies_while_memory_behind_it_is_free():
    pool = _pool(MIB)
    block, second = pool.allocate(4096), pool.allocate(4096)
    assert second == block + 4096
    assert not pool.grow(block, 4097)
    pool.free(second)
    assert pool.grow(block, 5 * 65536)
    assert pool.usable_size(block) == 5 * 65536
    assert pool.grow(block, MIB)
    assert pool.figures().asked == pool.figures().used == MIB
    assert not pool.grow(block, MIB + 1)
    assert pool.free(block) == MIB
    pool.check()


def test_objects_come_and_go_in_batches_and_an_empty_span_goes_back():
    pool = _pool(MIB)
    cls = class_of(100)
    objects = pool.take(cls, 300)
    assert len(set(objects)) == 300
    assert {pool.usable_size(address) for address in objects} == {112}
    figures = pool.figures()
    assert (figures.spans, figures.span_bytes) == (2, 2 * span_bytes(cls))
    assert (figures.used, figures.spare) == (300 * 112, 2 * span_bytes(cls) - 300 * 112)
    assert pool.give(objects[::2]) == []
    pool.check()
    again = pool.take(cls, 150)
    assert len({*again, *objects[1::2]}) == 300
    assert pool.figures().spans == 2, "what came back is used before another span is cut"
    assert pool.give(again) == pool.give(objects[1::2]) == []
    assert pool.figures().free == MIB
    assert pool.empty_extents() == [BASE]
    pool.check()


def test_objects_given_twice_are_refused_each_and_the_others_are_taken():
    pool = _pool(MIB)
    objects = pool.take(class_of(64), 10)
    block = pool.allocate(64)
    wrong = [objects[3], objects[3] + 8, BASE - 64, block + 32]
    assert pool.give([*objects[:5], *wrong, block, *objects[5:9]]) == wrong
    assert pool.figures().live == 1
    assert "freed twice" in pool.explain(objects[3])
    assert pool.explain(objects[9]) == "an object of 64 bytes starts there"
    pool.check()


def test_where_no_span_fits_single_blocks_are_given():
    pool = _pool(1000 * 32)
    cls = class_of(1024)
    objects = pool.take(cls, 100)
    assert len(objects) == 31
    pool.check()
    assert pool.give(objects) == []
    assert pool.figures().used == 0
    pool.check()


def test_two_pools_know_nothing_of_each_other():
    first, second = _pool(MIB), _pool(MIB)
    first.allocate(MIB)
    assert second.figures().used == 0
    assert second.allocate(MIB) == BASE
