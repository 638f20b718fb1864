"""Litmus tests under release: what is synchronized is never relaxed, and what is not is seen to be."""

import pytest

from dsm.testing.simulation.litmus import LITMUS, is_forbidden, placements
from dsm.testing.simulation.release.litmus import NEVER_RELAXED, run_release_litmus

#: Seeds for each placement; tests with fewer threads have fewer placements.
SEEDS = {2: 5, 3: 2, 4: 1}


def outcomes(name, way, seeds):
    threads = len(LITMUS[name].threads)
    for placement in list(placements(threads))[:: 4 if threads > 3 else 1]:
        for same_page in (False, True):
            for seed in range(seeds):
                yield from run_release_litmus(name, placement, seed, way=way, same_page=same_page)


@pytest.mark.parametrize("way", ["locks", "atomics"])
@pytest.mark.parametrize("name", LITMUS)
def test_forbidden_outcomes_never_occur_with_synchronization(name, way):
    seen = set(outcomes(name, way, SEEDS[len(LITMUS[name].threads)]))
    assert not [outcome for outcome in seen if is_forbidden(name, outcome)]
    assert len(seen) >= 2, "the threads never raced: the test shows nothing"


@pytest.mark.parametrize("name", sorted(set(LITMUS) - NEVER_RELAXED))
def test_relaxed_outcomes_are_seen_without(name):
    assert any(is_forbidden(name, outcome) for outcome in outcomes(name, "plain", 40))


@pytest.mark.parametrize("name", sorted(NEVER_RELAXED))
def test_what_this_implementation_never_relaxes(name):
    assert not any(is_forbidden(name, outcome) for outcome in outcomes(name, "plain", 5))
