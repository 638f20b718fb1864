"""Progress: instructions that need several pages at once finish, however many nodes fight for the pages."""

import pytest

from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation import Cluster, Shape
from dsm.testing.simulation.program import UNIQUE, Touch
from dsm.types import Region, RegionOptions

MILLISECOND = 1_000_000


def fight(nodes, pages_each, rounds, seed, workers=1):
    """Let every worker run `rounds` instructions that write the same pages, each in its own order."""
    shape = Shape(nodes, workers, 1)
    options = RegionOptions(nbytes=4 * 65536, page_size=65536, home="cyclic")
    shape.regions.append(Region(1, options, ADDRESS_LOW, tuple(range(nodes))))
    cluster = Cluster(seed, shape)
    programs = {}
    for thread in cluster.threads:
        pages = list(range(pages_each))
        cluster.world.random.shuffle(pages)
        accesses = tuple((page, 0, UNIQUE) for page in pages)
        programs[thread.number] = [Touch(1, accesses, 5) for _ in range(rounds)]
    cluster.run_programs(programs, 400_000, spread=10_000)
    return cluster.world.now


@pytest.mark.parametrize("seed", range(10))
def test_two_nodes_that_need_the_same_two_pages_finish(seed):
    assert fight(2, 2, 20, seed) < 2000 * MILLISECOND


@pytest.mark.parametrize("nodes", [4, 8, 16])
@pytest.mark.parametrize("pages", [2, 3])
def test_many_nodes_that_need_the_same_pages_finish(nodes, pages):
    for seed in range(3):
        assert fight(nodes, pages, 4, seed) < 20_000 * MILLISECOND
