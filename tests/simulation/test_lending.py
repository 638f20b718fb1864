"""Locks that are lent, under release consistency: happens-before holds, and who forgets a rule is caught."""

import pytest

from dsm.testing.simulation import report, run_seed
from dsm.testing.simulation.release.lending import LendingNode
from dsm.testing.simulation.release.lending_mutants import Locking
from dsm.testing.simulation.release.mutants import RELEASE_MUTANTS, release_parts

EVENTS = dict(model="release", min_events=1500, max_events=60_000)
#: Seeds within which a bug must show.
SEEDS = 60


class Counting(LendingNode):
    """Counts locks that were lent, and those that owed a release when they went back."""

    lent = paid = 0

    def _lent(self, reply, ask, stamp):
        Counting.lent += 1
        super()._lent(reply, ask, stamp)

    def pay(self, number):
        Counting.paid += 1
        super().pay(number)


@pytest.mark.parametrize(("faults", "seeds"), [("none", 25), ("all", 15)])
def test_programs_with_many_locks_see_what_happened_before(faults, seeds):
    Counting.lent = Counting.paid = 0
    for seed in range(seeds):
        outcome = run_seed(seed, faults=faults, parts=release_parts(Counting, manners=Locking), **EVENTS)
        assert outcome.ok, report(outcome)
    assert Counting.lent > 3 * seeds and Counting.paid > seeds


@pytest.mark.parametrize(
    "name", ["owed-release-forgotten", "recall-forgotten", "crossed-call-forgotten", "lent-twice"]
)
def test_a_bug_of_lending_is_caught(name):
    for seed in range(SEEDS):
        outcome = run_seed(seed, faults="none", parts=RELEASE_MUTANTS[name].parts, **EVENTS)
        if outcome.failure.startswith(("Violation", "InternalError")):
            break
        assert outcome.ok, report(outcome)
    else:
        pytest.fail(f"{SEEDS} seeds did not show that {RELEASE_MUTANTS[name].about}")
    clean = run_seed(seed, faults="none", parts=release_parts(LendingNode, manners=Locking), **EVENTS)
    assert clean.ok, report(clean)
