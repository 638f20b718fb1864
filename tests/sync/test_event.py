"""Events: a flag, and everybody who waits for it; and a stateful test."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsm.errors import Status
from dsm.wire.calls import Op
from homes import is_gone, one, party

A, B, C = (0, 1, 10), (1, 1, 10), (2, 1, 10)


@pytest.fixture
def home():
    return one("event")


def test_setting_it_ends_every_wait_before_the_one_who_sets_goes_on(home):
    first, _ = home.ask(Op.EVENT_WAIT, A)
    second, _ = home.ask(Op.EVENT_WAIT, B)
    ticket, replies = home.ask(Op.EVENT_SET, C)
    assert replies == [home.reply(0, first), home.reply(1, second), home.reply(2, ticket)]
    ticket, replies = home.ask(Op.EVENT_WAIT, C)
    assert replies == [home.reply(2, ticket)], "and nobody waits afterwards"


def test_it_can_be_looked_at_and_cleared(home):
    seen = []
    for op in (Op.EVENT_IS_SET, Op.EVENT_SET, Op.EVENT_IS_SET, Op.EVENT_CLEAR, Op.EVENT_IS_SET):
        (reply,) = home.ask(op, A)[1]
        seen.append(reply.result)
    assert seen == [0, 0, 1, 0, 0]
    assert home.ask(Op.EVENT_WAIT, A)[1] == []


def test_the_dead_and_those_who_gave_up_are_not_told(home):
    waits, _ = home.ask(Op.EVENT_WAIT, A)
    home.ask(Op.EVENT_WAIT, B)
    ticket, replies = home.cancel(A, waits)
    assert replies == [home.reply(0, waits, Status.CANCELLED), home.reply(0, ticket)]
    assert home.gone(1, 1) == []
    ticket, replies = home.ask(Op.EVENT_SET, C)
    assert replies == [home.reply(2, ticket)]
    ticket, replies = home.cancel(A, waits)
    assert replies == [home.reply(0, ticket, Status.TOO_LATE)]


def test_drop_ends_waiting_calls(home):
    waits, _ = home.ask(Op.EVENT_WAIT, A)
    assert home.home.drop(home.number) == [home.reply(0, waits, Status.CLOSED)]


threads = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2))


class EventMachine(RuleBasedStateMachine):
    """Against a flag and a list."""

    def __init__(self):
        super().__init__()
        self.driver = one("event")
        self.is_set = False
        self.waiting = []

    @rule(thread=threads)
    def wait(self, thread):
        ticket, replies = self.driver.ask(Op.EVENT_WAIT, thread)
        if self.is_set:
            assert replies == [self.driver.reply(thread[0], ticket)]
        else:
            assert replies == []
            self.waiting.append((thread, ticket))

    @rule(thread=threads)
    def set(self, thread):
        ticket, replies = self.driver.ask(Op.EVENT_SET, thread)
        ended = [*((each[0], waits) for each, waits in self.waiting), (thread[0], ticket)]
        assert replies == [self.driver.reply(*each) for each in ended]
        self.is_set, self.waiting = True, []

    @rule(thread=threads, op=st.sampled_from((Op.EVENT_CLEAR, Op.EVENT_IS_SET)))
    def clear_or_look(self, thread, op):
        ticket, replies = self.driver.ask(op, thread)
        result = int(self.is_set and op == Op.EVENT_IS_SET)
        assert replies == [self.driver.reply(thread[0], ticket, Status.OK, result)]
        self.is_set = self.is_set and op == Op.EVENT_IS_SET

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        thread, waits = entry
        ticket, replies = self.driver.cancel(thread, waits)
        assert replies == [
            self.driver.reply(thread[0], waits, Status.CANCELLED),
            self.driver.reply(thread[0], ticket),
        ]

    @rule(node=st.integers(0, 2), worker=st.integers(0, 1) | st.none(), died=st.booleans())
    def gone(self, node, worker, died):
        self.waiting = [each for each in self.waiting if not is_gone(each[0], node, worker)]
        assert self.driver.gone(node, worker, died) == []

    @invariant()
    def described_as_the_model_says(self):
        state = self.driver.described()
        assert (state.value, list(map(party, state.waiting))) == (self.is_set, [t for t, _ in self.waiting])


TestEventMachine = EventMachine.TestCase
TestEventMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
