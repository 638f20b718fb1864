"""Conditions: waiting and notifying at the lock's home, and what races with it; and a stateful test."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsm.errors import InternalError, Status
from dsm.sync.service import SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, NOTIFY_ALL, Cause, Op, cause_word, notify_word, undoing
from homes import Home, is_gone, party

A, A2, B, C, D = (0, 1, 10), (0, 1, 11), (1, 1, 10), (2, 1, 10), (1, 2, 10)
LOCK, FULL, EMPTY = 4, 5, 6
ACQUIRE, RELEASE, WAIT, NOTIFY = Op.LOCK_ACQUIRE, Op.LOCK_RELEASE, Op.CONDITION_WAIT, Op.CONDITION_NOTIFY
DIED = cause_word(Cause.DIED, 0, NO_RANK)


def lock_with_conditions():
    return Home(
        SyncObject(LOCK, "lock", "x", 0),
        SyncObject(FULL, "condition", "full", 0, LOCK),
        SyncObject(EMPTY, "condition", "empty", 0, LOCK),
    )


@pytest.fixture
def home():
    return lock_with_conditions()


def waits(home, *threads, condition=FULL):
    """Let threads wait, one after the other; return their tickets."""
    tickets = []
    for thread in threads:
        home.ask(ACQUIRE, thread)
        ticket, replies = home.ask(WAIT, thread, condition)
        assert replies == []
        tickets.append(ticket)
    return tickets


def notify(home, thread, count=1, condition=FULL):
    ticket, (reply,) = home.ask(NOTIFY, thread, notify_word(condition, count))
    assert (reply.ticket, reply.status) == (ticket, Status.OK)
    return reply.result


def test_who_waits_gives_the_lock_up_and_gets_it_back_when_notified(home):
    (waiting,) = waits(home, A)
    home.ask(ACQUIRE, B)
    assert notify(home, B) == 1
    released, replies = home.ask(RELEASE, B)
    assert replies == [home.reply(0, waiting), home.reply(1, released)]
    assert party(home.described().holder) == A


def test_the_next_in_turn_gets_the_lock_that_a_wait_gives_up(home):
    home.ask(ACQUIRE, A)
    acquires, _ = home.ask(ACQUIRE, B)
    assert home.ask(WAIT, A, FULL)[1] == [home.reply(1, acquires)]


def test_notifications_go_in_the_order_of_arrival(home):
    first, second, third = waits(home, A, B, A2)
    home.ask(ACQUIRE, C)
    assert notify(home, C, 2) == 2
    assert home.ask(RELEASE, C)[1][0] == home.reply(0, first)
    assert home.ask(RELEASE, A)[1][0] == home.reply(1, second)
    assert len(home.ask(RELEASE, B)[1]) == 1, "the third one waits on"
    home.ask(ACQUIRE, C)
    assert notify(home, C, NOTIFY_ALL) == 1
    assert home.ask(RELEASE, C)[1][0] == home.reply(0, third)


def test_a_notification_without_waiters_is_not_kept(home):
    home.ask(ACQUIRE, A)
    assert notify(home, A) == 0
    assert home.ask(WAIT, A, FULL)[1] == []
    assert home.ask(ACQUIRE, B)[1][0].status == Status.OK


def test_conditions_of_one_lock_do_not_mix(home):
    full, _ = waits(home, A)[0], waits(home, B, condition=EMPTY)
    home.ask(ACQUIRE, C)
    assert notify(home, C, NOTIFY_ALL, condition=FULL) == 1
    assert home.ask(RELEASE, C)[1][:-1] == [home.reply(0, full)]


@pytest.mark.parametrize(("op", "b"), [(WAIT, FULL), (NOTIFY, notify_word(FULL, 1))])
def test_both_need_the_lock(home, op, b):
    for held in (False, True):
        ticket, replies = home.ask(op, A, b)
        assert replies == [home.reply(0, ticket, Status.NOT_OWNER)]
        if not held:
            home.ask(ACQUIRE, B)


@pytest.mark.parametrize("b", [0, LOCK, 99, 1 << 63])
def test_what_is_no_condition_of_the_lock_is_refused(home, b):
    home.ask(ACQUIRE, A)
    for op in (WAIT, NOTIFY):
        ticket, replies = home.ask(op, A, b)
        assert replies == [home.reply(0, ticket, Status.USAGE)]
    assert party(home.described().holder) == A


@pytest.mark.parametrize("op", Op)
def test_the_condition_itself_is_asked_nothing(home, op):
    (waiting,) = waits(home, A)
    (reply,) = home.home.request(op, FULL, 0, 99, A[1:], waiting, FULL)
    assert reply.status == (Status.TOO_LATE if op == Op.CANCEL else Status.USAGE)
    assert len(home.described(FULL).waiting) == 1


def test_who_gives_up_before_it_is_notified_does_not_hold_the_lock(home):
    first, second = waits(home, A, B)
    cancel, replies = home.cancel(A, first)
    assert replies == [home.reply(0, first, Status.CANCELLED), home.reply(0, cancel)]
    home.ask(ACQUIRE, C)
    assert notify(home, C) == 1
    assert home.ask(RELEASE, C)[1][0] == home.reply(1, second)


def test_who_gives_up_after_it_was_notified_passes_the_notification_on(home):
    first, second = waits(home, A, B)
    home.ask(ACQUIRE, C)
    notify(home, C)
    cancel, replies = home.cancel(A, first)
    assert replies == [home.reply(0, first, Status.CANCELLED), home.reply(0, cancel)]
    assert home.ask(RELEASE, C)[1][0] == home.reply(1, second)


@pytest.mark.parametrize("worker", [1, None])
def test_who_dies_after_it_was_notified_passes_the_notification_on(home, worker):
    _, _, third = waits(home, A, A2, B)
    home.ask(ACQUIRE, C)
    notify(home, C)
    assert home.gone(0, worker) == []
    assert home.ask(RELEASE, C)[1][0] == home.reply(1, third), "not to another one of the dead"


def test_a_notification_is_not_passed_to_who_came_after_it(home):
    first, second = waits(home, A, A2)
    home.ask(ACQUIRE, C)
    home.ask(ACQUIRE, B)
    home.ask(ACQUIRE, D)
    notify(home, C)
    home.ask(RELEASE, C)
    home.ask(WAIT, B, FULL)
    assert party(home.described().holder) == D, "of B's node, and before A"
    home.cancel(A, first)
    assert [party(each) for each in home.described().waiting] == [A2]
    home.cancel(A2, second)
    assert home.described().waiting == ()
    assert [party(each) for each in home.described(FULL).waiting] == [B]


def test_a_wait_that_was_granted_can_be_given_back_without_loss(home):
    """The thread went on without the answer: its node undoes the call (`undoing`)."""
    first, second = waits(home, A, B)
    home.ask(ACQUIRE, C)
    notify(home, C)
    assert home.ask(RELEASE, C)[1][0] == home.reply(0, first)
    (notifies, token, word), (releases, _, inconsistent) = undoing(WAIT, A[2], FULL, False)
    assert (notifies, token, releases) == (NOTIFY, A[2], RELEASE)
    home.ask(notifies, A, word)
    assert home.ask(releases, A, inconsistent)[1][0] == home.reply(1, second)


def test_who_is_notified_is_told_of_the_owner_s_death(home):
    (waiting,) = waits(home, B)
    home.ask(ACQUIRE, A)
    notify(home, A)
    assert home.gone(0, 1) == [home.reply(1, waiting, Status.OWNER_DIED, DIED)]


def test_a_death_of_the_owner_wakes_nobody_who_was_not_notified(home):
    waits(home, B)
    home.ask(ACQUIRE, A)
    assert home.gone(0, 1) == []
    assert home.described().damaged
    assert len(home.described(FULL).waiting) == 1


def test_a_condition_needs_its_lock_at_the_same_home():
    home = SyncHome()
    with pytest.raises(InternalError, match="has lock 4, not here"):
        home.create(SyncObject(FULL, "condition", "full", 0, LOCK))
    home.create(SyncObject(LOCK, "rwlock", "x", 0))
    with pytest.raises(InternalError, match="has lock 4, not here"):
        home.create(SyncObject(FULL, "condition", "full", 0, LOCK))


def test_drop_ends_waits(home):
    (waiting,) = waits(home, A)
    assert home.home.drop(FULL) == [home.reply(0, waiting, Status.CLOSED)]
    home.ask(ACQUIRE, A)
    assert home.ask(WAIT, A, FULL)[1][0].status == Status.USAGE


def test_description_says_who_waits_for_what(home):
    home.ask(ACQUIRE, A)
    home.ask(WAIT, A, FULL, now=7)
    state = home.described(FULL)
    assert (state.kind, state.name, state.value) == ("condition", "full", LOCK)
    assert [(party(each), each.since_ns) for each in state.waiting] == [(A, 7)]
    home.ask(ACQUIRE, B)
    home.ask(NOTIFY, B, notify_word(FULL, 1), now=9)
    assert home.described(FULL).waiting == ()
    assert [(party(each), each.since_ns) for each in home.described().waiting] == [(A, 9)]


threads = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2))
conditions = st.sampled_from((FULL, EMPTY))


class ConditionMachine(RuleBasedStateMachine):
    """Against queues of who waits for the lock (and was notified of what), and for each condition."""

    def __init__(self):
        super().__init__()
        self.driver = lock_with_conditions()
        self.holder = None
        self.died, self.cause = False, 0
        self.queue = []  # for the lock: (thread, ticket, condition or 0, those who waited beside it)
        self.waiting = {FULL: [], EMPTY: []}  # (thread, ticket) in order of arrival

    def busy(self, thread):
        entries = [*self.queue, *self.waiting[FULL], *self.waiting[EMPTY]]
        return any(thread == each[0] for each in entries)

    def granted(self, replies):
        """At most one, when the lock is free: to the first of a node."""
        assert len(replies) == bool(self.queue)
        for reply in replies:
            entry = next(each for each in self.queue if each[1] == reply.ticket)
            assert entry == next(each for each in self.queue if each[0][0] == entry[0][0])
            self.queue.remove(entry)
            self.take(entry[0], reply)

    def take(self, thread, reply):
        assert (reply.node, reply.status, reply.result) == (
            (thread[0], Status.OWNER_DIED, self.cause) if self.died else (thread[0], Status.OK, 0)
        )
        self.holder, self.died = thread, False

    def free(self, inconsistent=False):
        self.holder, self.died = None, inconsistent

    def pass_on(self, removed):
        """What those were notified of goes to who waited beside them then."""
        for _, _, condition, beside in removed:
            if condition:
                heir = next((each for each in self.waiting[condition] if each[1] in beside), None)
                if heir is not None:
                    self.waiting[condition].remove(heir)
                    self.queue.append((*heir, condition, beside))

    @rule(thread=threads)
    def acquire(self, thread):
        if self.busy(thread) or thread == self.holder:
            return
        ticket, replies = self.driver.ask(ACQUIRE, thread)
        if self.holder is None:
            self.take(thread, *replies)
        else:
            assert replies == []
            self.queue.append((thread, ticket, 0, ()))

    @precondition(lambda self: self.holder)
    @rule(inconsistent=st.booleans())
    def release(self, inconsistent):
        thread = self.holder
        self.free(inconsistent)
        ticket, replies = self.driver.ask(RELEASE, thread, int(inconsistent))
        assert replies[-1] == self.driver.reply(thread[0], ticket)
        self.granted(replies[:-1])

    @precondition(lambda self: self.holder)
    @rule(condition=conditions)
    def wait(self, condition):
        thread = self.holder
        self.free()
        ticket, replies = self.driver.ask(WAIT, thread, condition)
        self.waiting[condition].append((thread, ticket))
        self.granted(replies)

    @precondition(lambda self: self.holder is None)
    @rule(come=st.lists(threads, min_size=2, max_size=4, unique=True), condition=conditions)
    def several_come_and_wait(self, come, condition):
        for thread in come:
            if not self.busy(thread):
                self.acquire(thread)
                self.wait(condition)

    @precondition(lambda self: self.holder)
    @rule(neighbour=threads, condition=conditions)
    def wait_in_front_of_others(self, neighbour, condition):
        """A thread of the same node takes the lock over, before those who were notified."""
        neighbour = (self.holder[0], *neighbour[1:])
        if not self.busy(neighbour) and neighbour != self.holder:
            self.acquire(neighbour)
            self.wait(condition)

    @precondition(lambda self: self.holder)
    @rule(condition=conditions, count=st.integers(1, 3) | st.just(NOTIFY_ALL))
    def notify(self, condition, count):
        queue = self.waiting[condition]
        beside = tuple(ticket for _, ticket in queue)
        woken = queue[:count]
        self.waiting[condition] = queue[count:]
        self.queue += [(*each, condition, beside) for each in woken]
        assert notify(self.driver, self.holder, count, condition) == len(woken)

    @rule(thread=threads, condition=conditions, op=st.sampled_from((WAIT, NOTIFY, RELEASE)))
    def without_the_lock(self, thread, condition, op):
        if thread != self.holder:
            ticket, replies = self.driver.ask(op, thread, 0 if op == RELEASE else condition)
            assert replies == [self.driver.reply(thread[0], ticket, Status.NOT_OWNER)]

    @precondition(lambda self: self.queue or self.waiting[FULL] or self.waiting[EMPTY])
    @rule(data=st.data())
    def cancel(self, data):
        self.give_up(data.draw(st.sampled_from([*self.queue, *self.waiting[FULL], *self.waiting[EMPTY]])))

    @precondition(lambda self: any(each[2] for each in self.queue))
    @rule(data=st.data())
    def cancel_what_was_notified(self, data):
        self.give_up(data.draw(st.sampled_from([each for each in self.queue if each[2]])))

    def give_up(self, entry):
        for queue in self.waiting.values():
            if entry in queue:
                queue.remove(entry)
        if entry in self.queue:
            self.queue.remove(entry)
            self.pass_on([entry])
        thread, ticket = entry[:2]
        cancel, replies = self.driver.cancel(thread, ticket)
        assert replies == [
            self.driver.reply(thread[0], ticket, Status.CANCELLED),
            self.driver.reply(thread[0], cancel),
        ]

    @rule(node=st.integers(0, 2), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        def dead(entry):
            return is_gone(entry[0], node, worker)

        for condition, queue in self.waiting.items():
            self.waiting[condition] = [each for each in queue if not dead(each)]
        removed = [each for each in self.queue if dead(each)]
        self.queue = [each for each in self.queue if not dead(each)]
        self.pass_on(removed)
        replies = self.driver.gone(node, worker, died)
        if self.holder is not None and dead([self.holder]):
            self.free(True)
            cause = Cause.NODE_DIED if worker is None else Cause.DIED if died else Cause.LEFT
            self.cause = cause_word(cause, node, 0 if worker is None else NO_RANK)
            self.granted(replies)
        else:
            assert replies == []

    @invariant()
    def described_as_the_model_says(self):
        state = self.driver.described()
        assert party(state.holder) == self.holder
        assert sorted(map(party, state.waiting)) == sorted(each[0] for each in self.queue)
        assert state.damaged == self.died
        assert self.holder or not self.queue
        for condition, queue in self.waiting.items():
            described = self.driver.described(condition)
            assert list(map(party, described.waiting)) == [each[0] for each in queue]


TestConditionMachine = ConditionMachine.TestCase
TestConditionMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
