"""Locks: exclusion, order, starvation, cancellation, death; and a stateful test of all of it at once."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsm.errors import Status
from dsm.sync import turns
from dsm.sync.service import Party, SyncHome
from dsm.sync.service import Reply as AnyReply
from dsm.sync.turns import LOCAL_HANDOVERS
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, Cause, Op, cause_of, cause_word

LOCK = 4


def Reply(node, ticket, status=0, result=0):
    return AnyReply(node, ticket, status, result, LOCK)


class Home:
    """A home with one lock, and threads named by (node, worker, token) that ask it."""

    def __init__(self):
        self.home = SyncHome()
        self.home.create(SyncObject(LOCK, "lock", "best", 0))
        self.tickets = 0

    def ask(self, op, thread, a=0, now=0, b=0):
        self.tickets += 1
        node, worker, token = thread
        return self.tickets, self.home.request(op, LOCK, node, self.tickets, (worker, token), a, b, now)

    def acquire(self, thread, now=0):
        return self.ask(Op.LOCK_ACQUIRE, thread, thread[2], now)

    def release(self, thread, inconsistent=False):
        return self.ask(Op.LOCK_RELEASE, thread, thread[2], b=int(inconsistent))

    def described(self):
        return self.home.describe()[0]


A, A2, A3 = (0, 1, 10), (0, 1, 11), (0, 2, 10)
B, C = (1, 1, 10), (2, 1, 10)


def test_a_free_lock_is_granted_at_once():
    home = Home()
    ticket, replies = home.acquire(A)
    assert replies == [Reply(0, ticket, Status.OK)]


def test_the_next_holder_is_told_before_the_one_who_released():
    home = Home()
    home.acquire(A)
    waits, nothing = home.acquire(B)
    released, replies = home.release(A)
    assert nothing == []
    assert replies == [Reply(1, waits), Reply(0, released)]


def test_acquiring_twice_by_the_same_thread_is_an_error_and_keeps_the_lock():
    home = Home()
    home.acquire(A)
    again, replies = home.acquire(A)
    assert replies == [Reply(0, again, Status.USAGE)]
    released, replies = home.release(A)
    assert replies == [Reply(0, released)]


def test_the_same_token_on_another_node_or_worker_is_another_thread():
    home = Home()
    home.acquire(A)
    for other in (A3, B, A2):
        ticket, replies = home.release(other)
        assert replies == [Reply(other[0], ticket, Status.NOT_OWNER)]
    assert home.acquire(A3)[1] == []


def test_releasing_a_free_lock_is_an_error():
    ticket, replies = Home().release(A)
    assert replies == [Reply(0, ticket, Status.NOT_OWNER)]


def test_local_waiters_go_first_for_a_bounded_number_of_times():
    home = Home()
    home.acquire(A)
    remote, _ = home.acquire(B)
    local = [(0, 3, token) for token in range(LOCAL_HANDOVERS + 3)]
    tickets = [home.acquire(thread)[0] for thread in local]

    granted, holder = [], A
    for _ in range(len(local) + 1):
        _, replies = home.release(holder)
        granted.append(replies[0].ticket)
        party = home.described().holder
        holder = (party.node, party.worker, party.token)

    assert granted == [*tickets[:LOCAL_HANDOVERS], remote, *tickets[LOCAL_HANDOVERS:]]


def test_each_node_gets_a_share_of_its_own():
    home = Home()
    home.acquire(A)
    for token in range(LOCAL_HANDOVERS + 2):
        home.acquire((0, 3, token))
        home.acquire((1, 3, token))

    nodes = []
    for _ in range(2 * (LOCAL_HANDOVERS + 2)):
        party = home.described().holder
        home.release((party.node, party.worker, party.token))
        nodes.append(home.described().holder.node)

    share = LOCAL_HANDOVERS + 1
    assert nodes == [0] * (share - 1) + [1] * share + [0] * 2 + [1]


def test_nodes_are_served_in_the_order_in_which_they_began_to_wait():
    home = Home()
    home.acquire(A)
    first, _ = home.acquire(C)
    second, _ = home.acquire(B)
    assert home.release(A)[1][0].ticket == first
    assert home.release(C)[1][0].ticket == second


def test_cancelling_a_waiting_acquire_ends_it():
    home = Home()
    home.acquire(A)
    waits, _ = home.acquire(B)
    cancel, replies = home.ask(Op.CANCEL, B, waits)
    assert replies == [Reply(1, waits, Status.CANCELLED), Reply(1, cancel)]
    released, replies = home.release(A)
    assert replies == [Reply(0, released)], "nobody waits any more"


def test_cancelling_what_was_granted_comes_too_late():
    home = Home()
    granted, _ = home.acquire(A)
    cancel, replies = home.ask(Op.CANCEL, A, granted)
    assert replies == [Reply(0, cancel, Status.TOO_LATE)]
    assert home.described().holder == Party(*A, 0)


def test_a_node_cannot_cancel_the_call_of_another():
    home = Home()
    home.acquire(A)
    waits, _ = home.acquire(B)
    cancel, replies = home.ask(Op.CANCEL, C, waits)
    assert replies == [Reply(2, cancel, Status.TOO_LATE)]
    assert home.release(A)[1][0] == Reply(1, waits)


def test_the_death_of_the_holder_is_told_to_the_next_one_once():
    home = Home()
    home.acquire(A)
    waits, _ = home.acquire(B)
    died = cause_word(Cause.DIED, 0, 5)
    assert home.home.worker_gone(0, 1, rank=5) == [Reply(1, waits, Status.OWNER_DIED, died)]
    home.release(B)
    ticket, replies = home.acquire(C)
    assert replies == [Reply(2, ticket, Status.OK)]


def test_death_without_waiters_is_told_to_whoever_comes():
    home = Home()
    home.acquire(A)
    assert home.home.node_gone(0) == []
    assert home.described().damaged
    ticket, replies = home.acquire(B)
    assert replies == [Reply(1, ticket, Status.OWNER_DIED, cause_word(Cause.NODE_DIED, 0))]
    assert not home.described().damaged


def test_a_lock_that_is_released_inconsistent_tells_the_next_one_again_what_happened_first():
    home = Home()
    home.acquire(A)
    home.home.worker_gone(0, 1, rank=7)
    home.acquire(B)
    waits, _ = home.acquire(C)
    died = cause_word(Cause.DIED, 0, 7)
    released, replies = home.release(B, inconsistent=True)
    assert replies == [Reply(2, waits, Status.OWNER_DIED, died), Reply(1, released)]
    home.release(C, inconsistent=True)
    assert home.described().damaged, "nobody waits: whoever comes is told"
    ticket, replies = home.acquire(A)
    assert replies == [Reply(0, ticket, Status.OWNER_DIED, died)]
    home.release(A)
    ticket, replies = home.acquire(B)
    assert replies == [Reply(1, ticket, Status.OK)]


def test_an_owner_that_was_told_and_dies_is_the_next_cause():
    home = Home()
    home.acquire(A)
    home.acquire(B)
    home.home.worker_gone(0, 1, rank=0)
    waits, _ = home.acquire(C)
    died = cause_word(Cause.DIED, 1, 1)
    assert home.home.worker_gone(1, 1, rank=1) == [Reply(2, waits, Status.OWNER_DIED, died)]


def test_who_leaves_with_the_lock_is_as_good_as_dead():
    home = Home()
    home.acquire(A)
    assert home.home.worker_gone(0, 1, died=False, rank=3) == []
    (reply,) = home.acquire(B)[1]
    assert (reply.status, cause_of(reply.result)) == (Status.OWNER_DIED, (Cause.LEFT, 0, 3))


def test_a_lock_that_passes_on_by_a_death_is_held_from_that_moment():
    home = Home()
    home.acquire(A, now=5)
    home.acquire(B, now=6)
    home.home.worker_gone(0, 1, now=9)
    assert home.described().holder == Party(*B, 9)
    home.acquire(C, now=10)
    home.home.node_gone(1, now=12)
    assert home.described().holder == Party(*C, 12)


def test_the_dead_do_not_get_the_lock():
    home = Home()
    home.acquire(A)
    home.acquire(B)
    waits, _ = home.acquire(C)
    assert home.home.worker_gone(1, 1) == []
    assert home.release(A)[1][0] == Reply(2, waits, Status.OK)


def test_drop_ends_waiting_calls_and_later_ones():
    home = Home()
    home.acquire(A)
    waits, _ = home.acquire(B)
    assert home.home.drop(LOCK) == [Reply(1, waits, Status.CLOSED)]
    ticket, replies = home.release(A)
    assert replies == [Reply(0, ticket, Status.CLOSED)]


def test_description_says_who_holds_and_who_waits_since_when():
    home = Home()
    home.acquire(A, now=5)
    home.acquire(B, now=6)
    home.acquire(A2, now=7)
    state = home.described()
    assert (state.object, state.kind, state.name) == (LOCK, "lock", "best")
    assert state.holder == Party(0, 1, 10, 5)
    assert state.waiting == (Party(1, 1, 10, 6), Party(0, 1, 11, 7))


NODES = 3
FEW_HANDOVERS = 2
threads = st.tuples(st.integers(0, NODES - 1), st.integers(0, 1), st.integers(0, 3))


class LockMachine(RuleBasedStateMachine):
    """Every grant is checked against a plain list of who waits, in the order of arrival."""

    def __init__(self):
        super().__init__()
        turns.LOCAL_HANDOVERS = FEW_HANDOVERS  # so that the bound is met often
        self.driver = Home()
        self.holder = None
        self.died = False
        self.cause = 0
        self.waiting = []  # (thread, ticket) in order of arrival
        self.overtaken = defaultdict(int)  # ticket -> grants to others since it leads its node's queue
        self.local_run = 0

    def teardown(self):
        turns.LOCAL_HANDOVERS = LOCAL_HANDOVERS

    def granted(self, reply):
        entry = next(each for each in self.waiting if each[1] == reply.ticket)
        node = entry[0][0]
        heads = {}
        for thread, ticket in self.waiting:
            heads.setdefault(thread[0], ticket)
        assert heads[node] == reply.ticket, "first come, first served within a node"
        if self.last_node == node and len(heads) > 1:
            self.local_run += 1
            assert self.local_run <= FEW_HANDOVERS
        elif self.last_node != node:
            self.local_run = 0
        for other, ticket in heads.items():
            if other != node:
                self.overtaken[ticket] += 1
                assert self.overtaken[ticket] <= (NODES - 1) * (FEW_HANDOVERS + 1)
        self.waiting.remove(entry)
        self.take(entry[0], reply)

    def take(self, thread, reply):
        assert self.holder is None
        assert reply.node == thread[0]
        assert reply.status == (Status.OWNER_DIED if self.died else Status.OK)
        assert reply.result == (self.cause if self.died else 0)
        self.holder, self.died = thread, False

    def free(self):
        self.last_node, self.holder = self.holder[0], None

    @rule(thread=threads)
    def acquire(self, thread):
        if any(thread == waiter for waiter, _ in self.waiting):
            return  # a thread waits in one call at a time
        before = self.holder
        ticket, replies = self.driver.acquire(thread)
        if before is None:
            assert not self.waiting
            self.local_run = 0
            self.take(thread, *replies)
        elif before == thread:
            assert replies == [Reply(thread[0], ticket, Status.USAGE)]
        else:
            assert replies == []
            self.waiting.append((thread, ticket))

    @precondition(lambda self: self.holder)
    @rule(inconsistent=st.booleans())
    def release(self, inconsistent):
        thread = self.holder
        self.free()
        self.died = inconsistent
        ticket, replies = self.driver.release(thread, inconsistent)
        assert replies[-1] == Reply(thread[0], ticket)
        assert len(replies) == 1 + bool(self.waiting)
        for reply in replies[:-1]:
            self.granted(reply)

    @rule(thread=threads)
    def release_by_another(self, thread):
        if thread != self.holder:
            ticket, replies = self.driver.release(thread)
            assert replies == [Reply(thread[0], ticket, Status.NOT_OWNER)]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        entry = data.draw(st.sampled_from(self.waiting))
        thread, waits = entry
        ticket, replies = self.driver.ask(Op.CANCEL, thread, waits)
        assert replies == [Reply(thread[0], waits, Status.CANCELLED), Reply(thread[0], ticket)]
        self.waiting.remove(entry)

    @rule(node=st.integers(0, NODES - 1), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        def dead(thread):
            return thread[0] == node and worker in (None, thread[1])

        self.waiting = [each for each in self.waiting if not dead(each[0])]
        held = self.holder is not None and dead(self.holder)
        if held:
            self.free()
            self.died = True
            cause = Cause.NODE_DIED if worker is None else Cause.DIED if died else Cause.LEFT
            self.cause = cause_word(cause, node, 0 if worker is None else NO_RANK)
        home = self.driver.home
        replies = home.node_gone(node) if worker is None else home.worker_gone(node, worker, died=died)
        assert len(replies) == (held and bool(self.waiting))
        for reply in replies:
            self.granted(reply)

    @invariant()
    def described_as_the_model_says(self):
        state = self.driver.described()
        assert (state.holder and (state.holder.node, state.holder.worker, state.holder.token)) == self.holder
        assert sorted((p.node, p.worker, p.token) for p in state.waiting) == sorted(
            t for t, _ in self.waiting
        )
        assert self.holder or not self.waiting
        assert state.damaged == self.died


TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
