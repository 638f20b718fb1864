"""A worker's cache in C does what `WorkerCache` does in Python, on the same words; threads may share it."""

import os
import random
import threading

import numpy as np
import pytest

from dsm._native import caches
from dsm._native.caches import Cache, lib
from dsm.memory.cache import CACHE_BYTES, WORDS, WorkerCache, contents, counters, outbox
from dsm.memory.classes import BATCHES, CAPACITIES, CLASSES, MAX_BATCH, MAX_SMALL_BYTES, SIZES, class_of

BY_STEP = bytes(class_of(16 * step) for step in range(MAX_SMALL_BYTES // 16 + 1))


@pytest.fixture
def cache():
    fd = os.memfd_create("test-cache")
    os.ftruncate(fd, CACHE_BYTES)
    made = Cache(fd, CACHE_BYTES, BY_STEP, CAPACITIES, BATCHES, MAX_BATCH)
    os.close(fd)
    WorkerCache(made.words)
    return made


def _model():
    words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
    return words, WorkerCache(words)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_same_as_in_python(cache, seed):
    rng = random.Random(seed)
    words, model = _model()
    batch = 0
    for _ in range(3000):
        cls = rng.choice((0, 1, 40, CLASSES - 1))
        nbytes = rng.randrange(SIZES[cls])
        step = rng.randrange(5)
        if step == 0:
            assert lib.dsm_cache_take_of(cache.handle, cls, nbytes, 0) == model.take(cls, nbytes)
        elif step == 1:
            address = rng.randrange(1, 1 << 47)
            kept = model.put(cls, address, nbytes)
            assert lib.dsm_cache_put(cache.handle, address, nbytes, cls) == kept
        elif step == 2:
            batch += 1
            addresses = [rng.randrange(1, 1 << 47) for _ in range(rng.randrange(BATCHES[cls] + 1))]
            filled = rng.choice((batch, batch, batch - 1))  # its caller was interrupted, and does it again
            assert cache.fill(cls, addresses, filled) == model.fill(cls, addresses, filled)
        elif step == 3:
            if model.held(cls):
                leaving, addresses = model.surplus(cls)
                assert cache.surplus(cls) == len(addresses)
                assert outbox(cache.words) == (leaving, tuple(addresses))
                assert cache.surplus(cls) == 0  # the one before is still there
                model.sent()
                cache.sent(leaving)
        else:
            model.count_elsewhere(1, 0, 5, 0)
            cache.count(1, 0, 5, 0)
        assert cache.words[:WORDS] == words[:WORDS]
    assert contents(cache.words) == contents(words)


def test_the_class_of_every_size(cache):
    for number, nbytes in enumerate(
        [
            *range(300),
            *(size + more for size in SIZES[8:-1] for more in (-1, 0, 1)),
            MAX_SMALL_BYTES,
        ],
        1,
    ):
        cls = class_of(nbytes)
        cache.fill(cls, [16], number)
        assert lib.dsm_cache_take(cache.handle, nbytes, 0) == 16
    for nbytes in (MAX_SMALL_BYTES + 1, 1 << 40, (1 << 64) - 1):
        assert lib.dsm_cache_take(cache.handle, nbytes, 0) == 0
    for cls in (CLASSES, 255):
        assert lib.dsm_cache_take_of(cache.handle, cls, 10, 0) == 0
        assert lib.dsm_cache_put(cache.handle, 16, 10, cls) == 0
        assert lib.dsm_cache_fill(cache.handle, cls, [16], 1, 1) == 0
        assert cache.surplus(cls) == 0


def test_what_is_taken_is_zero_if_asked_for(cache):
    memory = np.full(1024, 7, np.uint8)
    address = memory.ctypes.data
    for zero in (0, 1):
        cache.fill(class_of(1000), [address], 1 + zero)
        assert lib.dsm_cache_take(cache.handle, 1000, zero) == address
        assert set(memory[:1000]) == {0 if zero else 7}
        assert set(memory[1000:]) == {7}  # what is behind was not asked for


def test_zero_and_copy():
    memory = np.arange(100, dtype=np.uint8)
    caches.copy(memory.ctypes.data + 10, memory.ctypes.data, 50)
    assert list(memory[10:60]) == list(range(50))
    caches.zero(memory.ctypes.data, 100)
    assert not memory.any()


def test_threads_never_get_one_object_twice(cache):
    cls = class_of(64)
    cache.fill(cls, [64 * (at + 1) for at in range(32)], 1)
    out = set()
    wrong = []

    def work():
        for _ in range(5000):
            address = lib.dsm_cache_take(cache.handle, 64, 0)
            if address:
                if address in out:
                    wrong.append(address)
                out.add(address)
                out.discard(address)
                lib.dsm_cache_put(cache.handle, address, 64, cls)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(contents(cache.words)) == [64 * (at + 1) for at in range(32)]
    allocations, frees, asked, given = counters(cache.words)
    assert (allocations, asked) == (frees, given)


def test_a_batch_is_put_on_its_stack_once(cache):
    assert cache.fill(5, [16, 32], 1)
    assert cache.fill(5, [16, 32], 1)  # its caller was interrupted, and does it again
    assert contents(cache.words) == [16, 32]
    assert cache.fill(5, [48], 2)
    assert sorted(contents(cache.words)) == [16, 32, 48]


def test_a_batch_finds_room_as_a_whole_or_not_at_all(cache):
    room = CAPACITIES[5] + BATCHES[5]
    assert cache.fill(5, range(16, 16 * room, 16), 1)
    before = bytes(cache.words)
    assert not cache.fill(5, [8, 24], 2)
    assert bytes(cache.words) == before
    assert cache.surplus(5) == BATCHES[5]
    assert cache.fill(5, [8, 24], 2)


def test_what_has_arrived_is_not_mistaken_for_what_left_later(cache):
    cache.fill(5, [16, 32], 1)
    assert cache.surplus(5) == 2
    cache.sent(1)
    cache.fill(5, [48], 2)
    assert cache.surplus(5) == 1
    assert outbox(cache.words) == (2, (48,))
    cache.sent(1)
    assert contents(cache.words, received=1) == [48]
    cache.sent(2)
    assert contents(cache.words, received=1) == []
