"""What a cluster's workers answer belongs to what they were asked, however late it comes."""

from __future__ import annotations

import os

import pytest

import dsm
from dsm.testing import Cluster
from support import wait_until


class _Unreadable(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one, other):
        super().__init__(one)


def wait_for_file(node, path):
    wait_until(lambda: os.path.exists(path))
    return "waited"


def fail(node, error):
    raise error


def fail_unreadably(node):
    raise _Unreadable("one", "other")


def same(node, value):
    return value


def test_an_answer_that_comes_too_late_is_not_that_of_the_next_call(tmp_path):
    with Cluster() as cluster:
        (worker,) = cluster.workers
        late = worker.start(wait_for_file, tmp_path / "go on")
        with pytest.raises(dsm.PageTimeoutError, match=r"has not answered in 0\.01 s"):
            late.result(0.01)
        (tmp_path / "go on").touch()
        assert worker.call(same, 5) == 5
        assert late.result() == late.result() == "waited"


def test_answers_are_asked_for_in_any_order(tmp_path):
    with Cluster() as cluster:
        (worker,) = cluster.workers
        first, second, third = (worker.start(same, value) for value in "abc")
        failed, unreadable = (
            worker.start(fail, ZeroDivisionError("on purpose")),
            worker.start(fail_unreadably),
        )
        assert (third.result(), first.result(), second.result()) == ("c", "a", "b")
        with pytest.raises(Exception, match="the result cannot be read here"):
            unreadable.result()
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            failed.result()
        assert worker.call(same, 6) == 6


def test_who_asks_a_worker_that_has_ended_is_told_so_by_the_result():
    with Cluster() as cluster:
        (worker,) = cluster.workers
        worker.kill()
        worker.process.wait()
        for _ in range(2):
            with pytest.raises(dsm.NodeLostError, match="ended with -9"):
                worker.call(same, 1)
