"""Litmus tests: what `sequential` forbids is never seen, wherever the threads run."""

import pytest

from dsm.errors import InternalError
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.litmus import LITMUS, is_forbidden, placements, run_litmus
from dsm.testing.simulation.mutants import MUTANTS
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.world import Violation

#: Seeds for each placement; tests with fewer threads have fewer placements.
SEEDS = {2: 12, 3: 6, 4: 2}


class Blind(Truth):
    """Checks nothing: the outcomes alone must tell."""

    def raised(self, *_):
        pass

    def mapped(self, *_):
        pass

    def overwritten(self, *_):
        pass

    def read(self, *_):
        pass


def outcomes(name, seeds, parts=None):
    for placement in placements(len(LITMUS[name].threads)):
        for same_page in (False, True):
            for seed in range(seeds):
                yield from run_litmus(name, placement, seed, same_page=same_page, parts=parts)


@pytest.mark.parametrize("name", LITMUS)
def test_forbidden_outcomes_never_occur(name):
    seen = set(outcomes(name, SEEDS[len(LITMUS[name].threads)], Parts(truth=Blind)))
    assert not [outcome for outcome in seen if is_forbidden(name, outcome)]
    assert len(seen) >= 3, "the threads never raced: the test shows nothing"


@pytest.mark.parametrize("name", ["SB", "MP", "IRIW"])
def test_a_skipped_invalidation_shows_in_the_outcomes(name):
    parts = Parts(truth=Blind, node=MUTANTS["skipped-invalidation"].parts.node)

    def broken():
        for placement in placements(len(LITMUS[name].threads)):
            for seed in range(20):
                try:
                    for outcome in run_litmus(
                        name, placement, seed, same_page=False, parts=parts, check=False
                    ):
                        yield is_forbidden(name, outcome)
                except (Violation, InternalError):
                    pass  # a broken cluster may trip over itself; not what is asked here

    assert any(broken())


def test_placements_are_all_and_different():
    assert len(list(placements(2))) == 3
    assert len(set(placements(3))) == len(list(placements(3)))
