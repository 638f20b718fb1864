"""Release consistency, simulated: the oracle of real happens-before holds for any seed."""

import pytest

from dsm.coherence.release.writer import Writer
from dsm.testing.simulation import report, run_seed
from dsm.testing.simulation.release.cluster import ReleaseCluster

SEEDS = range(120)
BLOCK = 10
EVENTS = dict(min_events=1500, max_events=100_000)


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_checks_hold_for_seeds(first):
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed, model="release", **EVENTS)
        assert outcome.ok, report(outcome)


@pytest.mark.parametrize("first", range(1000, 1040, BLOCK))
def test_checks_hold_while_nodes_and_workers_die(first):
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed, model="release", faults="all", **EVENTS)
        assert outcome.ok, report(outcome)


def test_the_same_seed_does_the_same_things():
    first, second = (run_seed(7, model="release", **EVENTS) for _ in range(2))
    assert (first.events, first.digest) == (second.events, second.digest)
    assert run_seed(8, model="release", **EVENTS).digest != first.digest


def test_programs_take_every_way_of_release_consistency():
    coverage = {}
    kinds = set()
    for seed in range(30):
        cluster = ReleaseCluster(seed)
        cluster.run_random(1500, 100_000)
        coverage |= cluster.coverage
        for truth in cluster.truths.values():
            kinds |= {len(writes) > 1 for writes in truth.history.values()}
    assert kinds == {False, True}
    events = {event for event, _ in coverage}
    assert events >= {"upgrade", "claim", "receive", "downgrade", "invalidate", "ask-ahead", "give-up"}


def test_homes_move_and_logs_are_trimmed(monkeypatch):
    pulled, total = [], []
    gave = Writer.gave
    monkeypatch.setattr(Writer, "gave", lambda self, *pages: (pulled.append(pages), gave(self, *pages)))
    for seed in range(20):
        cluster = ReleaseCluster(seed)
        for node in cluster.nodes:
            skip = node.engine.fence.log.skip
            node.engine.fence.log.skip = lambda time, skip=skip: (total.append(time), skip(time))
        cluster.run_random(1500, 100_000)
    assert len(pulled) > 20
    assert len(total) > 20
