"""`dsm status` and `dsm sql` show leases: whose they are and when they end, and no keys."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsm.testing import Cluster


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2) as cluster:
        yield cluster


def dsm(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dsm", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def take(node, nbytes, duration, heap):
    if heap is not None:
        node.heap(heap)
    lease = node.lease(nbytes, duration, heap=heap)
    return str(lease.id), lease.key.hex(), lease.read_key.hex()


@pytest.fixture(scope="module")
def taken(cluster):
    return cluster.workers[1].call(take, 5000, "2h", "images"), cluster.workers[0].call(take, 100, "1h", None)


def test_status_lists_leases_by_their_ends_and_not_among_regions(cluster, taken):
    shown = dsm("status", cluster.managers[1].socket)
    lines = [line for line in shown.splitlines() if any(each[0] in line for each in taken)]
    assert [line.split()[0] for line in lines] == [taken[1][0], taken[0][0]]
    assert lines[1].endswith(" images")
    assert "(anonymous)" not in shown
    assert not any(key in shown for each in taken for key in each[1:])


def test_sql_asks_for_leases(cluster, taken):
    question = "select id, nbytes, taken_on, heap, expires_in_s > 3500 from leases order by nbytes"
    shown = dsm("sql", question, "--at", cluster.managers[0].socket, "--json")
    for value in (taken[0][0], taken[1][0], "5000", "images"):
        assert value in shown
    assert not any(key in shown for each in taken for key in each[1:])
