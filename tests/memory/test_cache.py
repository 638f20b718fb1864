"""The free small blocks of a worker: stacks of objects in a buffer that outlives it."""

import pytest

from dsm.errors import InternalError, UsageError
from dsm.memory.cache import CACHE_BYTES, WorkerCache, contents, counters
from dsm.memory.classes import BATCHES, CAPACITIES, CLASSES, class_of

CLS = class_of(64)


def _words():
    return memoryview(bytearray(CACHE_BYTES)).cast("Q")


def _objects(count, first=0x5800_0000_0000):
    return [first + 64 * index for index in range(count)]


def test_an_empty_cache_gives_nothing_and_counts_nothing():
    words = _words()
    cache = WorkerCache(words)
    assert [cache.take(cls, 1) for cls in range(CLASSES)] == [0] * CLASSES
    assert counters(words) == (0, 0, 0, 0)
    assert contents(words) == []


def test_what_was_filled_in_is_taken_the_last_first():
    words = _words()
    cache = WorkerCache(words)
    objects = _objects(BATCHES[CLS])
    assert cache.fill(CLS, objects, 1)
    assert cache.held(CLS) == len(objects)
    assert cache.take(CLS - 1, 40) == cache.take(CLS + 1, 70) == 0
    assert [cache.take(CLS, 60) for _ in objects] == objects[::-1]
    assert cache.take(CLS, 60) == 0
    assert counters(words) == (len(objects), 0, 60 * len(objects), 0)


def test_a_full_cache_gives_a_batch_away():
    words = _words()
    cache = WorkerCache(words)
    objects = _objects(CAPACITIES[CLS] + 1)
    assert [cache.put(CLS, address, 50) for address in objects] == [True] * CAPACITIES[CLS] + [False]
    assert counters(words) == (0, CAPACITIES[CLS], 0, 50 * CAPACITIES[CLS])
    number, leaving = cache.surplus(CLS)
    assert (number, leaving) == (1, objects[-2 : -2 - BATCHES[CLS] : -1])
    with pytest.raises(InternalError, match="still in the outbox"):
        cache.surplus(CLS)
    cache.sent()
    assert cache.put(CLS, objects[-1], 50)
    assert cache.surplus(CLS)[0] == 2


def test_a_batch_always_fits_into_a_cache_with_room_for_one_object():
    cache = WorkerCache(_words())
    objects = _objects(CAPACITIES[CLS] + 2 * BATCHES[CLS])
    for address in objects[: CAPACITIES[CLS]]:
        cache.put(CLS, address, 1)
    first, second = objects[CAPACITIES[CLS] : -BATCHES[CLS]], objects[-BATCHES[CLS] :]
    assert cache.fill(CLS, first, 1)
    assert not cache.fill(CLS, second, 2), "what two threads have asked for at once"
    assert cache.fill(CLS, objects, 1), "it was put there before"
    assert not cache.put(CLS, 32, 1)


def test_a_cache_goes_on_over_its_buffer():
    words = _words()
    cache = WorkerCache(words)
    cache.fill(CLS, _objects(3), 1)
    cache.surplus(CLS)
    cache.sent()
    cache.fill(CLS, _objects(3), 2)
    again = WorkerCache(words, fresh=False)
    assert again.held(CLS) == 3
    assert again.surplus(CLS)[0] == 2


def test_sums_over_workers_are_what_is_live():
    """One allocates what the other frees, and large blocks are counted beside the cache."""
    first, second = _words(), _words()
    producer, consumer = WorkerCache(first), WorkerCache(second)
    producer.fill(CLS, _objects(4), 1)
    for address in [producer.take(CLS, 60) for _ in range(4)][:3]:
        consumer.put(CLS, address, 60)
    consumer.count_elsewhere(1, 0, 1 << 40, 0)
    allocations, frees, asked, given = map(sum, zip(counters(first), counters(second), strict=True))
    assert (allocations - frees, asked - given) == (2, 60 + (1 << 40))


@pytest.mark.parametrize(
    "words", [memoryview(bytes(CACHE_BYTES)), memoryview(bytes(CACHE_BYTES - 8)).cast("Q")]
)
def test_a_buffer_that_is_none(words):
    with pytest.raises(UsageError, match=f"buffer of {CACHE_BYTES} bytes cast to 'Q'"):
        WorkerCache(words)
    with pytest.raises(UsageError, match=f"buffer of {CACHE_BYTES} bytes cast to 'Q'"):
        contents(words)
