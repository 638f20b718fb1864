"""Bounded staleness, simulated: the checks hold for any seed, and find each deliberate bug."""

from dataclasses import replace

import pytest

from dsm.testing.simulation import report, run_seed
from dsm.testing.simulation.bounded.cluster import BOUNDED_PARTS, BoundedCluster
from dsm.testing.simulation.bounded.mutants import BOUNDED_MUTANTS
from dsm.testing.simulation.bounded.truth import BoundedTruth
from dsm.testing.simulation.faults import Calm, Faults

SEEDS = range(120)
BLOCK = 10
#: Seeds within which a bug must show.
MUTANT_SEEDS = 250
EVENTS = dict(min_events=1500, max_events=200_000)
FOUND = ("Violation", "InternalError")


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_checks_hold_for_seeds(first):
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed, model="bounded")
        assert outcome.ok, report(outcome)


def test_old_values_are_read_and_leases_end():
    old = 0
    rows = {}
    for seed in range(30):
        cluster = BoundedCluster(seed)
        cluster.run_random(1500, 400_000)
        old += sum(truth.old_reads for truth in cluster.truths.values() if isinstance(truth, BoundedTruth))
        rows |= cluster.coverage
    assert old > 100, "a simulation in which nothing is old shows nothing"
    assert {before for event, before in rows if event == "expire"} == {1, 5}


def parts_of(name):
    parts = BOUNDED_MUTANTS[name].parts
    return replace(parts, faults=Calm) if parts.faults is Faults else parts


@pytest.mark.parametrize("name", BOUNDED_MUTANTS)
def test_mutant_is_caught(name):
    parts = parts_of(name)
    for seed in range(MUTANT_SEEDS):
        if run_seed(seed, model="bounded", parts=parts, **EVENTS).failure.startswith(FOUND):
            break
    else:
        pytest.fail(f"{MUTANT_SEEDS} seeds did not show that {BOUNDED_MUTANTS[name].about}")
    # Without the bug the very seed that shows it is clean.
    whole = replace(
        BOUNDED_PARTS, faults=parts.faults, timing=parts.timing, shape=parts.shape, style=parts.style
    )
    outcome = run_seed(seed, model="bounded", parts=whole, **EVENTS)
    assert outcome.ok, report(outcome)


def test_the_same_seed_does_the_same_things():
    first, second = run_seed(7, model="bounded"), run_seed(7, model="bounded")
    assert (first.events, first.digest) == (second.events, second.digest)
