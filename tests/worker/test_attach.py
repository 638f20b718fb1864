"""Attaching: which node, once a process, ended and begun again."""

import contextlib
import gc
import os
import subprocess
import sys
import threading

import pytest

import dsm
import support
from dsm.cli.status.ask import ask
from dsm.worker import startup


def test_attaching_again_is_the_same_node(node):
    assert dsm.attach() is node
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(dsm.attach())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [node] * 4


def test_who_and_where(node):
    assert node.node_id == 0
    assert node.nodes == (0,)
    assert node.rank >= 0
    assert node.size >= 1
    assert not node.closed
    assert not node.lost


def test_a_private_node_is_started_and_exported(private):
    with dsm.attach() as node:
        assert os.environ["DSM_NODE"].startswith("private:@dsm-")
        assert (node.rank, node.size) == (0, 1)
        assert len(support.managers()) == 1
    support.wait_until(lambda: not support.managers())


def test_children_join_a_private_node(private):
    with dsm.attach() as node:
        a = node.array("joined", 3)
        program = "import dsm; n = dsm.attach(); n.open('joined')[n.rank] = n.rank + 1; print(n.rank, n.size)"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
        assert result.stdout == "1 2\n", result.stderr
        assert a.tolist() == [0, 2, 0]


def test_a_stale_private_node_is_replaced(private, monkeypatch):
    monkeypatch.setenv("DSM_NODE", "private:@dsm-gone-long-ago")
    with dsm.attach() as node:
        assert node.node_id == 0
        assert os.environ["DSM_NODE"] != "private:@dsm-gone-long-ago"


def test_a_stale_node_of_a_job_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setenv("DSM_NODE", "@dsm-gone-long-ago")
    with pytest.raises(dsm.NodeLostError, match="dsm run"):
        dsm.attach()


@pytest.mark.parametrize("said", ["dsm-1", "private:", "private:x", "@"])
def test_a_malformed_address_is_named(monkeypatch, said):
    monkeypatch.setenv("DSM_NODE", said)
    with pytest.raises(dsm.UsageError, match="DSM_NODE"):
        dsm.attach()


def test_a_malformed_rank_is_named(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    monkeypatch.setenv("DSM_RANK", "first")
    with pytest.raises(dsm.UsageError, match="DSM_RANK"):
        dsm.attach()


def test_the_launchers_rank_and_size(run_manager, monkeypatch):
    with run_manager("--ranks", "3") as address:
        monkeypatch.setenv("DSM_NODE", address)
        monkeypatch.setenv("DSM_RANK", "2")
        with dsm.attach() as node:
            assert (node.rank, node.size) == (2, 3)
            with pytest.raises(dsm.WaitTimeoutError, match="3 parties"):
                node.barrier(timeout=0.01)


def test_attaching_after_close(private):
    first = dsm.attach()
    a = first.array("kept", 10)
    a[:] = 1
    first.close()
    with dsm.attach() as second:
        assert second is not first
        assert second.arrays() == {}
        b = second.array("kept", 10)
        assert b.sum() == 0


def test_attaching_again_to_a_node_that_lives_makes_old_arrays_valid(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    with dsm.attach() as first:
        a = first.array("survives", 10)
        a[:] = 3
    with pytest.raises(dsm.ClosedError):
        a.sum()
    with dsm.attach() as second:
        b = second.open("survives")
        assert b.ctypes.data == a.ctypes.data
        assert a.sum() == 30


def test_a_lost_manager_gives_errors_and_then_a_new_node(private):
    first = dsm.attach()
    os.kill(first._connection.attached.manager_pid, 9)
    support.wait_until(lambda: first.lost)
    with pytest.raises(dsm.NodeLostError):
        first.statistics()
    with dsm.attach() as second:
        assert second is not first
        assert second.array(None, 10).sum() == 0


def test_absent_pages_of_a_lost_manager_raise(
    private, needs_fake
):  # the real one gives all pages when it is alone
    with dsm.attach() as node:
        a = node.array(None, 10_000)
        a[0] = 1
        os.kill(node._connection.attached.manager_pid, 9)
        with pytest.raises(dsm.NodeLostError, match="anonymous region"):
            a.sum()
        with pytest.raises(dsm.NodeLostError, match="page 0 of anonymous region"):
            while True:  # until this process has noticed: then the page that was here is closed, too
                a[0] += 1


def test_a_manager_that_cannot_start_is_reported(monkeypatch):
    monkeypatch.delenv("DSM_NODE", raising=False)
    monkeypatch.setattr(startup, "MANAGER", ("-c", "raise SystemExit('the disk is full')"))
    with pytest.raises(dsm.NodeLostError, match="the disk is full"):
        dsm.attach()


def test_nothing_remains_open_after_close(node, manager):
    node.close()
    gc.collect()  # what earlier tests of this process left may have descriptors, too
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with dsm.attach() as again:
            again.array(None, 100)[:] = 1
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_statistics(node):
    a = node.array(None, 10_000)
    a[:] = 1
    statistics = node.statistics()
    assert statistics.faults_read + statistics.faults_write + statistics.faults_local > 0
    assert statistics.bytes_in == 0
    assert statistics.latency_ns(0.5) <= statistics.latency_ns(1.0)
    with pytest.raises(AttributeError):
        statistics.pages_in = 3


def test_importing_is_quick():
    heavy = ["numpy", "cffi", "msgspec", "multiprocessing"]
    program = f"import sys, dsm; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_every_public_name_is_there():
    for name in dsm.__all__:
        assert getattr(dsm, name) is not None
    with pytest.raises(AttributeError):
        dsm.nothing  # noqa: B018


def test_whoever_asks_for_the_status_does_the_node_no_harm(node, manager):
    with contextlib.suppress(dsm.UsageError):  # the fake one has none
        ask(manager)
    assert node.nodes == (0,)
