"""Readers-writer locks: sharing, exclusion, phases, cancellation, death; and a stateful test of it all."""

from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsm.errors import Status
from dsm.sync import turns
from dsm.sync.turns import LOCAL_HANDOVERS
from dsm.wire.calls import NO_RANK, Cause, Op, cause_word
from homes import is_gone, one, party

A, A2, B, C, D = (0, 1, 10), (0, 1, 11), (1, 1, 10), (2, 1, 10), (1, 2, 10)
READ, WRITE, RELEASE = Op.RW_READ, Op.RW_WRITE, Op.RW_RELEASE
LEFT = cause_word(Cause.LEFT, 0, NO_RANK)
DIED = cause_word(Cause.DIED, 0, NO_RANK)


@pytest.fixture
def home():
    return one("rwlock")


def test_readers_share_and_a_writer_waits_for_all_of_them(home):
    for reader in (A, A2, B):
        ticket, replies = home.ask(READ, reader)
        assert replies == [home.reply(reader[0], ticket)]
    writes, nothing = home.ask(WRITE, C)
    assert nothing == home.ask(RELEASE, A)[1][:-1] == home.ask(RELEASE, B)[1][:-1] == []
    released, replies = home.ask(RELEASE, A2)
    assert replies == [home.reply(2, writes), home.reply(0, released)]


def test_a_reader_that_comes_while_a_writer_waits_waits(home):
    home.ask(READ, A)
    home.ask(WRITE, B)
    reads, nothing = home.ask(READ, C)
    assert nothing == []
    home.ask(RELEASE, A)
    assert home.ask(RELEASE, B)[1][0] == home.reply(2, reads)


def test_behind_a_writer_all_readers_go_together_before_the_next_writer(home):
    home.ask(WRITE, A)
    first, _ = home.ask(READ, B)
    second, _ = home.ask(WRITE, A2)
    third, _ = home.ask(READ, C)
    assert home.ask(RELEASE, A)[1][:-1] == [home.reply(1, first), home.reply(2, third)]
    assert home.ask(READ, D)[1] == [], "the writer's turn is next"
    home.ask(RELEASE, B)
    assert home.ask(RELEASE, C)[1][0] == home.reply(0, second)


def test_readers_that_come_and_go_do_not_keep_a_writer_waiting(home):
    home.ask(READ, A)
    writes, _ = home.ask(WRITE, B)
    for token in range(50):
        assert home.ask(READ, (2, 1, token))[1] == []
    assert home.ask(RELEASE, A)[1][0] == home.reply(1, writes)


def test_writers_that_come_and_go_do_not_keep_a_reader_waiting(home):
    home.ask(WRITE, A)
    for token in range(20):
        home.ask(WRITE, (0, 2, token))
    reads, _ = home.ask(READ, B)
    assert home.ask(RELEASE, A)[1][0] == home.reply(1, reads)


@pytest.mark.parametrize("held", [READ, WRITE])
@pytest.mark.parametrize("asked", [READ, WRITE])
def test_a_thread_that_holds_it_in_any_way_gets_it_in_none(home, held, asked):
    home.ask(held, A)
    ticket, replies = home.ask(asked, A)
    assert replies == [home.reply(0, ticket, Status.USAGE)]
    assert home.ask(RELEASE, A)[1][-1].status == Status.OK


def test_releasing_what_one_does_not_hold_is_an_error(home):
    home.ask(READ, A)
    for other in (A2, B):
        ticket, replies = home.ask(RELEASE, other)
        assert replies == [home.reply(other[0], ticket, Status.NOT_OWNER)]


def test_a_writer_that_gives_up_lets_readers_join_those_who_read(home):
    home.ask(READ, A)
    writes, _ = home.ask(WRITE, B)
    reads, _ = home.ask(READ, C)
    cancel, replies = home.cancel(B, writes)
    assert replies == [home.reply(1, writes, Status.CANCELLED), home.reply(2, reads), home.reply(1, cancel)]


def test_a_writer_that_dies_while_it_waits_lets_readers_join_those_who_read(home):
    home.ask(READ, A)
    home.ask(WRITE, B)
    reads, _ = home.ask(READ, C)
    assert home.gone(1, 1) == [home.reply(2, reads)]


def test_a_reader_that_dies_just_releases(home):
    home.ask(READ, A)
    writes, _ = home.ask(WRITE, B)
    assert home.gone(0, 1) == [home.reply(1, writes)]


@pytest.mark.parametrize("op", [READ, WRITE])
def test_who_comes_after_a_dead_writer_is_told_and_has_it_alone(home, op):
    home.ask(WRITE, A)
    home.gone(0, 1, died=False)
    ticket, replies = home.ask(op, B)
    assert replies == [home.reply(1, ticket, Status.OWNER_DIED, LEFT)]
    reads, nothing = home.ask(READ, C)
    assert nothing == []
    assert home.ask(RELEASE, B)[1][0] == home.reply(2, reads), "told once"


def test_of_many_readers_one_is_told_and_the_others_wait_until_it_has_repaired(home):
    home.ask(WRITE, A)
    first, _ = home.ask(READ, B)
    others = [home.ask(READ, reader)[0] for reader in (C, D)]
    assert home.gone(0, 1) == [home.reply(1, first, Status.OWNER_DIED, DIED)]
    assert [reply.ticket for reply in home.ask(RELEASE, B)[1][:-1]] == others


def test_released_inconsistent_the_next_one_is_told_again(home):
    home.ask(WRITE, A)
    home.gone(0, 1)
    home.ask(READ, B)
    writes, _ = home.ask(WRITE, C)
    assert home.ask(RELEASE, B, 1)[1][0] == home.reply(2, writes, Status.OWNER_DIED, DIED)


def test_inconsistent_readers_do_not_keep_a_writer_waiting(home):
    home.ask(WRITE, A)
    home.gone(0, 1)
    home.ask(READ, B)
    home.ask(READ, D)
    writes, _ = home.ask(WRITE, C)
    assert home.ask(RELEASE, B, 1)[1][0] == home.reply(2, writes, Status.OWNER_DIED, DIED)


def test_a_reader_among_others_cannot_call_it_inconsistent(home):
    home.ask(READ, A)
    home.ask(RELEASE, A, 1)
    assert home.ask(WRITE, B)[1][0].status == Status.OK


def test_a_told_reader_that_dies_is_the_next_cause(home):
    home.ask(WRITE, B)
    home.gone(1, 1)
    home.ask(READ, A)
    waits, _ = home.ask(READ, C)
    assert home.gone(0, 1) == [home.reply(2, waits, Status.OWNER_DIED, DIED)]


def test_local_writers_go_first_for_a_bounded_number_of_times(home):
    home.ask(WRITE, A)
    remote, _ = home.ask(WRITE, B)
    tickets = [home.ask(WRITE, (0, 3, token))[0] for token in range(LOCAL_HANDOVERS + 2)]
    granted = []
    for _ in range(len(tickets) + 1):
        granted.append(home.ask(RELEASE, party(home.described().holder))[1][0].ticket)
    assert granted == [*tickets[:LOCAL_HANDOVERS], remote, *tickets[LOCAL_HANDOVERS:]]


def test_description_says_who_holds_and_who_waits(home):
    home.ask(READ, A, now=5)
    home.ask(READ, C, now=6)
    home.ask(WRITE, B, now=7)
    home.ask(READ, D, now=8)
    state = home.described()
    assert (state.holder, [party(each) for each in state.holders]) == (None, [A, C])
    assert ([party(each) for each in state.waiting], state.readers) == ([D, B], 1)
    assert [each.since_ns for each in (*state.holders, *state.waiting)] == [5, 6, 8, 7]
    home.ask(RELEASE, A)
    home.ask(RELEASE, C, now=9)
    assert party(home.described().holder) == B
    assert home.described().holder.since_ns == 9


def test_drop_ends_waiting_calls(home):
    home.ask(WRITE, A)
    reads, writes = home.ask(READ, B)[0], home.ask(WRITE, C)[0]
    closed = [home.reply(1, reads, Status.CLOSED), home.reply(2, writes, Status.CLOSED)]
    assert home.home.drop(home.number) == closed


NODES = 3
FEW_HANDOVERS = 2
threads = st.tuples(st.integers(0, NODES - 1), st.integers(0, 1), st.integers(0, 2))


class RWLockMachine(RuleBasedStateMachine):
    """Grants are checked against a list of who waits, and against what each may be overtaken by."""

    def __init__(self):
        super().__init__()
        turns.LOCAL_HANDOVERS = FEW_HANDOVERS  # so that the bound is met often
        self.driver = one("rwlock")
        self.alone = None
        self.readers = set()
        self.died, self.cause = False, 0
        self.waiting = []  # (thread, ticket, op) in order of arrival
        self.phases = defaultdict(int)  # ticket of a reader -> writers that went before it, less repairs
        self.writers = defaultdict(int)  # ticket of a writer that leads its node -> writers before it

    def teardown(self):
        turns.LOCAL_HANDOVERS = LOCAL_HANDOVERS

    def take(self, replies, extra=None):
        """Grants, in the order in which they were sent; `extra`: who asked just now."""
        waiting = [*self.waiting, *([extra] if extra else [])]
        for reply in replies:
            entry = next(each for each in waiting if each[1] == reply.ticket)
            thread, _, op = entry
            assert reply.node == thread[0]
            assert self.alone is None, "nobody is let in beside one who has it alone"
            assert (reply.status, reply.result) == ((Status.OWNER_DIED, self.cause) if self.died else (0, 0))
            if op == WRITE or self.died:
                assert not self.readers
                self.alone, self.died = thread, False
            else:
                assert not self.died
                self.readers.add(thread)
            if entry in self.waiting:
                self.waiting.remove(entry)
            self.count(entry, reply.status == Status.OWNER_DIED)

    def count(self, granted, told):
        thread, first, op = granted
        for _, waits, kind in self.waiting:
            if kind == READ:
                self.phases[waits] += (op == WRITE) - told
                assert self.phases[waits] <= 1, "a reader waits for one writer, and one for each repair"
        if op == WRITE:
            same = [each for each in self.waiting if each[2] == WRITE and each[0][0] == thread[0]]
            assert all(each[1] > first for each in same), "first come, first served within a node"
            heads = {}
            for other, waits, kind in self.waiting:
                if kind == WRITE:
                    heads.setdefault(other[0], waits)
            for node, waits in heads.items():
                if node != thread[0]:
                    self.writers[waits] += 1
                    assert self.writers[waits] <= (NODES - 1) * (FEW_HANDOVERS + 1)

    @rule(thread=threads, op=st.sampled_from((READ, WRITE)))
    def acquire(self, thread, op):
        if any(thread == each[0] for each in self.waiting):
            return  # a thread waits in one call at a time
        writers = any(each[2] == WRITE for each in self.waiting)
        free = self.alone is None and not self.readers
        ticket, replies = self.driver.ask(op, thread)
        if thread == self.alone or thread in self.readers:
            assert replies == [self.driver.reply(thread[0], ticket, Status.USAGE)]
        elif free or (op == READ and self.alone is None and not writers):
            assert len(replies) == 1
            self.take(replies, (thread, ticket, op))
        else:
            assert replies == []
            self.waiting.append((thread, ticket, op))

    @precondition(lambda self: self.alone or self.readers)
    @rule(data=st.data(), inconsistent=st.booleans())
    def release(self, data, inconsistent):
        thread = self.alone or data.draw(st.sampled_from(sorted(self.readers)))
        if thread == self.alone:
            self.alone, self.died = None, inconsistent
        self.readers.discard(thread)
        ticket, replies = self.driver.ask(RELEASE, thread, int(inconsistent))
        assert replies[-1] == self.driver.reply(thread[0], ticket)
        self.take(replies[:-1])

    @rule(thread=threads)
    def release_by_another(self, thread):
        if thread != self.alone and thread not in self.readers:
            ticket, replies = self.driver.ask(RELEASE, thread)
            assert replies == [self.driver.reply(thread[0], ticket, Status.NOT_OWNER)]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        ticket, replies = self.driver.cancel(entry[0], entry[1])
        assert replies[0] == self.driver.reply(entry[0][0], entry[1], Status.CANCELLED)
        assert replies[-1] == self.driver.reply(entry[0][0], ticket)
        self.take(replies[1:-1])

    @rule(node=st.integers(0, NODES - 1), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        self.waiting = [each for each in self.waiting if not is_gone(each[0], node, worker)]
        self.readers = {each for each in self.readers if not is_gone(each, node, worker)}
        if self.alone is not None and is_gone(self.alone, node, worker):
            self.alone, self.died = None, True
            cause = Cause.NODE_DIED if worker is None else Cause.DIED if died else Cause.LEFT
            self.cause = cause_word(cause, node, 0 if worker is None else NO_RANK)
        self.take(self.driver.gone(node, worker, died))

    @invariant()
    def nobody_waits_for_nothing(self):
        writers = [each for each in self.waiting if each[2] == WRITE]
        if self.alone is None:
            assert not self.waiting or (self.readers and writers)

    @invariant()
    def described_as_the_model_says(self):
        state = self.driver.described()
        assert party(state.holder) == self.alone
        assert {party(each) for each in state.holders} == self.readers
        assert sorted(map(party, state.waiting)) == sorted(each[0] for each in self.waiting)
        assert state.readers == sum(each[2] == READ for each in self.waiting)
        assert state.damaged == self.died


TestRWLockMachine = RWLockMachine.TestCase
TestRWLockMachine.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
