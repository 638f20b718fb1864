"""Barriers: rounds, indices, breaking and mending."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import Status
from dsm.sync.service import Party, SyncHome
from dsm.sync.service import Reply as AnyReply
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, Cause, Op, cause_of, cause_word

BARRIER = 9


def Reply(node, ticket, status=0, result=0):
    return AnyReply(node, ticket, status, result, BARRIER)


class Home:
    def __init__(self, parties):
        self.home = SyncHome()
        self.home.create(SyncObject(BARRIER, "barrier", "step", 0, parties))
        self.tickets = 0

    def ask(self, op, thread, a=0, now=0, b=0):
        self.tickets += 1
        node, worker, token = thread
        return self.tickets, self.home.request(op, BARRIER, node, self.tickets, (worker, token), a, b, now)

    def wait(self, thread, now=0, of_ranks=False):
        return self.ask(Op.BARRIER_WAIT, thread, thread[2], now, int(of_ranks))

    def outcome(self, thread, of_ranks=False):
        """A thread arrives: None when it waits, else the status and the cause."""
        ticket, replies = self.wait(thread, of_ranks=of_ranks)
        mine = [reply for reply in replies if reply.ticket == ticket]
        return (mine[0].status, cause_of(mine[0].result)) if mine else None

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
A_GAVE_UP = cause_word(Cause.GAVE_UP, 0, 1)


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
    assert replies == [
        Reply(0, first, Status.CANCELLED),
        Reply(0, second, Status.BROKEN, A_GAVE_UP),
        Reply(0, ticket),
    ]


def test_whoever_comes_after_the_break_is_told_at_once():
    home = Home(2)
    first, _ = home.wait(A)
    home.ask(Op.CANCEL, A, first)
    late, replies = home.wait(C)
    assert replies == [Reply(1, late, Status.BROKEN, A_GAVE_UP)]


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
        assert replies == [Reply(0, ticket, Status.BROKEN, A_GAVE_UP)]
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
    died = cause_word(Cause.DIED, 0, 4)
    assert home.home.worker_gone(0, 1, rank=4) == [Reply(1, waits, Status.BROKEN, died)]
    for _ in range(3):
        for survivor in (B, C):
            assert home.wait(survivor)[1][0].status == Status.BROKEN
    replacement = (0, 7, 10)
    assert home.wait(replacement)[1][0].status == Status.BROKEN
    assert len(home.meet(B, C, replacement)) == 3


def test_a_thread_that_was_told_and_died_does_not_count():
    home = Home(2)
    assert home.meet(A, B)
    first, _ = home.wait(A)
    home.ask(Op.CANCEL, A, first)
    home.home.worker_gone(0, 1)
    home.wait(B)
    assert home.described().damaged


def test_death_of_a_worker_that_has_never_come_leaves_the_barrier_alone():
    home = Home(2)
    home.wait(A)
    assert home.home.worker_gone(1, 1) == []
    assert home.home.worker_gone(0, 2) == []
    assert home.wait(D)[1][0].status == Status.OK


def test_death_of_a_member_between_rounds_breaks_the_barrier():
    home = Home(3)
    home.meet(A, B, C)
    waits, _ = home.wait(A)
    died = (Cause.DIED, 1, 2)
    assert home.home.worker_gone(1, 1, rank=2) == [Reply(0, waits, Status.BROKEN, cause_word(*died))]
    assert home.outcome(B) == (Status.BROKEN, died), "it could never be complete"
    assert home.outcome(A) == (Status.BROKEN, died)
    replacement = (1, 1, 12)  # the number of a worker is used again
    assert home.outcome(replacement) == (Status.BROKEN, died)
    assert len(home.meet(A, replacement, B)) == 3


def test_a_member_that_leaves_between_rounds_does_not_break_the_barrier():
    home = Home(3)
    home.meet(A, B, C)
    waits, _ = home.wait(A)
    assert home.home.worker_gone(1, 1, died=False) == []
    home.wait(B)
    assert home.wait((2, 0, 1))[1][0] == Reply(0, waits, Status.OK, 0)


def test_a_member_that_leaves_while_a_thread_of_it_waits_breaks_the_barrier():
    home = Home(3)
    home.wait(A)
    waits, _ = home.wait(C)
    left = cause_word(Cause.LEFT, 0, NO_RANK)
    assert home.home.worker_gone(0, 1, died=False) == [Reply(1, waits, Status.BROKEN, left)]


def test_a_barrier_whose_members_are_all_gone_is_new():
    home = Home(2)
    home.meet(A, B)
    home.wait(A)
    home.home.worker_gone(0, 1)
    assert home.described().damaged
    home.home.worker_gone(0, 2)
    assert not home.described().damaged
    assert home.meet(C, D) == {C: 0, D: 1}


def test_a_stranger_s_death_mends_nothing():
    home = Home(2)
    home.ask(Op.BARRIER_ABORT, A)
    home.home.worker_gone(0, 2)
    assert home.described().damaged


def test_the_loss_of_a_node_is_the_death_of_its_members():
    home = Home(2)
    home.meet(A, C)
    assert home.home.node_gone(1) == []
    assert home.outcome(A) == (Status.BROKEN, (Cause.NODE_DIED, 1, 0))


def test_death_of_a_node_breaks_the_barrier_for_the_others():
    home = Home(4)
    home.wait(A)
    home.wait(B)
    waits, _ = home.wait(C)
    died = cause_word(Cause.NODE_DIED, 0)
    assert home.home.node_gone(0) == [Reply(1, waits, Status.BROKEN, died)]


def test_reset_breaks_the_waiting_ones_and_makes_the_barrier_new():
    home = Home(2)
    waits, _ = home.wait(A)
    ticket, replies = home.ask(Op.BARRIER_RESET, C)
    assert replies == [Reply(0, waits, Status.BROKEN, cause_word(Cause.RESET, 1, 1)), Reply(1, ticket)]
    assert home.meet(A, C) == {A: 0, C: 1}


def test_abort_breaks_it_and_the_one_who_aborts_knows():
    home = Home(2)
    waits, _ = home.wait(A)
    ticket, replies = home.ask(Op.BARRIER_ABORT, C)
    assert replies == [Reply(0, waits, Status.BROKEN, cause_word(Cause.ABORTED, 1, 1)), Reply(1, ticket)]
    assert not home.described().damaged, "both know"

    home = Home(2)
    home.ask(Op.BARRIER_ABORT, C)
    assert home.wait(A)[1][0].status == Status.BROKEN


MISSING = (Status.BROKEN, (Cause.RANK_MISSING, 1, 2))


def test_a_missing_rank_breaks_a_barrier_of_all_ranks_for_those_who_wait_and_those_who_come():
    home = Home(3)
    waits, _ = home.wait(A, of_ranks=True)
    (reply,) = home.home.ranks_missing({2: 1})
    assert (reply.ticket, reply.status, cause_of(reply.result)) == (waits, *MISSING)
    for thread in (A, B, A):
        assert home.outcome(thread, of_ranks=True) == MISSING
    assert (home.described().damaged, home.described().missing) == (True, (2,))


def test_a_reset_does_not_bring_a_rank_back():
    home = Home(2)
    home.home.ranks_missing({2: 1})
    home.ask(Op.BARRIER_RESET, A)
    assert home.outcome(A, of_ranks=True) == MISSING


def test_a_barrier_that_is_created_after_the_death_knows_of_it():
    home = Home(2)
    home.home.ranks_missing({2: 1})
    home.home.create(SyncObject(BARRIER + 1, "barrier", "later", 0, 2))
    (reply,) = home.home.request(Op.BARRIER_WAIT, BARRIER + 1, 0, 1, (1, 10), 10, 1)
    assert (reply.status, cause_of(reply.result)) == MISSING


def test_when_every_rank_is_there_again_the_barrier_is_new():
    home = Home(2)
    home.meet(A, C)
    home.wait(A, of_ranks=True)
    home.wait(C, of_ranks=True)
    home.wait(A, of_ranks=True)
    home.home.worker_gone(0, 1)  # it waited: broken before it is known that its rank is missing
    home.home.ranks_missing({0: 0, 1: 1})
    home.home.ranks_missing({1: 1})
    assert home.outcome(A, of_ranks=True)[0] == Status.BROKEN, "one is still missing"
    assert home.home.ranks_missing({}) == []
    assert home.meet(A, C)


def test_a_death_between_rounds_says_nothing_to_a_barrier_of_ranks_but_the_missing_rank_does():
    home = Home(2)
    home.wait(A, of_ranks=True)
    home.wait(C, of_ranks=True)
    waits, _ = home.wait(C, of_ranks=True)
    assert home.home.worker_gone(0, 1) == [], "a child of fork may have met here instead of its parent"
    assert [reply.ticket for reply in home.home.ranks_missing({0: 0})] == [waits]


def test_a_barrier_of_some_parties_does_not_care_for_ranks():
    home = Home(2)
    home.home.ranks_missing({2: 1})
    assert home.meet(A, C)


def test_who_says_first_that_the_parties_are_the_ranks_ends_those_who_wait_without_one():
    home = Home(3)
    home.home.ranks_missing({2: 1})
    waits, _ = home.wait(A)
    ticket, replies = home.wait(B, of_ranks=True)
    assert [(reply.ticket, reply.status) for reply in replies] == [
        (waits, Status.BROKEN), (ticket, Status.BROKEN)
    ]  # fmt: skip


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
    """Rounds are counted by a model that knows only who waits, who belongs and who has heard of a break."""

    threads = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1))

    @initialize(parties=st.integers(1, 4))
    def start(self, parties):
        self.parties = parties
        self.driver = Home(parties)
        self.waiting = {}  # thread -> ticket, in order
        self.members = set()
        self.heard = None  # None: whole; else threads that know of the break
        self.cause = 0
        self.of_ranks, self.missing = False, {}

    def breaks(self, cause, node, number):
        self.cause = cause_word(cause, node, number)
        expected = [
            Reply(thread[0], ticket, Status.BROKEN, self.cause) for thread, ticket in self.waiting.items()
        ]
        self.heard = (self.heard or set()) | set(self.waiting)
        self.waiting = {}
        return expected

    def hears(self, thread):
        self.heard.add(thread)
        if len(self.heard) >= self.parties:
            self.heard = None

    def without_a_rank(self):
        """What those who wait are told when a rank is missing."""
        if not (self.of_ranks and self.missing):
            return []
        rank = min(self.missing)
        cause = cause_word(Cause.RANK_MISSING, self.missing[rank], rank)
        waiting, self.waiting = self.waiting, {}
        return [Reply(thread[0], ticket, Status.BROKEN, cause) for thread, ticket in waiting.items()]

    @rule(missing=st.dictionaries(st.integers(0, 2), st.integers(0, 2), max_size=2))
    def ranks(self, missing):
        before, self.missing = self.missing, missing
        if self.of_ranks and before and not missing:
            self.heard = None
        assert self.driver.home.ranks_missing(missing) == self.without_a_rank()

    @rule(thread=threads, of_ranks=st.integers(0, 9).map(lambda n: n == 0))
    def wait(self, thread, of_ranks):
        if thread in self.waiting:
            return
        ticket, replies = self.driver.wait(thread, of_ranks=of_ranks)
        self.members.add(thread[:2])
        self.of_ranks |= of_ranks
        told = self.without_a_rank()
        if self.heard is not None or (self.of_ranks and self.missing):
            assert replies[:-1] == told
            assert (replies[-1].ticket, replies[-1].status) == (ticket, Status.BROKEN)
            if self.heard is not None:
                if not (self.of_ranks and self.missing):
                    assert replies[-1].result == self.cause
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
            Reply(thread[0], waits, Status.CANCELLED),
            *self.breaks(Cause.GAVE_UP, *thread[:2]),
            Reply(thread[0], ticket),
        ]
        self.hears(thread)

    @rule(thread=threads, reset=st.booleans())
    def reset_or_abort(self, thread, reset):
        if thread in self.waiting:
            return
        ticket, replies = self.driver.ask(Op.BARRIER_RESET if reset else Op.BARRIER_ABORT, thread)
        cause = Cause.RESET if reset else Cause.ABORTED
        assert replies == [*self.breaks(cause, *thread[:2]), Reply(thread[0], ticket)]
        if reset:
            self.heard = None
        else:
            self.hears(thread)

    @rule(node=st.integers(0, 2), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        dead = {t for t in self.waiting if t[0] == node and worker in (None, t[1])}
        for thread in dead:
            del self.waiting[thread]
        if self.heard is not None:
            self.heard -= {t for t in self.heard if t[0] == node and worker in (None, t[1])}
        gone = {member for member in self.members if member[0] == node and worker in (None, member[1])}
        self.members -= gone
        expected = []
        if gone and not self.members:
            self.heard = None
        elif dead or (gone and (died or worker is None) and not self.of_ranks):
            cause = Cause.NODE_DIED if worker is None else Cause.DIED if died else Cause.LEFT
            expected = self.breaks(cause, node, 0 if worker is None else NO_RANK)
        home = self.driver.home
        replies = home.node_gone(node) if worker is None else home.worker_gone(node, worker, died=died)
        assert replies == expected

    @invariant()
    def described_as_the_model_says(self):
        if not hasattr(self, "driver"):
            return
        state = self.driver.described()
        assert [(p.node, p.worker, p.token) for p in state.waiting] == list(self.waiting)
        missing = tuple(sorted(self.missing)) if self.of_ranks else ()
        assert state.missing == missing
        assert state.damaged == (self.heard is not None or bool(missing))
        assert len(self.waiting) < self.parties, "a full barrier opens"


TestBarrierMachine = BarrierMachine.TestCase
TestBarrierMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
