"""Litmus tests on real processes: outcomes that `sequential` forbids never occur.

The variables lie in one page or in pages of their own.  Workers of one node share memory in hardware, so
among them store buffering is allowed (x86 TSO); between nodes it is not.
"""

from __future__ import annotations

import pytest

import programs
from dsm.testing import Cluster

ROUNDS = 60
ONE_PAGE, OWN_PAGES = 1, programs.ITEMS


@pytest.fixture(scope="module", params=[(1, 4), (2, 2), (4, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
def cluster(request):
    nodes, workers = request.param
    with Cluster(nodes=nodes, workers=workers) as cluster:
        cluster.nodes = nodes
        yield cluster


@pytest.fixture(scope="module", params=[(1, 2), (2, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
def pair(request):
    nodes, workers = request.param
    with Cluster(nodes=nodes, workers=workers) as cluster:
        cluster.nodes = nodes
        yield cluster


@pytest.mark.parametrize("apart", [ONE_PAGE, OWN_PAGES])
def test_store_buffering(pair, apart):
    zero, one = pair.all(programs.store_buffering, ROUNDS, apart)
    if pair.nodes > 1:
        assert all(a or b for a, b in zip(zero, one, strict=True))


@pytest.mark.parametrize("apart", [ONE_PAGE, OWN_PAGES])
def test_message_passing(pair, apart):
    pair.all(programs.message_passing, ROUNDS, apart)


@pytest.mark.parametrize("apart", [ONE_PAGE, OWN_PAGES])
def test_writes_of_two_are_seen_in_one_order_by_all(cluster, apart):
    *_, third, fourth = cluster.all(programs.independent_reads, ROUNDS, apart)
    for a, b in zip(third, fourth, strict=True):
        assert not (a == (1, 0) and b == (1, 0))


def test_a_count_never_goes_back(cluster):
    cluster.all(programs.coherent_reads, 300)


@pytest.mark.parametrize("apart", [ONE_PAGE, OWN_PAGES])
def test_two_writers_of_two_cells(pair, apart):
    finals = pair.all(programs.both_write, ROUNDS, apart)
    assert finals[0] == finals[1]
    assert (1, 1) not in finals[0]
