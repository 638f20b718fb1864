"""Barriers: rounds, indices, breaking and mending."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import InternalError, Status
from dsm.sync.service import Party, Reply, SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import Op

BARRIER = 9


class Home:
    def __init__(self, parties):
        self.home = SyncHome()
        self.home.create(SyncObject(BARRIER, "barrier", "step", 0, parties))
        self.tickets = 0

    def ask(self, op, thread, a=0, now=0):
        self.tickets += 1
        node, worker, token = thread
        return self.tickets, self.home.request(op, BARRIER, node, self.tickets, (worker, token), a, 0, now)

    def wait(self, thread, now=0):
        return self.ask(Op.BARRIER_WAIT, thread, thread[2], now)

    def described(self):
        return self.home.describe()[0]

    def meet(self, *threads):
        """All of them arrive; returns {thread: index}."""
        *early, last = [(thread, *self.wait(thread)) for thread in threads]
        assert all(replies == [] for _, _, replies in early)
        tickets = {ticket: thread for thread, ticket, _ in [*early, last]}
        assert all(reply.status == Status.OK for reply in last[2])
        return {tickets[reply.ticket]: reply.result for reply in last[2]}


A, B, C, D = (0, 1, 10), (0, 2, 10), (1, 1, 10), (1, 1, 11)


def test_all_are_released_with_their_index_of_arrival_round_after_round():
    home = Home(3)
    assert home.meet(A, B, C) == {A: 0, B: 1, C: 2}
    assert home.meet(C, A, B) == {C: 0, A: 1, B: 2}


def test_one_party_never_waits():
    assert Home(1).meet(A) == {A: 0}


def test_cancel_breaks_the_barrier_for_those_who_wait():
    home = Home(3)
    first, _ = home.wait(A)
    second, _ = home.wait(B)
    ticket, replies = home.ask(Op.CANCEL, A, first)
    assert replies == [Reply(0, first, Status.CANCELLED), Reply(0, second, Status.BROKEN), Reply(0, ticket)]


def test_whoever_comes_after_the_break_is_told_at_once():
    home = Home(2)
    first, _ = home.wait(A)
    home.ask(Op.CANCEL, A, first)
    late, replies = home.wait(C)
    assert replies == [Reply(1, late, Status.BROKEN)]


def test_once_all_parties_have_been_told_the_barrier_works_again():
    home = Home(3)
    first, _ = home.wait(A)
    home.wait(B)
    home.ask(Op.CANCEL, A, first)
    assert home.described().damaged
    home.wait(C)
    assert not home.described().damaged
    assert home.meet(B, C, A) == {B: 0, C: 1, A: 2}


def test_coming_again_does_not_count_twice():
    home = Home(3)
    first, _ = home.wait(A)
    home.ask(Op.CANCEL, A, first)
    for _ in range(5):
        ticket, replies = home.wait(B)
        assert replies == [Reply(0, ticket, Status.BROKEN)]
    assert home.described().damaged
    home.wait(C)
    assert not home.described().damaged


def test_cancel_after_the_meeting_comes_too_late():
    home = Home(2)
    first, _ = home.wait(A)
    home.wait(C)
    ticket, replies = home.ask(Op.CANCEL, A, first)
    assert replies == [Reply(0, ticket, Status.TOO_LATE)]
    assert not home.described().damaged


def test_death_of_a_waiting_worker_breaks_the_barrier_until_it_is_replaced():
    home = Home(3)
    home.wait(A)
    waits, _ = home.wait(C)
    assert home.home.worker_gone(0, 1) == [Reply(1, waits, Status.BROKEN)]
    for _ in range(3):
        for survivor in (B, C):
            assert home.wait(survivor)[1][0].status == Status.BROKEN
    replacement = (0, 7, 10)
    assert home.wait(replacement)[1][0].status == Status.BROKEN
    assert len(home.meet(B, C, replacement)) == 3


def test_a_thread_that_was_told_and_died_does_not_count():
    home = Home(2)
    first, _ = home.wait(A)
    home.ask(Op.CANCEL, A, first)
    home.home.worker_gone(0, 1)
    home.wait(B)
    assert home.described().damaged


def test_death_of_a_worker_that_does_not_wait_leaves_the_barrier_alone():
    home = Home(2)
    home.wait(A)
    assert home.home.worker_gone(1, 1) == []
    assert home.home.worker_gone(0, 2) == []
    assert home.wait(D)[1][0].status == Status.OK


def test_death_of_a_node_breaks_the_barrier_for_the_others():
    home = Home(4)
    home.wait(A)
    home.wait(B)
    waits, _ = home.wait(C)
    assert home.home.node_gone(0) == [Reply(1, waits, Status.BROKEN)]


def test_reset_breaks_the_waiting_ones_and_makes_the_barrier_new():
    home = Home(2)
    waits, _ = home.wait(A)
    ticket, replies = home.ask(Op.BARRIER_RESET, C)
    assert replies == [Reply(0, waits, Status.BROKEN), Reply(1, ticket)]
    assert home.meet(A, C) == {A: 0, C: 1}


def test_abort_breaks_it_and_the_one_who_aborts_knows():
    home = Home(2)
    waits, _ = home.wait(A)
    ticket, replies = home.ask(Op.BARRIER_ABORT, C)
    assert replies == [Reply(0, waits, Status.BROKEN), Reply(1, ticket)]
    assert not home.described().damaged, "both know"

    home = Home(2)
    home.ask(Op.BARRIER_ABORT, C)
    assert home.wait(A)[1][0].status == Status.BROKEN


def test_the_manager_can_break_a_barrier_for_a_party_that_died_elsewhere():
    home = Home(2)
    waits, _ = home.wait(A)
    assert home.home.abort(BARRIER) == [Reply(0, waits, Status.BROKEN)]
    assert home.wait(A)[1][0].status == Status.BROKEN
    with pytest.raises(InternalError, match="no barrier"):
        home.home.abort(BARRIER + 1)


def test_drop_ends_waiting_calls():
    home = Home(2)
    waits, _ = home.wait(A)
    assert home.home.drop(BARRIER) == [Reply(0, waits, Status.CLOSED)]


def test_description():
    home = Home(3)
    home.wait(A, now=3)
    state = home.described()
    assert (state.value, state.waiting, state.damaged) == (3, (Party(0, 1, 10, 3),), False)


class BarrierMachine(RuleBasedStateMachine):
    """Rounds are counted by a model that knows only who waits and who has heard of a break."""

    threads = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1))

    @initialize(parties=st.integers(1, 4))
    def start(self, parties):
        self.parties = parties
        self.driver = Home(parties)
        self.waiting = {}  # thread -> ticket, in order
        self.heard = None  # None: whole; else threads that know of the break

    def breaks(self):
        expected = [Reply(thread[0], ticket, Status.BROKEN) for thread, ticket in self.waiting.items()]
        self.heard = (self.heard or set()) | set(self.waiting)
        self.waiting = {}
        return expected

    def hears(self, thread):
        self.heard.add(thread)
        if len(self.heard) >= self.parties:
            self.heard = None

    @rule(thread=threads)
    def wait(self, thread):
        if thread in self.waiting:
            return
        ticket, replies = self.driver.wait(thread)
        if self.heard is not None:
            assert replies == [Reply(thread[0], ticket, Status.BROKEN)]
            self.hears(thread)
            return
        self.waiting[thread] = ticket
        if len(self.waiting) < self.parties:
            assert replies == []
        else:
            assert replies == [Reply(t[0], n, Status.OK, i) for i, (t, n) in enumerate(self.waiting.items())]
            self.waiting = {}

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        thread = data.draw(st.sampled_from(list(self.waiting)))
        waits = self.waiting.pop(thread)
        ticket, replies = self.driver.ask(Op.CANCEL, thread, waits)
        assert replies == [
            Reply(thread[0], waits, Status.CANCELLED), *self.breaks(), Reply(thread[0], ticket)
        ]  # fmt: skip
        self.hears(thread)

    @rule(thread=threads, reset=st.booleans())
    def reset_or_abort(self, thread, reset):
        if thread in self.waiting:
            return
        ticket, replies = self.driver.ask(Op.BARRIER_RESET if reset else Op.BARRIER_ABORT, thread)
        assert replies == [*self.breaks(), Reply(thread[0], ticket)]
        if reset:
            self.heard = None
        else:
            self.hears(thread)

    @rule(node=st.integers(0, 2), worker=st.integers(0, 1) | st.none())
    def gone(self, node, worker):
        dead = {t for t in self.waiting if t[0] == node and worker in (None, t[1])}
        for thread in dead:
            del self.waiting[thread]
        if self.heard is not None:
            self.heard -= {t for t in self.heard if t[0] == node and worker in (None, t[1])}
        expected = self.breaks() if dead else []
        home = self.driver.home
        assert (home.node_gone(node) if worker is None else home.worker_gone(node, worker)) == expected

    @invariant()
    def described_as_the_model_says(self):
        if not hasattr(self, "driver"):
            return
        state = self.driver.described()
        assert [(p.node, p.worker, p.token) for p in state.waiting] == list(self.waiting)
        assert state.damaged == (self.heard is not None)
        assert len(self.waiting) < self.parties, "a full barrier opens"


TestBarrierMachine = BarrierMachine.TestCase
TestBarrierMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
