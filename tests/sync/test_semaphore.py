"""Semaphores: units, turns, cancellation, death; and a stateful test of it all."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import Status
from dsm.types import MAX_UNITS
from dsm.wire.calls import Op
from homes import is_gone, one, party

A, A2, B, C = (0, 1, 10), (0, 1, 11), (1, 1, 10), (2, 1, 10)
ACQUIRE, RELEASE = Op.SEMAPHORE_ACQUIRE, Op.SEMAPHORE_RELEASE


@pytest.fixture
def home():
    return one("semaphore", 3)


@pytest.fixture
def bounded():
    return one("semaphore", 3, bounded=True)


def test_units_are_taken_and_given_back(home):
    ticket, replies = home.ask(ACQUIRE, A, 2)
    assert replies == [home.reply(0, ticket)]
    assert home.described().value == 1
    waits, nothing = home.ask(ACQUIRE, B, 2)
    assert nothing == []
    released, replies = home.ask(RELEASE, A, 1)
    assert replies == [home.reply(1, waits), home.reply(0, released)]
    assert home.described().value == 0


def test_who_wants_many_is_not_overtaken(home):
    many, _ = home.ask(ACQUIRE, A, 5)
    few, nothing = home.ask(ACQUIRE, B, 1)
    assert nothing == []
    assert home.ask(RELEASE, C, 2)[1][0] == home.reply(0, many)
    assert home.ask(RELEASE, C, 1)[1][0] == home.reply(1, few)


def test_who_gives_up_makes_room_for_those_behind(home):
    many, _ = home.ask(ACQUIRE, A, 5)
    few, _ = home.ask(ACQUIRE, B, 1)
    cancel, replies = home.cancel(A, many)
    assert replies == [home.reply(0, many, Status.CANCELLED), home.reply(1, few), home.reply(0, cancel)]
    home.ask(ACQUIRE, A, 5)
    behind, _ = home.ask(ACQUIRE, C, 2)
    assert home.gone(0, 1) == [home.reply(2, behind)], "and so does who dies"


def test_anybody_adds_units_to_an_unbounded_one(home):
    home.ask(RELEASE, B, 4)
    assert home.described().value == 7


@pytest.mark.parametrize("units", [0, MAX_UNITS + 1, 2**64 - 1])
@pytest.mark.parametrize("op", [ACQUIRE, RELEASE])
def test_senseless_numbers_are_refused(home, op, units):
    ticket, replies = home.ask(op, A, units)
    assert replies == [home.reply(0, ticket, Status.USAGE)]


def test_there_is_a_highest_number(home):
    assert home.ask(RELEASE, A, MAX_UNITS - 3)[1][-1].status == Status.OK
    assert home.ask(RELEASE, A, 1)[1][-1].status == Status.USAGE
    assert home.described().value == MAX_UNITS


def test_what_the_dead_had_of_an_unbounded_one_is_gone(home):
    home.ask(ACQUIRE, A, 2)
    assert home.gone(0) == []
    assert home.described().value == 1


@pytest.mark.parametrize(("worker", "died"), [(1, True), (1, False), (None, True)])
def test_what_the_gone_had_of_a_bounded_one_is_free_again(bounded, worker, died):
    bounded.ask(ACQUIRE, A, 2)
    bounded.ask(ACQUIRE, A2, 1)
    waits, _ = bounded.ask(ACQUIRE, B, 3)
    assert bounded.gone(0, worker, died) == [bounded.reply(1, waits)]
    assert [party(each) for each in bounded.described().holders] == [(1, 1, 0)]


def test_only_the_worker_that_took_a_bounded_unit_gives_it_back(bounded):
    bounded.ask(ACQUIRE, A, 2)
    for other in (B, (0, 2, 10)):
        ticket, replies = bounded.ask(RELEASE, other, 1)
        assert replies == [bounded.reply(other[0], ticket, Status.NOT_OWNER)]
    assert bounded.ask(RELEASE, A2, 3)[1][-1].status == Status.NOT_OWNER
    assert bounded.ask(RELEASE, A2, 2)[1][-1].status == Status.OK, "any thread of it"
    assert bounded.described().holders == ()


def test_more_than_there_are_is_refused_at_once(bounded):
    assert bounded.ask(ACQUIRE, A, 4)[1][-1].status == Status.USAGE
    assert bounded.ask(ACQUIRE, A, 3)[1][-1].status == Status.OK


def test_drop_ends_waiting_calls(home):
    waits, _ = home.ask(ACQUIRE, A, 5)
    assert home.home.drop(home.number) == [home.reply(0, waits, Status.CLOSED)]


threads = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2))


class SemaphoreMachine(RuleBasedStateMachine):
    """Against a number, a list of who waits, and what each worker has."""

    @initialize(value=st.integers(0, 4), bounded=st.booleans())
    def begin(self, value, bounded):
        self.total = max(value, bounded)
        self.bounded = bounded
        self.driver = one("semaphore", self.total, bounded)
        self.free = self.total
        self.waiting = []  # (thread, ticket, units)
        self.has = {}

    def take(self, replies, extra=None):
        """Whoever can be served must have been, in order."""
        self.waiting += [extra] if extra else []
        expected = []
        while self.waiting and self.waiting[0][2] <= self.free:
            thread, ticket, units = self.waiting.pop(0)
            self.free -= units
            self.has[thread[:2]] = self.has.get(thread[:2], 0) + units
            expected.append(self.driver.reply(thread[0], ticket))
        assert replies == expected

    @rule(thread=threads, units=st.integers(1, 3))
    def acquire(self, thread, units):
        ticket, replies = self.driver.ask(ACQUIRE, thread, units)
        if self.bounded and units > self.total:
            assert replies == [self.driver.reply(thread[0], ticket, Status.USAGE)]
        else:
            self.take(replies, (thread, ticket, units))

    @rule(thread=threads, units=st.integers(1, 3))
    def release(self, thread, units):
        ticket, replies = self.driver.ask(RELEASE, thread, units)
        if self.bounded and self.has.get(thread[:2], 0) < units:
            assert replies == [self.driver.reply(thread[0], ticket, Status.NOT_OWNER)]
            return
        self.free += units
        self.has[thread[:2]] = self.has.get(thread[:2], 0) - units
        assert replies[-1] == self.driver.reply(thread[0], ticket)
        self.take(replies[:-1])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        ticket, replies = self.driver.cancel(*entry[:2])
        node = entry[0][0]
        assert replies[0] == self.driver.reply(node, entry[1], Status.CANCELLED)
        assert replies[-1] == self.driver.reply(node, ticket)
        self.take(replies[1:-1])

    @rule(node=st.integers(0, 2), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        self.waiting = [each for each in self.waiting if not is_gone(each[0], node, worker)]
        for key in [key for key in self.has if is_gone(key, node, worker)]:
            units = self.has.pop(key)
            self.free += units if self.bounded else 0
        self.take(self.driver.gone(node, worker, died))

    @invariant()
    def described_as_the_model_says(self):
        state = self.driver.described()
        assert state.value == self.free
        assert list(map(party, state.waiting)) == [each[0] for each in self.waiting]
        if self.bounded:
            assert self.free + sum(self.has.values()) == self.total
            owners = {(*key, 0) for key, units in self.has.items() if units}
            assert set(map(party, state.holders)) == owners


TestSemaphoreMachine = SemaphoreMachine.TestCase
TestSemaphoreMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
