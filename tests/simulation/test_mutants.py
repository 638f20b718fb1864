"""Deliberate bugs: the checkers find each one, and find nothing in the same seeds without it."""

from dataclasses import replace

import pytest

from dsm.testing.simulation import Parts, report, run_seed
from dsm.testing.simulation.driver_mutants import Crashes
from dsm.testing.simulation.faults import Calm, Faults
from dsm.testing.simulation.mutants import MUTANTS, mutated_engine

#: Seeds within which a bug must show.
SEEDS = 400
EVENTS = dict(min_events=1500, max_events=60_000)
#: How a checker, or the engine's own, speaks; any other exception is an accident, and shows nothing.
FOUND = ("Violation", "InternalError")


def parts_of(name):
    """Parts of a mutant: those that need no faults to show run without."""
    parts = MUTANTS[name].parts
    return replace(parts, faults=Calm) if parts.faults is Faults else parts


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    parts = parts_of(name)
    for seed in range(SEEDS):
        if run_seed(seed, parts=parts, **EVENTS).failure.startswith(FOUND):
            break
    else:
        pytest.fail(f"{SEEDS} seeds did not show that {MUTANTS[name].about}")
    # Without the bug the very seed that shows it is clean.
    outcome = run_seed(seed, parts=Parts(faults=parts.faults), **EVENTS)
    assert outcome.ok, report(outcome)


@pytest.mark.parametrize("faults", [Calm, Crashes])
def test_an_engine_with_no_bug_put_in_is_clean(faults):
    for seed in range(15):
        outcome = run_seed(seed, parts=mutated_engine(faults=faults), **EVENTS)
        assert outcome.ok, report(outcome)
