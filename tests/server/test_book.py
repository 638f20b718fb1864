"""A server's leases against a simple model: a clock, ids and memory of the test's own."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from dsm.errors import FullError, LeaseExpiredError, NotPermittedError, TooLargeError, UnknownLeaseError
from dsm.server.book import Book, MovingError

BASE, SIZE = 1 << 21, 1 << 16


class Modelled(RuleBasedStateMachine):
    """Every token that was ever given is tried at every time; the model says what must come of it."""

    tokens = Bundle("tokens")
    transfers = Bundle("transfers")

    def __init__(self):
        super().__init__()
        self.book = Book(BASE, SIZE)
        self.memory = bytearray(SIZE)
        self.now = 1000
        self.count = 0
        #: By id: deadline, bytes, address, contents; None: ended.
        self.model = {}
        #: Memory of ended leases that is still being sent: transfers by holding.
        self.sending = {}

    def _bytes(self, holding):
        start = holding.address - BASE
        return memoryview(self.memory)[start : start + holding.nbytes]

    def _state(self, identity):
        """Return "unknown", "ended", "moving" or "live"."""
        if identity not in self.model:
            return "unknown"
        about = self.model[identity]
        if about is None or about["deadline"] <= self.now:
            return "ended"
        return "moving" if about["moving"] else "live"

    def _find(self, token, write=False):
        """Ask the book, and check its answer; return the holding when the model says so, too."""
        identity, key = token
        state = self._state(identity)
        try:
            holding = self.book.find(identity + key, self.now, write)
        except UnknownLeaseError:
            assert state == "unknown" or key not in self.model[identity]["keys"]
        except LeaseExpiredError:
            assert state == "ended"
        except MovingError:
            assert state == "moving"
        except NotPermittedError:
            assert write and key == self.model[identity]["keys"][1]
        else:
            about = self.model[identity]
            assert state == "live" and key in about["keys"][: 1 if write else 2]
            assert (holding.nbytes, holding.deadline_ms) == (about["nbytes"], about["deadline"])
            return holding
        return None

    @rule(
        target=tokens,
        nbytes=st.integers(1, SIZE + 1),
        duration=st.integers(1, 500),
        fill=st.binary(min_size=1, max_size=8),
    )
    def lease(self, nbytes, duration, fill):
        self.count += 1
        identity, *keys = (bytes([kind]) * 8 + self.count.to_bytes(8, "big") for kind in (1, 2, 3))
        try:
            holding = self.book.lease(self.now, nbytes, duration, identity, *keys)
        except TooLargeError:
            assert nbytes > SIZE
            return multiple()
        except FullError:
            assert not self.book.cleaning and self.book.figures()["used"]
            return multiple()
        if holding is None:
            assert self.book.cleaning
            return multiple()
        contents = self._bytes(holding)
        assert not any(contents), "memory is zeroed before it is leased again"
        contents[:] = (fill * nbytes)[:nbytes]
        holding.written(0, nbytes)
        self.model[identity] = {
            "deadline": self.now + duration, "nbytes": nbytes, "keys": keys, "contents": bytes(contents),
            "holding": holding, "moving": False,
        }  # fmt: skip
        return multiple((identity, keys[0]), (identity, keys[1]), (identity, bytes(16)))

    @rule(token=tokens, write=st.booleans())
    def use(self, token, write):
        holding = self._find(token, write)
        if holding is not None:
            assert bytes(self._bytes(holding)) == self.model[token[0]]["contents"]

    @rule(token=tokens)
    def shown_again(self, token):
        """What was judged once is found without the table, and never when it must not be."""
        shown = token[0] + token[1]
        holding = self.book.writable.get(shown)
        if holding is not None:
            assert self.book.readable[shown] is holding
            if self.now < holding.deadline_ms:
                assert self._find(token, True) is holding
        elif (holding := self.book.readable.get(shown)) is not None and self.now < holding.deadline_ms:
            assert self._find(token) is holding

    @rule(token=tokens, duration=st.integers(1, 500))
    def renew(self, token, duration):
        if self._find(token, True) is None:
            with pytest.raises((UnknownLeaseError, LeaseExpiredError, NotPermittedError, MovingError)):
                self.book.renew(token[0] + token[1], self.now, duration)
            return
        self.book.renew(token[0] + token[1], self.now, duration)
        self.model[token[0]]["deadline"] = self.now + duration

    @rule(token=tokens)
    def release(self, token):
        if self._find(token, True) is None:
            with pytest.raises((UnknownLeaseError, LeaseExpiredError, NotPermittedError, MovingError)):
                self.book.release(token[0] + token[1], self.now)
            return
        self.book.release(token[0] + token[1], self.now)
        self.model[token[0]] = None

    @rule(passed=st.integers(0, 400), noticed=st.booleans())
    def time_passes(self, passed, noticed):
        self.now += passed
        if noticed:
            due = [
                identity for identity, about in self.model.items() if about and about["deadline"] <= self.now
            ]
            assert {holding.id for holding in self.book.due(self.now)} == set(due)
            for identity in due:
                self.model[identity] = None

    @rule(target=transfers, token=tokens)
    def begin_sending(self, token):
        holding = self._find(token)
        if holding is None:
            return multiple()
        self.book.hold(holding)
        return (holding, bytes(self._bytes(holding)))

    @rule(sent=consumes(transfers))
    def end_sending(self, sent):
        holding, contents = sent
        assert bytes(self._bytes(holding)) == contents, "nobody else got the memory meanwhile"
        self.book.let_go(holding)

    @rule(token=tokens)
    def begin_move(self, token):
        if self._find(token) is None:
            return
        self.book.begin_move(token[0] + token[1], self.now)
        self.model[token[0]]["moving"] = True

    @rule(moved=st.booleans())
    @precondition(lambda self: any(about and about["moving"] for about in self.model.values()))
    def end_move(self, moved):
        identity = next(identity for identity, about in self.model.items() if about and about["moving"])
        about = self.model[identity]
        self.book.end_move(about["holding"], moved)
        about["moving"] = False
        if moved:
            del self.model[identity]

    @rule()
    @precondition(lambda self: self.book.cleaning)
    def clean(self):
        holding = self.book.next_to_clean()
        self._bytes(holding)[holding.low : holding.high] = bytes(holding.high - holding.low)
        self.book.cleaned(holding)

    @invariant()
    def what_is_remembered_may_be_used(self):
        for remembered in (self.book.readable, self.book.writable):
            for token, holding in remembered.items():
                about = self.model[token[:16]]
                assert about and about["holding"] is holding and not about["moving"]
                assert token[16:] in about["keys"][: 1 if remembered is self.book.writable else 2]

    @invariant()
    def figures_are_true(self):
        self.book.check()
        figures = self.book.figures()
        live = [about for about in self.model.values() if about]
        assert figures["leases"] == len(live)
        assert figures["leased_bytes"] == sum(about["nbytes"] for about in live)
        assert figures["used"] + figures["free"] == SIZE
        assert figures["used"] >= figures["leased_bytes"]
        places = sorted((about["holding"].address, about["nbytes"]) for about in live)
        for (low, nbytes), (high, _) in pairwise(places):
            assert low + nbytes <= high, "leases never overlap"

    def teardown(self):
        for about in self.model.values():
            if about and about["moving"]:
                self.book.end_move(about["holding"], False)
        self.now += 10**6
        self.book.due(self.now)


Modelled.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBook = Modelled.TestCase


def _lease(book, nbytes, number=1):
    return book.lease(0, nbytes, 1000, bytes([number]) * 16, b"w" * 16, b"r" * 16)


def test_a_lease_that_runs_out_while_it_moves_keeps_its_memory_until_then():
    book = Book(BASE, SIZE)
    holding = _lease(book, SIZE)
    book.begin_move(holding.id + b"w" * 16, 0)
    assert book.due(1000) == [holding]
    assert book.next_to_clean() is None
    with pytest.raises(FullError):
        _lease(book, 1, 2)
    book.end_move(holding, moved=True)
    assert book.next_to_clean() is holding
    book.cleaned(holding)
    assert book.figures()["used"] == 0
    assert (book.counts["expired"], book.counts["moved"]) == (1, 0)
    assert not book.has(holding.id), "it is the other authority's to say what became of it"


def test_an_id_that_is_drawn_twice_takes_no_memory():
    book = Book(BASE, SIZE)
    _lease(book, 100)
    used = book.figures()["used"]
    with pytest.raises(ValueError, match="exists already"):
        _lease(book, 100)
    assert book.figures()["used"] == used
