"""The pool of a node against a model: batches, large blocks, extents that come late or not, workers that "
"die."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsm.errors import ClosedError, FullError, LimitError, Status, UsageError
from dsm.manager.growth import Growth
from dsm.manager.nodepool import NodePool
from dsm.memory.cache import WORDS, WorkerCache
from dsm.memory.classes import BATCHES, CLASSES, SIZES
from dsm.types import HeapOptions, HeapRecord, Region
from dsm.wire import control, heaps
from dsm.wire import membership as meta

MIB = 1 << 20


class Coordinator:
    """Answers when it is told to; counts what there is against a bound."""

    def __init__(self, bound):
        self.bound = bound
        self.waiting = deque()
        self.regions = {}
        self.count = 0
        self.relieved = 0

    def ask(self, question, then):
        self.waiting.append((question, then))

    def relieve(self, then):
        self.relieved += 1
        self.waiting.append((None, then))

    def answer(self):
        question, then = self.waiting.popleft()
        if question is None:
            then()
        elif isinstance(question, control.DestroyRegion):
            self.regions.pop(question.key)
            then(meta.Finished())
        elif sum(region.size for region in self.regions.values()) + question.options.nbytes > self.bound:
            then(control.Failed(Status.FULL, "no room"))
        else:
            self.count += 1
            region = Region(self.count, question.options, self.count << 30, (0,))
            self.regions[self.count] = region
            then(meta.Found(region, True))

    def settle(self):
        while self.waiting:
            self.answer()


def _pool(bound=1 << 40, debug=False, added=lambda region, then: then(0), **options):
    values = {"min_system_alloc": MIB, "max_bytes": 0, "page_size": 4096, "consistency": "sequential"}
    record = HeapRecord(1, HeapOptions("h", "lazy", "pooled", debug=debug, **values | options))
    coordinator = Coordinator(bound)
    growth = Growth(record.options, 0, coordinator.ask, added, lambda nbytes: None, coordinator.relieve)
    pool = NodePool(record, 0, growth)
    return pool, coordinator


class Answer:
    """What a question was answered with."""

    def __init__(self):
        self.value = self.error = None

    def then(self, value):
        self.value = value

    def fail(self, error):
        self.error = error


class Model(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pool, self.coordinator = _pool(bound=12 * MIB)
        self.caches, self.batches = {}, {}
        #: Live blocks: address and bytes.
        self.live = {}
        self.workers = 0

    @rule()
    def attach(self):
        if len(self.caches) < 3:
            self.workers += 1
            assert self.pool.open(self.workers) is not None and self.pool.open(self.workers) is None
            self.caches[self.workers] = WorkerCache(self.pool.caches[self.workers].words[:WORDS], fresh=False)
            self.batches[self.workers] = 0

    @precondition(lambda self: self.caches)
    @rule(data=st.data(), cls=st.sampled_from([0, 10, 40, CLASSES - 1]), dies=st.integers(0, 9))
    def take(self, data, cls, dies):
        worker = data.draw(st.sampled_from(sorted(self.caches)))
        answer = Answer()
        self.pool.take(worker, cls, BATCHES[cls], answer.then, answer.fail)
        if dies == 0:
            self.die(worker)
            self.coordinator.settle()
            return
        self.coordinator.settle()
        if answer.error is not None:
            assert isinstance(answer.error, FullError)
            return
        taken = answer.value
        assert taken.addresses and not set(taken.addresses) & self.live.keys()
        if dies == 1:  # before it has noted them
            self.die(worker)
            return
        cache = self.caches[worker]
        while not cache.fill(cls, taken.addresses, taken.number):
            self._send_surplus(worker, cls)
        address = self.caches[worker].take(cls, SIZES[cls])
        self.live[address] = SIZES[cls]

    @precondition(lambda self: self.caches and self.live)
    @rule(data=st.data())
    def put(self, data):
        worker = data.draw(st.sampled_from(sorted(self.caches)))
        small = [address for address, size in self.live.items() if size in SIZES]
        if not small:
            return
        address = data.draw(st.sampled_from(sorted(small)))
        cls = SIZES.index(self.live[address])
        cache = self.caches[worker]
        while not cache.put(cls, address, SIZES[cls]):
            self._send_surplus(worker, cls)
        del self.live[address]

    def _send_surplus(self, worker, cls):
        number, addresses = self.caches[worker].surplus(cls)
        for _ in range(2):  # told twice, taken once
            assert self.pool.give(worker, number, tuple(addresses)).refused == ()
        self.caches[worker].sent()

    @precondition(lambda self: self.caches and self.live)
    @rule(data=st.data(), far=st.booleans())
    def send_home(self, data, far):
        """A block that comes without a class, from a ring."""
        address = data.draw(st.sampled_from(sorted(self.live)))
        assert self.pool.come_home([(address, self.live[address])]) == []
        assert self.pool.come_home([(address, self.live[address])]) == [address]
        del self.live[address]

    @precondition(lambda self: self.caches)
    @rule(data=st.data(), nbytes=st.sampled_from([300_000, MIB, 3 * MIB, 20 * MIB]))
    def allocate(self, data, nbytes):
        worker = data.draw(st.sampled_from(sorted(self.caches)))
        answer = Answer()
        self.pool.allocate(worker, heaps.HeapAllocate(1, nbytes), answer.then, answer.fail)
        self.coordinator.settle()
        if answer.error is None:
            assert answer.value.usable >= nbytes
            self.live[answer.value.address] = answer.value.usable + 1  # of no class
        else:
            assert isinstance(answer.error, FullError)
            assert self.pool.count().managed + nbytes + 4096 > self.coordinator.bound

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        address = data.draw(st.sampled_from(sorted(self.live)))
        self.pool.free(address, self.live.get(address, 0))
        del self.live[address]
        with pytest.raises(UsageError):
            self.pool.free(address, self.live.get(address, 0))

    @precondition(lambda self: self.caches)
    @rule(data=st.data())
    def dies(self, data):
        self.die(data.draw(st.sampled_from(sorted(self.caches))))

    def die(self, worker):
        self.pool.worker_gone(worker)
        del self.caches[worker]

    @rule()
    def trim(self):
        done = []
        self.pool.trim(lambda: done.append(1))
        self.coordinator.settle()
        assert done

    @invariant()
    def figures_are_true(self):
        self.coordinator.settle()
        assert self.pool.check() == ""
        count = self.pool.count()
        assert count.in_use == len(self.live)
        assert count.managed == sum(region.size for region in self.coordinator.regions.values())
        assert count.managed == count.used + count.cached + count.spare + count.free
        spans = sorted(self.live)
        assert all(a + min(self.live[a], 16) <= b for a, b in itertools.pairwise(spans))

    def teardown(self):
        for worker in list(self.caches):
            self.die(worker)
        for address in list(self.live):
            self.pool.free(address, self.live.get(address, 0))
        self.pool.trim(lambda: None)
        self.coordinator.settle()
        count = self.pool.count()
        assert (count.managed, count.in_use, count.used, count.cached, count.spare, count.free) == (0,) * 6
        assert not self.coordinator.regions


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_requests_wait_in_turn_while_a_pool_grows():
    pool, coordinator = _pool()
    pool.open(1)
    answers = [Answer() for _ in range(5)]
    for answer in answers:
        pool.allocate(1, heaps.HeapAllocate(1, 600_000), answer.then, answer.fail)
    assert len(coordinator.waiting) == 1  # one extent is asked for at a time
    coordinator.settle()
    assert len({answer.value.address for answer in answers}) == 5
    assert [answer.value.extents for answer in answers[:2]] == [(1,), (2,)]
    assert pool.count().extents == 5


def test_a_heap_that_ends_while_requests_wait():
    pool, coordinator = _pool()
    pool.open(1)
    answers = [Answer() for _ in range(3)]
    for answer in answers:
        pool.allocate(1, heaps.HeapAllocate(1, 600_000), answer.then, answer.fail)
    pool.close()
    assert all(isinstance(answer.error, ClosedError) for answer in answers)
    coordinator.settle()  # the extent that comes all the same goes back
    assert coordinator.regions == {} and coordinator.count == 1
    assert pool.give_home([1 << 30]) == []


def test_only_caches_that_could_have_a_block_are_looked_at(monkeypatch):
    pool, coordinator = _pool()
    pool.open(1)
    large, small = Answer(), Answer()
    pool.allocate(1, heaps.HeapAllocate(1, 300_000), large.then, large.fail)
    coordinator.settle()
    pool.take(1, 5, BATCHES[5], small.then, small.fail)
    coordinator.settle()
    cache = WorkerCache(pool.caches[1].words[:WORDS], fresh=False)
    cache.fill(5, small.value.addresses, small.value.number)
    mine = cache.take(5, SIZES[5])
    looked = []
    held = pool.caches[1].held
    monkeypatch.setattr(pool.caches[1], "held", lambda *classes: looked.append(classes) or held(*classes))
    pool.free(large.value.address, 0)
    assert looked == []
    coming = [(mine, 9), (small.value.addresses[0], 9), (12345, 9)]
    assert pool.come_home(coming) == [small.value.addresses[0], 12345]
    assert looked == [({5},)]
    with pytest.raises(UsageError, match="it lies in the cache of a worker"):
        pool.free(small.value.addresses[0], 0)
    assert looked == [({5},)] * 2


def test_an_extent_is_used_when_it_is_ready():
    ready = []
    pool, coordinator = _pool(added=lambda region, then: ready.append(then))
    pool.open(1)
    answers = [Answer() for _ in range(2)]
    pool.allocate(1, heaps.HeapAllocate(1, 600_000), answers[0].then, answers[0].fail)
    coordinator.settle()
    pool.take(1, 5, 32, answers[1].then, answers[1].fail)
    coordinator.settle()
    assert pool.count().managed == 0 and all(answer.value is None for answer in answers)
    [then] = ready  # who comes meanwhile waits for the same
    then(MIB)
    assert all(answer.value is not None for answer in answers)
    assert (pool.count().managed, pool.count().locked) == (MIB, MIB)


def test_a_heap_that_ends_while_an_extent_is_made_ready():
    ready = []
    pool, coordinator = _pool(added=lambda region, then: ready.append(then))
    pool.open(1)
    answer = Answer()
    pool.allocate(1, heaps.HeapAllocate(1, 600_000), answer.then, answer.fail)
    coordinator.settle()
    pool.close()
    assert isinstance(answer.error, ClosedError)
    ready[0](0)
    assert (pool.count().managed, pool.count().locked, answer.value) == (0, 0, None)


def test_a_worker_that_dies_while_its_request_waits_gets_nothing():
    pool, coordinator = _pool()
    pool.open(1)
    answers = [Answer(), Answer()]
    pool.take(1, 5, 32, answers[0].then, answers[0].fail)
    pool.allocate(1, heaps.HeapAllocate(1, 600_000), answers[1].then, answers[1].fail)
    pool.worker_gone(1)
    coordinator.settle()
    assert [(answer.value, answer.error) for answer in answers] == [(None, None)] * 2
    assert pool.count().in_use == 0


def test_no_room_is_told_after_everything_was_tried():
    pool, coordinator = _pool(bound=2 * MIB)
    pool.open(1)
    first, second = Answer(), Answer()
    pool.allocate(1, heaps.HeapAllocate(1, MIB), first.then, first.fail)
    coordinator.settle()
    pool.allocate(1, heaps.HeapAllocate(1, 3 * MIB // 2), second.then, second.fail)
    coordinator.settle()
    assert isinstance(second.error, FullError) and coordinator.relieved == 1
    # What is empty and kept for later makes room.
    pool.free(first.value.address, 0)
    assert pool.count().extents == 1
    pool.allocate(1, heaps.HeapAllocate(1, 3 * MIB // 2), second.then, second.fail)
    coordinator.settle()
    assert second.value.usable >= 3 * MIB // 2


def test_memory_that_cannot_be_backed_is_not_asked_for():
    pool, coordinator = _pool()
    pool.open(1)

    def refuse(nbytes):
        if nbytes > MIB // 2:
            raise LimitError("too little memory")

    pool._growth._room = refuse
    answers = [Answer(), Answer()]
    pool.allocate(1, heaps.HeapAllocate(1, 600_000), answers[0].then, answers[0].fail)
    assert isinstance(answers[0].error, LimitError) and not coordinator.waiting
    pool.allocate(
        1, heaps.HeapAllocate(1, 300_000), answers[1].then, answers[1].fail
    )  # a smaller extent will do
    coordinator.settle()
    assert answers[1].value is not None and pool.count().managed < MIB // 2


def test_fresh_memory_is_told_from_used_memory():
    pool, coordinator = _pool()
    pool.open(1)

    def allocate(nbytes):
        answer = Answer()
        pool.allocate(1, heaps.HeapAllocate(1, nbytes), answer.then, answer.fail)
        coordinator.settle()
        return answer.value

    first, second = allocate(300_000), allocate(400_000)
    assert first.fresh and second.fresh
    pool.free(first.address, 0)
    again = allocate(300_000)
    assert again.address == first.address and not again.fresh


def test_a_damaged_cache_is_not_believed():
    pool, coordinator = _pool()
    pool.open(1)
    answer = Answer()
    pool.take(1, 5, 32, answer.then, answer.fail)
    coordinator.settle()
    words = pool.caches[1].words
    words[0] = 1 << 63
    words[WORDS] = 5
    for at in range(CLASSES, CLASSES + 4):
        words[at] = (1 << 64) - 1
    count = pool.count()
    assert -(1 << 63) < count.requested < 1 << 63
    assert meta.encode(heaps.HeapTold(heaps.HeapCounted((count,))))
    assert pool.worker_gone(1) == {}
    assert pool.check() == ""


@pytest.mark.parametrize(("looks", "twice"), [(1, False), (2, False), (100, True)])
def test_an_object_that_goes_to_another_cache_while_they_are_read_was_not_freed_twice(looks, twice):
    pool, coordinator = _pool()
    pool.open(1)
    pool.open(2)
    answer = Answer()
    pool.take(1, 5, 32, answer.then, answer.fail)
    coordinator.settle()
    left = iter(range(looks))
    pool.caches[2].held = lambda: [answer.value.addresses[7]] if next(left, None) is not None else []
    said = f"{answer.value.addresses[7]:#x} lies in the caches of workers 1 and 2: it was freed twice"
    assert pool.check().endswith(said) == twice
    assert bool(pool.check()) == twice


def test_blocks_are_listed_while_their_guards_stand():
    """A worker that dies while it writes them leaves a block that nobody has, not a damaged one."""
    pool, coordinator = _pool(debug=True)
    pool.open(1)
    answer = Answer()
    pool.allocate(1, heaps.HeapAllocate(1, 100, 16, "there"), answer.then, answer.fail)
    coordinator.settle()
    address = answer.value.address
    assert pool.list_blocks(0).blocks == ()
    pool.guarded(address)
    assert [block.address for block in pool.list_blocks(0).blocks] == [address]
    pool.find(address, "here")
    assert pool.list_blocks(0).blocks == ()
    pool.free(address, 0, "here")
    assert [block.freed for block in pool.list_blocks(0).blocks] == ["here"]
    assert pool.check() == ""
