"""An engine that hears of lost nodes: what waits ends, what is here stays."""

from __future__ import annotations

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Wake
from dsm.errors import Status
from dsm.types import Region, RegionOptions


def engine_with(*members):
    """Node 0 with region 1; every page's directory is the last member."""
    engine = Engine(0)
    options = RegionOptions(nbytes=4 * 4096, name="x", home=members[-1])
    engine.add_region(Region(1, options, 0x5800_0000_0000, members))
    return engine


def wakes(engine):
    return [(effect.waiter, effect.status) for effect in engine.take() if isinstance(effect, Wake)]


def test_the_loss_of_a_member_ends_waits():
    engine = engine_with(0, 1)
    engine.fault(1, 0, True, 7, 0, 0, now=1)
    engine.pin(1, 1, 2, False, 8, now=1)
    assert not wakes(engine)
    engine.node_lost(1, now=2)
    assert wakes(engine) == [(7, Status.PAGE_LOST), (8, Status.PAGE_LOST)]
    engine.fault(1, 3, False, 7, 0, 0, now=3)
    assert wakes(engine) == [(7, Status.PAGE_LOST)]


def test_the_loss_of_another_node_counts_when_it_used_the_region():
    engine = engine_with(0, 1)
    engine.fault(1, 0, True, 7, 0, 0, now=1)
    engine.node_lost(2, now=2)
    assert not wakes(engine)
    engine.fail(1)
    assert wakes(engine) == [(7, Status.PAGE_LOST)]
    engine.fail(1)
    engine.fail(99)
    assert not wakes(engine)


def test_pages_that_are_here_stay():
    engine = engine_with(0, 1, 0)
    engine.fault(1, 0, True, 7, 0, 0, now=1)
    assert wakes(engine) == [(7, Status.OK)]
    engine.node_lost(1, now=2)
    engine.fault(1, 0, False, 7, 0, 0, now=3)
    assert wakes(engine) == [(7, Status.OK)]
