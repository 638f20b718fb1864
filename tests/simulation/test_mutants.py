"""Deliberate bugs: the checkers find each one, and find nothing in the same seeds without it."""

import pytest

from dsm.testing.simulation import report, run_seed
from dsm.testing.simulation.mutants import MUTANTS

#: Seeds within which a bug must show.
SEEDS = 400
EVENTS = dict(min_events=1500, max_events=60_000)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    for seed in range(SEEDS):
        if not run_seed(seed, parts=MUTANTS[name].parts, **EVENTS).ok:
            break
    else:
        pytest.fail(f"{SEEDS} seeds did not show that {MUTANTS[name].about}")
    # Without the bug the very seed that shows it is clean.
    outcome = run_seed(seed, **EVENTS)
    assert outcome.ok, report(outcome)
