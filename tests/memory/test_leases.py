"""The table of leases: who gets what until when, against a model that is only dictionaries."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dsm.errors import LeaseExpiredError, NotPermittedError, UnknownLeaseError, UsageError
from dsm.memory.leases import LeaseTable, digest
from dsm.memory.token import show_id
from dsm.units import MAX_DURATION_MS


def _id(number):
    return number.to_bytes(16, "big")


def _keys(number):
    """Write key and read key of lease `number`."""
    return b"w" * 8 + number.to_bytes(8, "big"), b"r" * 8 + number.to_bytes(8, "big")


@pytest.fixture
def table():
    return LeaseTable()


def _add(table, number=1, now=0, duration=100, nbytes=10, place="here"):
    return table.add(_id(number), *_keys(number), nbytes, place, now, duration)


def test_a_lease_says_what_it_was_made_of(table):
    record = _add(table, now=1000, duration=50)
    assert (record.id, record.nbytes, record.place) == (_id(1), 10, "here")
    assert (record.created_ms, record.deadline_ms) == (1000, 1050)
    assert record.remaining_ms(1020) == 30
    assert record.remaining_ms(2000) == 0
    assert len(table) == 1 and _id(1) in table and table.records() == [record]


def test_keys_are_not_kept(table):
    record = _add(table)
    write, read = _keys(1)
    assert (record.write_digest, record.read_digest) == (digest(write), digest(read))
    assert write not in repr(vars(table)).encode() and str(write) not in repr(vars(table))


def test_a_lease_is_alive_before_its_deadline_and_never_at_it(table):
    _add(table, duration=100)
    assert table.find(_id(1), _keys(1)[0], 99)
    for use in (table.find, table.end, lambda *a: table.renew(*a, 50)):
        with pytest.raises(LeaseExpiredError, match="ran out 0 ms ago"):
            use(_id(1), _keys(1)[0], 100)
    assert [record.id for record in table.due(100)] == [_id(1)]
    with pytest.raises(LeaseExpiredError, match=r"ran out 2\.9 s ago"):
        table.find(_id(1), _keys(1)[0], 3000)


def test_the_read_key_reads_and_nothing_else(table):
    _add(table)
    _, read = _keys(1)
    assert table.find(_id(1), read, 0)
    for use in (
        lambda: table.find(_id(1), read, 0, write=True),
        lambda: table.renew(_id(1), read, 0, 5),
        lambda: table.end(_id(1), read, 0),
    ):
        with pytest.raises(NotPermittedError, match="read only"):
            use()
    assert table.find(_id(1), read, 99)


@pytest.mark.parametrize("key", [b"", b"\0" * 16, b"x" * 1000, None, "text"])
def test_a_wrong_key_opens_nothing(table, key):
    _add(table)
    with pytest.raises(NotPermittedError, match="none of lease"):
        table.find(_id(1), key, 0)


def test_somebody_elses_key_opens_nothing(table):
    _add(table, 1)
    _add(table, 2)
    with pytest.raises(NotPermittedError):
        table.find(_id(1), _keys(2)[0], 0)


def test_renewing_counts_from_now_also_to_an_earlier_end(table):
    _add(table, duration=100)
    assert table.renew(_id(1), _keys(1)[0], 40, 100).deadline_ms == 140
    assert table.due(139) == []
    assert table.renew(_id(1), _keys(1)[0], 50, 10).deadline_ms == 60
    assert table.next_deadline == 60
    assert [record.deadline_ms for record in table.due(60)] == [60]
    assert table.due(1000) == []


def test_what_was_released_is_expired_and_given_once(table):
    _add(table)
    assert table.end(_id(1), _keys(1)[0], 10).place == "here"
    with pytest.raises(LeaseExpiredError, match="was released 5 ms ago"):
        table.end(_id(1), _keys(1)[0], 15)
    assert table.due(10**9) == [] and len(table) == 0 and table.next_deadline is None


def test_what_was_lost_is_expired(table):
    _add(table)
    assert table.lose(_id(1), 10).place == "here"
    with pytest.raises(LeaseExpiredError, match="taken away"):
        table.find(_id(1), _keys(1)[0], 15)
    with pytest.raises(LeaseExpiredError):
        table.lose(_id(1), 15)


def test_what_moved_is_unknown_and_its_id_may_come_back(table):
    record = _add(table)
    assert table.move(_id(1)) == record
    with pytest.raises(UnknownLeaseError):
        table.find(_id(1), _keys(1)[0], 1)
    with pytest.raises(UnknownLeaseError):
        table.move(_id(1))
    back = table.adopt(_id(1), record.write_digest, record.read_digest, 10, "there", 1, 99)
    assert table.find(_id(1), _keys(1)[0], 1, write=True) == back


def test_what_has_ended_cannot_move(table):
    _add(table)
    table.end(_id(1), _keys(1)[0], 1)
    with pytest.raises(LeaseExpiredError):
        table.move(_id(1))


def test_only_so_many_ended_leases_are_remembered():
    table = LeaseTable(max_ended=2)
    for number in (1, 2, 3):
        _add(table, number)
        table.end(_id(number), _keys(number)[0], number)
    with pytest.raises(UnknownLeaseError):
        table.find(_id(1), _keys(1)[0], 9)
    for number in (2, 3):
        with pytest.raises(LeaseExpiredError):
            table.find(_id(number), _keys(number)[0], 9)
    table.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"duration": 0}, "0 ms"),
        ({"duration": -5}, "-5 ms"),
        ({"duration": MAX_DURATION_MS + 1}, "can be from 1"),
        ({"nbytes": 0}, "at least 1"),
        ({"nbytes": -1}, "at least 1"),
    ],
)
def test_bad_numbers_are_refused_and_change_nothing(table, change, words):
    with pytest.raises(UsageError, match=words):
        _add(table, **change)
    assert len(table) == 0 and table.next_deadline is None


def test_bad_ids_and_keys_are_refused(table):
    write, read = _keys(1)
    for arguments in ((b"short", write, read), (_id(1), b"", read), (_id(1), write, "text")):
        with pytest.raises(UsageError):
            table.add(*arguments, 10, None, 0, 10)
    with pytest.raises(UsageError, match="digests"):
        table.adopt(_id(1), write, read, 10, None, 0, 10)


def test_an_id_is_given_once(table):
    _add(table)
    with pytest.raises(UsageError, match="exists already"):
        _add(table)
    table.end(_id(1), _keys(1)[0], 1)
    with pytest.raises(UsageError, match="exists already"):
        _add(table)


@pytest.mark.parametrize("identity", [b"", b"abc", b"x" * 16])
def test_an_unknown_id(table, identity):
    with pytest.raises(UnknownLeaseError):
        table.find(identity, b"", 0)


def test_ids_are_shown_as_uuids():
    assert show_id(bytes(range(16))) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert show_id(b"\1") == "01" and show_id(b"") == "of no bytes"


class _Model(RuleBasedStateMachine):
    """Leases 0 to 7, an hour hand that only goes forward, and what a plain dictionary says."""

    MAX_ENDED = 3

    def __init__(self):
        super().__init__()
        self.table = LeaseTable(self.MAX_ENDED)
        self.now = 0
        #: number -> deadline of those that were not taken out.
        self.live = {}
        #: Numbers of ended ones, oldest first.
        self.ended = []

    numbers = st.integers(0, 7)
    durations = st.integers(1, 40)

    def _expect(self, number, key="write", write=True):
        if number in self.live:
            if self.live[number] <= self.now:
                return LeaseExpiredError
            right = key == "write" or (key == "read" and not write)
            return None if right else NotPermittedError
        return LeaseExpiredError if number in self.ended else UnknownLeaseError

    def _try(self, expected, use):
        if expected is None:
            return use()
        with pytest.raises(expected) as raised:
            use()
        assert type(raised.value) is expected
        return None

    def _key(self, number, kind):
        return dict(zip(("write", "read", "other"), (*_keys(number), b"?" * 16), strict=True))[kind]

    def _forget(self, number):
        del self.live[number]
        self.ended = [*self.ended, number][-self.MAX_ENDED :]

    @rule(by=st.integers(0, 30))
    def time_goes_on(self, by):
        self.now += by

    @rule(number=numbers, duration=durations)
    def add(self, number, duration):
        known = number in self.live or number in self.ended
        self._try(UsageError if known else None, lambda: _add(self.table, number, self.now, duration))
        if not known:
            self.live[number] = self.now + duration

    @rule(number=numbers, kind=st.sampled_from(["write", "read", "other"]), write=st.booleans())
    def find(self, number, kind, write):
        key = self._key(number, kind)
        record = self._try(
            self._expect(number, kind, write), lambda: self.table.find(_id(number), key, self.now, write)
        )
        if record is not None:
            assert record.deadline_ms == self.live[number]

    @rule(number=numbers, kind=st.sampled_from(["write", "read", "other"]), duration=durations)
    def renew(self, number, kind, duration):
        key = self._key(number, kind)
        record = self._try(
            self._expect(number, kind), lambda: self.table.renew(_id(number), key, self.now, duration)
        )
        if record is not None:
            self.live[number] = record.deadline_ms
            assert record.deadline_ms == self.now + duration

    @rule(number=numbers, kind=st.sampled_from(["write", "read", "other"]))
    def end(self, number, kind):
        key = self._key(number, kind)
        if self._try(self._expect(number, kind), lambda: self.table.end(_id(number), key, self.now)):
            self._forget(number)

    @rule(number=numbers)
    def lose(self, number):
        expected = None if number in self.live else self._expect(number)
        if self._try(expected, lambda: self.table.lose(_id(number), self.now)):
            self._forget(number)

    @rule(number=numbers)
    def move(self, number):
        expected = None if number in self.live else self._expect(number)
        if self._try(expected, lambda: self.table.move(_id(number))):
            del self.live[number]

    @rule()
    def reap(self):
        late = sorted((deadline, _id(n)) for n, deadline in self.live.items() if deadline <= self.now)
        assert [(record.deadline_ms, record.id) for record in self.table.due(self.now)] == late
        for _, identity in late:
            self._forget(int.from_bytes(identity, "big"))

    @invariant()
    def agrees(self):
        self.table.check()
        assert len(self.table) == len(self.live)
        shown = [(record.deadline_ms, record.id) for record in self.table.records()]
        assert shown == sorted((deadline, _id(n)) for n, deadline in self.live.items())
        assert self.table.next_deadline == min(self.live.values(), default=None)
        for number in range(8):
            assert (_id(number) in self.table) == (number in self.live)
            assert self.table.has_ended(_id(number)) == (number in self.ended)


TestLeaseTable = _Model.TestCase
TestLeaseTable.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
