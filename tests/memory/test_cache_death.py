"""A worker is killed at any access to its cache: at most one object is lost, none is there twice."""

import mmap
import signal
import subprocess
import sys

import pytest

from dsm.errors import UsageError
from dsm.memory.cache import ALLOCATIONS, CACHE_BYTES, LEAVING, WORDS, WorkerCache, contents, counters
from dsm.memory.classes import BATCHES, CAPACITIES, CLASSES, class_of
from dsm.memory.pool import Pool
from support import wait_until

CLS = class_of(16 * 1024)
OTHER = class_of(12 * 1024)
BASE = 0x5800_0000_0000


class _Killed(BaseException):
    pass


class _Mortal:
    """The words of a cache, whose user dies before or after its n-th access to them.

    Nothing else that it does is seen by others, so these are all deaths that differ.
    """

    def __init__(self, words, accesses):
        self.words = words
        self.left = accesses

    def _live(self):
        self.left -= 1
        if self.left < 0:
            raise _Killed

    def __getitem__(self, place):
        self._live()
        return self.words[place]

    def __setitem__(self, place, value):
        self._live()
        self.words[place] = value
        self._live()


class _Life:
    """A worker and its manager: who has which object, as far as each has been told."""

    def __init__(self, accesses):
        self.words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
        self.cache = WorkerCache(self.words)
        self.mortal = self.cache._words = _Mortal(self.words, accesses)
        self.pool = Pool()
        self.pool.add_extent(BASE, 1 << 26)
        #: Objects that the program has: class of each.
        self.held = {}
        #: Batches that the manager has sent, and the last that it got.
        self.sent, self.received = {}, 0
        self.all = set()
        #: Operations that were begun and ended: takes, puts.
        self.begun, self.ended = [0, 0], [0, 0]

    def allocate(self, cls):
        self.begun[0] += 1
        address = self.cache.take(cls, 100)
        if not address:
            self.begun[0] -= 1
            number = len(self.sent) + 1
            self.sent[number] = self.pool.take(cls, BATCHES[cls])
            self.all.update(self.sent[number])
            assert self.cache.fill(cls, self.sent[number], number)
            return self.allocate(cls)
        self.ended[0] += 1
        self.held[address] = cls
        return address

    def free(self, address):
        cls = self.held.pop(address)
        self.begun[1] += 1
        if not self.cache.put(cls, address, 100):
            self.begun[1] -= 1
            self.held[address] = cls
            number, leaving = self.cache.surplus(cls)
            assert self.pool.give(leaving) == []
            self.received = number
            self.cache.sent()
            return self.free(address)
        self.ended[1] += 1
        return None

    def live(self):
        """Every path: filling, emptying, a surplus, reuse of the outbox, two classes."""
        objects = [self.allocate(CLS) for _ in range(2 * CAPACITIES[CLS] + 1)]
        other = [self.allocate(OTHER) for _ in range(BATCHES[OTHER] + 1)]
        for address in objects + other:
            self.free(address)
        for address in [self.allocate(cls) for cls in (CLS, OTHER, CLS) * 4]:
            self.free(address)


def test_death_at_each_access_loses_at_most_one_object():
    immortal = _Life(1 << 60)
    immortal.live()
    total = (1 << 60) - immortal.mortal.left
    lost_at_all = 0
    deaths = 0
    for accesses in range(total):
        life = _Life(accesses)
        with pytest.raises(_Killed):
            life.live()
        deaths += 1
        found = contents(life.words, life.sent, life.received)
        assert len(set(found)) == len(found)
        assert not set(found) & set(life.held), "what the program has is not given to another"
        assert life.pool.give(found) == [], "what the pool has is not given to it again"
        lost = life.all - set(found) - set(life.held) - {a for a in life.all if _free(life.pool, a)}
        assert len(lost) <= 1
        lost_at_all += len(lost)
        allocations, frees, asked, given = counters(life.words)
        assert life.ended[0] <= allocations <= life.begun[0]
        assert life.ended[1] <= frees <= life.begun[1]
        assert abs(asked - 100 * allocations) <= 100 and abs(given - 100 * frees) <= 100
        life.pool.check()
    assert deaths == total > 500
    assert lost_at_all, "some deaths were between two writes"


def _free(pool, address):
    return "starts there" not in pool.explain(address)


#: Takes 20 objects and puts them back, for ever.
WORKER = """
import mmap, sys
from dsm.memory.cache import WorkerCache
file = open(sys.argv[1], "r+b")
cache = WorkerCache(memoryview(mmap.mmap(file.fileno(), 0)).cast("Q"))
cls = int(sys.argv[2])
cache.fill(cls, range(4096, 4096 + 64 * 32, 64), 1)
while True:
    for address in [cache.take(cls, 50) for _ in range(20)]:
        cache.put(cls, address, 50)
"""


@pytest.mark.parametrize("turns", [1, 1000, 10_007, 20_001])
def test_a_process_that_is_killed_leaves_a_cache_that_can_be_read(tmp_path, turns):
    cls = class_of(64)
    path = tmp_path / "cache"
    path.write_bytes(bytes(CACHE_BYTES))
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), CACHE_BYTES) as shared,
        memoryview(shared) as plain,
        plain.cast("Q") as words,
    ):
        worker = subprocess.Popen([sys.executable, "-c", WORKER, path, str(cls)])
        try:
            wait_until(lambda: words[ALLOCATIONS] >= turns, what="the worker's allocations")
        finally:
            worker.kill()
            assert worker.wait(timeout=10) == -signal.SIGKILL
        assert len(words) == WORDS
        found = contents(words)
        assert len(set(found)) == len(found)
        assert set(found) <= set(range(4096, 4096 + 64 * 32, 64))
        allocations, frees, asked, given = counters(words)
        out = 32 - len(found)
        assert abs(out - (allocations - frees)) <= 1, "the counters say how many are out"
        assert abs(asked - 50 * allocations) <= 50 and abs(given - 50 * frees) <= 50


def test_a_batch_on_its_way_to_a_worker_is_taken_back():
    words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
    cache = WorkerCache(words)
    cache.fill(CLS, [64, 128], 1)
    assert contents(words, {1: [64, 128], 2: [192]}) == [64, 128, 192]
    assert contents(words, {1: [64, 128]}) == [64, 128]


def test_a_batch_in_the_outbox_belongs_to_who_has_got_it():
    words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
    cache = WorkerCache(words)
    cache.fill(CLS, [64, 128], 1)
    assert cache.surplus(CLS) == (1, [128, 64])
    assert contents(words) == [128, 64], "not sent yet"
    assert contents(words, received=1) == [], "the manager got it before the worker noted that it was sent"
    cache.sent()
    assert contents(words) == []


@pytest.mark.parametrize(
    ("word", "value", "named"),
    [
        (CLS, 0, f"class {CLS} ends at word 0"),
        (CLS, 1 << 40, f"class {CLS} ends at word {1 << 40}"),
        (CLASSES - 1, 7, f"class {CLASSES - 1} ends at word 7"),
        (LEAVING, 1 << 16 | 33, "33 objects in an outbox for 32"),
    ],
)
def test_a_damaged_buffer_is_not_believed(word, value, named):
    words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
    WorkerCache(words)
    words[word] = value
    with pytest.raises(UsageError, match=f"damaged: {named}"):
        contents(words)


def test_nonsense_on_a_stack_is_refused_by_the_pool():
    """A worker may write anything over its cache: what is none of the pool's objects does no harm."""
    life = _Life(1 << 60)
    objects = [life.allocate(CLS) for _ in range(3)]
    life.free(objects[0])
    place = next(word for word in range(CLASSES, len(life.words)) if life.words[word] == objects[0])
    life.words[place] = BASE + 5
    found = contents(life.words, life.sent, life.received)
    assert life.pool.give(found) == [BASE + 5]
    life.pool.check()
