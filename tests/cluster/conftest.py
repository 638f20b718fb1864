"""Clusters of several shapes that the tests of a file share."""

from __future__ import annotations

import pytest

from dsm.testing import Cluster, ForkServer

SHAPES = [(1, 3), (2, 1), (2, 2), (3, 1), (4, 1)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def cluster(request):
    """One cluster after the other: so many nodes, with so many workers each."""
    nodes, workers = request.param
    with Cluster(nodes=nodes, workers=workers) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def two():
    """Two nodes of one worker."""
    with Cluster(nodes=2, workers=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def four():
    """Two nodes of two workers."""
    with Cluster(nodes=2, workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def patient():
    """Clusters whose managers count nobody as silent who is only slow, and can be stopped (`gated`)."""
    with ForkServer(["pytest", "support", "patient", "gated"]):
        yield
