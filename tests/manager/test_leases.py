"""Leases at the coordinator, with a clock that the test moves: what they take, and give back at the end."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dsm.errors import (
    FullError,
    LeaseExpiredError,
    LimitError,
    NotPermittedError,
    Status,
    TooLargeError,
    UnknownLeaseError,
    UsageError,
)
from dsm.manager.leases import Leases, Regions
from dsm.memory.leases import digest
from dsm.types import Region
from dsm.wire import control, leasing
from dsm.wire import membership as meta

ME, OTHER = (0, 1), (1, 4)


def _bytes(number):
    return number.to_bytes(16, "big")


class World:
    """A clock with timers, and regions that are numbers."""

    def __init__(self, max_bytes=None):
        self.now_ns = 5_000_000_300
        self.timers = []
        self.count = itertools.count()
        self.numbers = itertools.count(1)
        #: Regions that there are; those that are destroyed and not confirmed: what to call.
        self.regions = {}
        self.unready = {}
        self.unconfirmed = {}
        self.confirms = True
        self.announces = True
        self.announced = []
        regions = Regions()
        regions.create, regions.destroy = self._create, self.destroy
        regions.when_ready = self._when_ready
        regions.is_unready = lambda number: number in self.unready
        regions.after = self.after
        self.leases = Leases(regions, max_bytes, clock_ns=lambda: self.now_ns)

    def after(self, seconds, callback):
        assert seconds >= 0
        heapq.heappush(self.timers, (self.now_ns + int(seconds * 1e9), next(self.count), callback))

    def _create(self, worker, options, ready, answer):
        number = next(self.numbers)
        self.regions[number] = Region(number, options, number << 30, (0, 1))
        if not ready:
            self.unready[number] = worker

        def announced():
            answer(meta.Found(self.regions[number], True))

        if self.announces:
            announced()
        else:
            self.announced.append(announced)

    def destroy(self, number, done):
        region = self.regions.pop(number)
        self.leases.region_gone(region)
        self.unready.pop(number, None)
        if self.confirms:
            done()
        else:
            self.unconfirmed[number] = done

    def _when_ready(self, region, answer):
        assert region.region not in self.unready
        answer(meta.Found(region, False))

    def advance(self, ms):
        end = self.now_ns + int(ms * 1e6)
        while self.timers and self.timers[0][0] <= end:
            self.now_ns, _, callback = heapq.heappop(self.timers)
            callback()
        self.now_ns = end

    def ask(self, body, worker=ME):
        answers = []
        self.leases.ask(worker, body, answers.append)
        return answers

    def create(self, number, nbytes=5000, duration_ms=1000, worker=ME, **more):
        write, read = digest(_bytes(number + 1000)), digest(_bytes(number + 2000))
        return self.ask(leasing.CreateLease(_bytes(number), nbytes, duration_ms, write, read, **more), worker)

    def open(self, number, key=None, worker=OTHER):
        return self.ask(
            leasing.OpenLease(_bytes(number), _bytes(number + 1000) if key is None else key), worker
        )

    def release(self, number):
        return self.ask(leasing.ReleaseLease(_bytes(number), _bytes(number + 1000)))

    def renew(self, number, duration_ms):
        return self.ask(leasing.RenewLease(_bytes(number), _bytes(number + 1000), duration_ms))

    def listed(self):
        return [int.from_bytes(row.id, "big") for row in self.ask(leasing.ListLeases())[0].rows]


@pytest.fixture
def world():
    return World()


def test_a_lease_is_a_region_of_its_own_on_the_node_that_took_it(world):
    (opened,) = world.create(1, nbytes=5000, worker=OTHER, heap="images")
    options = opened.region.options
    assert (options.use, options.heap, options.home, options.nbytes) == ("lease", "images", 1, 5000)
    assert (options.name, options.fill, options.consistency) == (None, b"", "sequential")
    assert opened.writable
    (other,) = world.create(2)
    assert other.region.region != opened.region.region


def test_it_lasts_as_long_as_was_asked_at_least_and_a_millisecond_more_at_most(world):
    (opened,) = world.create(1, duration_ms=1000)
    assert 1000e6 <= opened.remaining_ns < 1001e6
    world.advance(999.9)
    assert world.listed() == [1] and world.open(1)[0].remaining_ns > 0
    world.advance(1.1)
    assert world.listed() == [] and not world.regions
    with pytest.raises(LeaseExpiredError):
        world.open(1)


def test_a_lease_is_never_younger_than_nothing(world):
    world.create(1)
    assert [row.age_ns for row in world.leases.rows()] == [0]  # it began at the next millisecond
    world.now_ns += 700_000_000
    assert [row.age_ns for row in world.leases.rows()] == [700_000_000]


def test_the_reaper_needs_no_request(world):
    for number in range(1, 6):
        world.create(number, duration_ms=100 * number)
    world.advance(50)
    lived = [len(world.regions)]
    for _ in range(5):
        world.advance(100)
        lived.append(len(world.regions))
    assert lived == [5, 4, 3, 2, 1, 0]
    assert world.leases.used == 0


def test_the_read_key_opens_to_read(world):
    world.create(1)
    (opened,) = world.open(1, _bytes(2001))
    assert not opened.writable
    for body in (
        leasing.RenewLease(_bytes(1), _bytes(2001), 5),
        leasing.ReleaseLease(_bytes(1), _bytes(2001)),
        leasing.OpenLease(_bytes(1), b"?" * 16),
        leasing.AskLease(_bytes(1), b""),
    ):
        with pytest.raises(NotPermittedError):
            world.ask(body)


def test_renewing_moves_the_end_both_ways(world):
    world.create(1, duration_ms=100)
    world.advance(90)
    assert world.renew(1, 1000)[0].remaining_ns >= 1000e6
    world.advance(500)
    assert world.listed() == [1]
    world.renew(1, 10)
    world.advance(11)
    assert world.listed() == [] and not world.regions
    with pytest.raises(LeaseExpiredError):
        world.renew(1, 100)


def test_released_memory_is_gone_before_who_releases_is_told(world):
    world.create(1)
    world.confirms = False
    answers = world.release(1)
    assert not world.regions and answers == []
    world.unconfirmed.popitem()[1]()
    assert answers == [meta.Finished()]
    world.advance(10_000)
    assert answers == [meta.Finished()]


def test_a_worker_that_confirms_nothing_holds_up_a_release_only_for_a_second(world):
    world.create(1)
    world.confirms = False
    answers = world.release(1)
    world.advance(999)
    assert answers == []
    world.advance(2)
    assert answers == [meta.Finished()]
    world.unconfirmed.popitem()[1]()
    assert answers == [meta.Finished()]


def test_ends_that_nobody_confirms_hold_up_no_others(world):
    world.create(1, duration_ms=10)
    world.create(2, duration_ms=20)
    world.confirms = False
    world.advance(30)
    assert not world.regions and world.leases.used == 0


def test_the_sum_of_all_leases_is_bounded_in_whole_pages():
    world = World(max_bytes=3 * 4096)
    with pytest.raises(TooLargeError, match="DSM_LEASE_BYTES"):
        world.create(1, nbytes=3 * 4096 + 1)
    world.create(2, nbytes=1)
    world.create(3, nbytes=4097, duration_ms=50)
    with pytest.raises(FullError, match="2 leases have 12 KiB of 12 KiB"):
        world.create(4, nbytes=1)
    world.advance(60)
    world.create(4, nbytes=8192)
    world.release(2)
    world.create(5, nbytes=1)


def test_a_lease_larger_than_all_addresses_is_too_large(world):
    with pytest.raises(TooLargeError, match="addresses"):
        world.create(1, nbytes=1 << 45)
    assert world.leases.used == 0 and not world.regions


@pytest.mark.parametrize("nbytes", [0, -1, -(1 << 62)])
@pytest.mark.parametrize("duration_ms", [100, 0, -1, 1 << 62])
def test_bad_numbers_are_refused(world, nbytes, duration_ms):
    with pytest.raises(UsageError):
        world.create(1, nbytes, duration_ms)
    if duration_ms != 100:
        with pytest.raises(UsageError):
            world.create(1, 100, duration_ms)
    assert world.leases.used == 0 and not world.regions


def test_bad_ids_and_keys_are_refused(world):
    with pytest.raises(UsageError):
        world.ask(leasing.CreateLease(b"short", 1, 1, digest(b"a"), digest(b"b")))
    with pytest.raises(UsageError):
        world.ask(leasing.CreateLease(_bytes(1), 1, 1, b"a", digest(b"b")))
    world.create(1)
    with pytest.raises(UsageError, match="exists already"):
        world.create(1)
    with pytest.raises(UnknownLeaseError):
        world.ask(leasing.AskLease(b"", b""))
    assert world.ask(leasing.OpenLease(b"x" * 1000, b""))[0].status == Status.UNKNOWN_LEASE
    assert world.listed() == [1]


def test_a_creation_that_fails_takes_nothing(world):
    def refuse(*arguments):
        raise LimitError("no addresses are left")

    world.leases._regions.create = refuse
    with pytest.raises(LimitError):
        world.create(1)
    assert world.leases.used == 0
    del world.leases._regions.create
    world.leases._regions.create = world._create
    world.create(1)


def test_time_runs_from_when_the_region_is_there(world):
    world.announces = False
    answers = world.create(1, duration_ms=100)
    world.advance(500)
    assert answers == [] and world.listed() == []
    with pytest.raises(UsageError, match="is being made"):
        world.create(1)
    world.announced.pop()()
    assert answers[0].remaining_ns >= 100e6
    assert world.listed() == [1]


def test_a_lease_is_renewed_for_as_long_as_it_is_there(world):
    world.create(1, duration_ms=100)  # from the next whole millisecond on
    world.advance(100.5)
    assert world.listed() == [1]
    world.renew(1, 50)
    world.advance(50)
    assert world.listed() == [1]
    world.advance(0.5)
    assert world.listed() == []


def test_a_lease_that_its_worker_never_got_ends(world):
    world.announces = False
    answers = world.create(1, worker=ME)
    kept = world.create(2, worker=OTHER)
    world.leases.workers_gone(lambda worker: worker == ME)
    for announced in world.announced:
        announced()
    assert isinstance(answers[0], control.Failed) and kept[0].writable
    assert world.listed() == [2] and len(world.regions) == 1
    assert world.leases.used == 8192


def test_a_lease_outlives_its_worker(world):
    world.create(1, worker=ME)
    world.leases.workers_gone(lambda worker: worker == ME)
    assert world.listed() == [1] and world.open(1)[0].writable


def test_a_region_that_is_taken_away_ends_its_lease(world):
    (opened,) = world.create(1)
    world.destroy(opened.region.region, lambda: None)
    assert world.leases.used == 0
    with pytest.raises(LeaseExpiredError, match="taken away"):
        world.open(1)


def test_a_lease_that_was_never_filled_is_forgotten(world):
    (opened,) = world.create(1, ready=False)
    world.destroy(opened.region.region, lambda: None)
    assert world.leases.used == 0
    assert world.open(1)[0].status == Status.UNKNOWN_LEASE
    world.create(1)


def test_a_long_list_comes_in_parts(world):
    for number in range(1, 2001):
        world.create(number, heap="a" * 200)
    found, parts = [], 0
    while True:
        answer = world.ask(leasing.ListLeases(found[-1].region if found else 0))[0]
        assert len(control.encode(control.Answer(1, answer))) < 100_000
        found += answer.rows
        parts += 1
        if not answer.more:
            break
    assert [int.from_bytes(row.id, "big") for row in found] == list(range(1, 2001)) and parts > 2


def test_no_key_is_kept_or_listed(world):
    world.create(1)
    world.open(1)
    world.renew(1, 500)
    kept = repr([vars(world.leases), vars(world.leases._table), world.ask(leasing.ListLeases())])
    assert repr(_bytes(1001)) not in kept and repr(_bytes(2001)) not in kept


class _Model(RuleBasedStateMachine):
    """Eight leases against a dictionary: regions are alive exactly as long as leases are."""

    LIMIT = 10 * 4096

    def __init__(self):
        super().__init__()
        self.world = World(self.LIMIT)
        self.numbers_ = itertools.count(1)
        #: number -> (first and last millisecond of its possible end, pages).
        self.live = {}

    def _used(self):
        return sum(pages for _, _, pages in self.live.values()) * 4096

    def _pick(self, index):
        return sorted(self.live)[index % len(self.live)] if self.live else None

    def _now(self):
        return self.world.now_ns / 1e6

    @rule(pages=st.integers(1, 12), duration=st.integers(1, 300))
    def create(self, pages, duration):
        number, size = next(self.numbers_), pages * 4096
        if size > self.LIMIT:
            expected = TooLargeError
        elif self._used() + size > self.LIMIT:
            expected = FullError
        else:
            self.world.create(number, size, duration)
            self.live[number] = (self._now() + duration, self._now() + duration + 1, pages)
            return
        with pytest.raises(expected) as raised:
            self.world.create(number, size, duration)
        assert type(raised.value) is expected

    @rule(index=st.integers(0, 7), duration=st.integers(1, 300))
    def renew(self, index, duration):
        number = self._pick(index)
        if number is not None:
            self.world.renew(number, duration)
            self.live[number] = (self._now() + duration, self._now() + duration + 1, self.live[number][2])

    @rule(index=st.integers(0, 7))
    def release(self, index):
        number = self._pick(index)
        if number is not None:
            self.world.release(number)
            del self.live[number]

    @rule(by=st.integers(0, 200))
    def time_goes_on(self, by):
        self.world.advance(by + 0.37)
        listed = self.world.listed()
        for number, (first, last, _) in list(self.live.items()):
            if last <= self._now():
                assert number not in listed
                del self.live[number]
            elif first > self._now():
                assert number in listed
            elif number not in listed:
                del self.live[number]

    @invariant()
    def agrees(self):
        assert self.world.listed() == sorted(self.live)
        assert self.world.leases.used == self._used() <= self.LIMIT
        regions = sorted((r.address, r.address + r.size) for r in self.world.regions.values())
        assert len(regions) == len(self.live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(regions))


TestLeases = _Model.TestCase
TestLeases.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
