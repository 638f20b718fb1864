"""A node learns that another one is lost before its neighbours do."""

from __future__ import annotations

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Send, SendPages, Wake
from dsm.coherence.states import State
from dsm.errors import Status
from dsm.limits import ADDRESS_LOW
from dsm.types import Region, RegionOptions

OPTIONS = RegionOptions(nbytes=64 * 4096, home=1)
REGION = Region(1, OPTIONS, ADDRESS_LOW, members=(0, 1, 2))


def cluster():
    engines = [Engine(node) for node in range(3)]
    for engine in engines:
        engine.add_region(REGION)
    return engines


def sent(engine):
    return [effect for effect in engine.take() if isinstance(effect, Send | SendPages)]


def deliver(engines, *nodes):
    """Deliver what these nodes have to say, one after the other."""
    for node in nodes:
        for effect in sent(engines[node]):
            engines[effect.node].message(effect.message, 0)


def read(engine, page, waiter):
    engine.fault(1, page, False, waiter, worker=0, ip=1, now=0)


def test_whoever_waits_ends():
    engines = cluster()
    read(engines[0], 0, waiter=7)
    engines[0].node_lost(2, 0)
    assert Wake(7, Status.PAGE_LOST) in engines[0].take()


def test_a_demand_for_a_page_whose_request_was_forgotten_is_not_answered():
    engines = cluster()
    read(engines[0], 0, waiter=1)
    deliver(engines, 0, 1, 0)
    read(engines[0], 1, waiter=1)  # a sequence: reads ahead
    asked = sent(engines[0])
    engines[0].node_lost(2, 0)
    engines[0].take()
    for effect in asked:
        engines[1].message(effect.message, 0)
    deliver(engines, 1)  # the directory believes that node 0 owns what it read ahead
    assert engines[0].state(1, 3) == State.AHEAD
    read(engines[1], 3, waiter=2)
    deliver(engines, 1)
    assert sent(engines[0]) == []
