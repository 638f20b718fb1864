"""Deliberate bugs under release consistency: the checkers find each, and nothing without it."""

from dataclasses import replace

import pytest

from dsm.testing.simulation import report, run_seed
from dsm.testing.simulation.faults import Calm
from dsm.testing.simulation.release.mutants import RELEASE_MUTANTS, mutated_release, release_parts

#: Seeds within which a bug must show.
SEEDS = 300
EVENTS = dict(model="release", min_events=1200, max_events=60_000)
FOUND = ("Violation", "InternalError")


@pytest.mark.parametrize("name", RELEASE_MUTANTS)
def test_mutant_is_caught(name):
    parts = replace(RELEASE_MUTANTS[name].parts, faults=Calm)
    for seed in range(SEEDS):
        if run_seed(seed, parts=parts, **EVENTS).failure.startswith(FOUND):
            break
    else:
        pytest.fail(f"{SEEDS} seeds did not show that {RELEASE_MUTANTS[name].about}")
    # Without the bug the very seed that shows it is clean.
    sound = replace(release_parts(manners=parts.manners, timing=parts.timing, shape=parts.shape), faults=Calm)
    outcome = run_seed(seed, parts=sound, **EVENTS)
    assert outcome.ok, report(outcome)


def test_an_engine_with_no_bug_put_in_is_clean():
    for seed in range(10):
        outcome = run_seed(seed, parts=mutated_release(), **EVENTS)
        assert outcome.ok, report(outcome)
