"""Atomic cells against integers modulo 2^64, and the door in front of all objects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import InternalError, Status
from dsm.sync.service import Reply, SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import WORD_MASK, Cause, Op, SyncKind, cause_of, cause_word, to_signed

i64 = st.integers(-(2**63), 2**63 - 1)
OPERATIONS = [Op.ATOMIC_LOAD, Op.ATOMIC_STORE, Op.ATOMIC_ADD, Op.ATOMIC_EXCHANGE, Op.ATOMIC_COMPARE_EXCHANGE]


def signed(number):
    """Return `number` as C's int64_t would hold it."""
    return (number + 2**63) % 2**64 - 2**63


def home_with(kind="atomic", value=0, number=1):
    home = SyncHome()
    home.create(SyncObject(number, kind, "n", 0, value))
    return home


@given(initial=i64, steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), i64 | st.integers(-2, 2), i64)))
def test_cells_behave_like_int64(initial, steps):
    home = home_with(value=initial)
    value = initial
    for ticket, (op, a, b) in enumerate(steps):
        if op == Op.ATOMIC_COMPARE_EXCHANGE and b % 2:
            a = value  # let half of the comparisons succeed
        (reply,) = home.request(op, 1, 3, ticket, (0, 0), a & WORD_MASK, b & WORD_MASK)
        assert (reply.node, reply.ticket, reply.status) == (3, ticket, Status.OK)
        assert to_signed(reply.result) == (0 if op == Op.ATOMIC_STORE else value)
        if op == Op.ATOMIC_ADD:
            value = signed(value + a)
        elif op in (Op.ATOMIC_STORE, Op.ATOMIC_EXCHANGE):
            value = a
        elif op == Op.ATOMIC_COMPARE_EXCHANGE and value == a:
            value = b
    assert home.describe()[0].value == value


def test_adding_wraps_around():
    home = home_with(value=2**63 - 1)
    home.request(Op.ATOMIC_ADD, 1, 0, 1, (0, 0), 1)
    assert home.describe()[0].value == -(2**63)


def test_cells_survive_workers():
    home = home_with(value=5)
    assert home.worker_gone(0, 0) == home.node_gone(0) == []
    assert home.describe()[0].value == 5


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("lock", "LOCK"),
        ("rwlock", "RW"),
        ("semaphore", "SEMAPHORE"),
        ("event", "EVENT"),
        ("barrier", "BARRIER"),
        ("atomic", "ATOMIC"),
    ],
)
def test_an_operation_of_another_kind_is_refused(kind, own):
    home = home_with(kind, 1)
    foreign = [op for op in Op if not op.name.startswith(own) and op != Op.CANCEL]
    for op in [*foreign, 0, 255]:
        assert home.request(op, 1, 0, 7, (0, 0)) == [Reply(0, 7, Status.USAGE, object=1)]


def test_unknown_and_dropped_objects_are_told_apart():
    home = home_with(number=5)
    home.drop(5)
    assert home.drop(5) == []
    assert home.request(Op.ATOMIC_LOAD, 5, 0, 1, (0, 0)) == [Reply(0, 1, Status.CLOSED, object=5)]
    assert home.request(Op.ATOMIC_LOAD, 6, 0, 2, (0, 0)) == [Reply(0, 2, Status.UNKNOWN_NAME, object=6)]


def test_creating_again_changes_nothing():
    home = home_with(value=5)
    home.request(Op.ATOMIC_ADD, 1, 0, 1, (0, 0), 1)
    home.create(SyncObject(1, "atomic", "n", 0, 5))
    assert home.describe()[0].value == 6


def test_wrong_creations_are_the_drivers_fault():
    home = home_with()
    with pytest.raises(InternalError, match="number 1 belongs to"):
        home.create(SyncObject(1, "lock", "n", 0))
    with pytest.raises(InternalError, match="of kind 'latch'"):
        home.create(SyncObject(2, "latch", "n", 0))
    with pytest.raises(InternalError, match="0 parties"):
        home.create(SyncObject(2, "barrier", "n", 0))


def test_cancelling_an_atomic_comes_too_late():
    assert home_with().request(Op.CANCEL, 1, 0, 2, (0, 0), 1) == [Reply(0, 2, Status.TOO_LATE, object=1)]


def test_one_worker_can_die_in_several_objects():
    home = SyncHome()
    for number, kind in enumerate(["lock", "barrier", "lock"], 1):
        home.create(SyncObject(number, kind, f"{kind}{number}", 0, 3))
    for number in (1, 3):
        home.request(Op.LOCK_ACQUIRE, number, 0, number, (0, 1))
        home.request(Op.LOCK_ACQUIRE, number, 1, 10 + number, (4, 1))
    home.request(Op.BARRIER_WAIT, 2, 1, 12, (4, 2))
    waits = home.request(Op.BARRIER_WAIT, 2, 2, 20, (0, 1))
    assert waits == [] and [reply.ticket for reply in home.worker_gone(1, 4)] == [20]
    assert home.describe()[1].damaged
    assert home.worker_gone(0, 0) == []
    assert [state.damaged for state in home.describe()] == [True, True, True]


def test_numbers_never_change():
    assert [op.value for op in Op] == [*range(16, 20), *range(32, 47), *range(48, 55)]
    assert max(SyncKind) < 16, "replies and notices share the kind byte with operations"


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_travels_in_a_word(cause):
    assert cause_of(cause_word(cause, 63, 2**32 - 1)) == (cause, 63, 2**32 - 1)
    assert 0 <= cause_word(cause, 63, 5) < 2**64


def test_a_word_that_is_no_cause_is_unknown():
    assert cause_of(0xFF << 56)[0] == Cause.UNKNOWN
