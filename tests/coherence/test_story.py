"""An impossible state is reported with the story of the page, whichever way the engine was entered."""

from __future__ import annotations

import pytest

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Flag, Kind, Lower, Message
from dsm.coherence.states import State
from dsm.errors import InternalError
from dsm.types import Region, RegionOptions

PAGE = 3


@pytest.fixture
def engine():
    """Node 0 of two; every page's directory is here."""
    engine = Engine(0)
    engine.add_region(Region(1, RegionOptions(64 * 4096, "grid", home=0), 0, (0, 1)))
    return engine


def broken(engine, event):
    with pytest.raises(InternalError) as raised:
        event()
    text = str(raised.value)
    assert f"node 0, region 1: page {PAGE} is " in text
    assert text.count("node 0, region 1:") == 1
    assert not engine.inbox
    return text


def message(kind, flags=0, node=1, request=1):
    return Message(kind, 1, PAGE, 1, request, node, flags)


def set_state(engine, state):
    engine.regions[1].table.states[PAGE] = state


def test_by_a_message(engine):
    text = broken(engine, lambda: engine.message(message(Kind.CONFIRM), 0))
    assert "no such transaction" in text and "  CONFIRM 3+1 request 1 of node 1 0x0" in text


def test_by_an_owner_that_asks_for_its_own_page(engine):
    engine.message(message(Kind.GET, Flag.WRITE), 0)
    engine.take()
    text = broken(engine, lambda: engine.message(message(Kind.GET, request=2), 0))
    assert "asks to read page 3, which it owns" in text
    assert text.index("GET 3+1 request 1") < text.index("GET 3+1 request 2")
    assert engine.recent()[-1] == "region 1  GET 3+1 request 2 of node 1 0x0"


def test_by_an_answer(engine):
    engine.message(message(Kind.GET, Flag.WRITE), 0)  # node 1 has it
    engine.fault(1, PAGE, False, 0, 0, 0, 0)
    [request] = [n for n, r in engine.regions[1].requester.requests.items() if r.page == PAGE]
    set_state(engine, State.SHARED)
    broken(engine, lambda: engine.received(message(Kind.DATA, node=0, request=request), 0))


def test_by_the_workers_acknowledgement(engine):
    engine.fault(1, PAGE, True, 0, 0, 0, 0)
    engine.take()
    engine.message(message(Kind.GET), 10**12)
    [lower] = [effect for effect in engine.take() if isinstance(effect, Lower)]
    set_state(engine, State.INVALID)
    text = broken(engine, lambda: engine.lowered(lower.token, 10**12))
    assert "no transition for 'downgraded'" in text and "in a transaction" in text


def test_by_time(engine):
    engine.fault(1, PAGE, True, 0, 0, 0, 0)
    engine.message(message(Kind.GET), 1)
    assert engine.deadline is not None  # held for the thread that waited
    set_state(engine, State.READING)
    broken(engine, lambda: engine.tick(10**12))


def test_by_the_end_of_a_pin(engine):
    engine.pin(1, PAGE, 1, True, 0, 0)
    engine.message(message(Kind.GET), 10**12)
    set_state(engine, State.READING)
    broken(engine, lambda: engine.unpin(1, PAGE, 1, True, 10**12))


def test_of_many_pages_the_wrong_one_is_told(engine):
    set_state(engine, State.READING)
    with pytest.raises(
        InternalError, match=r"page 3 is READING: no transition[^\n]*\nnode 0, region 1: page 3 "
    ):
        engine.regions[1].table.shift("ask-read", 0, 8)
