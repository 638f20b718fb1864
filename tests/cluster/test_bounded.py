"""Bounded staleness on real managers and workers over loopback TCP."""

from __future__ import annotations

import pytest

import staleness
from dsm.testing import Cluster

#: Seconds.
BOUND = 0.1


@pytest.fixture(scope="module")
def two():
    with Cluster(nodes=2, workers=1) as cluster:
        yield cluster


def test_nothing_is_read_that_is_older_than_the_bound(two):
    writer, reader = two.workers
    writing = writer.start(staleness.write, BOUND, 3)
    looked = reader.call(staleness.read, BOUND, 2.5)
    ages = staleness.ages(writing.result(), looked)
    print(len(ages), ages.max() / 1e6, len(set(looked[1].tolist())))
    assert ages.max() < BOUND * 1e9


def test_within_the_bound_what_is_read_may_be_old(two):
    writer, reader = two.workers
    writer.call(staleness.put, 60, 1)
    assert reader.call(staleness.get, 60) == 1
    writer.call(staleness.put, 60, 2)
    assert reader.call(staleness.get, 60) == 1
