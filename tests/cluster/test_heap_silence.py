"""Figures and checks of a heap while a node does not answer: it is named, the others are heard."""

from __future__ import annotations

import os
import signal

import pytest

import heap_programs as programs
from dsm.proc import process_state
from dsm.testing import Cluster
from dsm.worker import guarded
from support import wait_until, wait_value


def _if_whole(figures):
    return None if figures.silent else figures


def test_a_node_that_is_stopped_is_named():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        refs = first.call(programs.allocate, "stopped", [100], 1, {"manager": "pooled"})
        second.call(programs.allocate, "stopped", [100])
        cluster.managers[1].process.send_signal(signal.SIGSTOP)
        figures = first.call(programs.figures, "stopped")
        assert (figures.silent, figures.in_use) == ((1,), 1)
        name, said = first.call(programs.check, "stopped")
        assert name == "PageTimeoutError" and "not verified on node 1, which did not answer" in said
        first.call(programs.free, refs)
        cluster.managers[1].process.send_signal(signal.SIGCONT)
        whole = wait_value(lambda: _if_whole(first.call(programs.figures, "stopped")))
        assert whole.in_use == 1
        wait_until(lambda: first.call(programs.check, "stopped") is None)


@pytest.mark.parametrize("damaged", [False, True])
def test_guards_are_looked_at_where_a_node_answers(damaged):
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        for worker in (first, second):
            worker.call(programs.allocate, "half", [100], 1, {"debug": True})
        if damaged:
            first.call(_overrun, "half")
        cluster.managers[1].process.send_signal(signal.SIGSTOP)
        name, _ = first.call(programs.check, "half")
        assert name == ("HeapCorruptionError" if damaged else "PageTimeoutError")
        cluster.managers[1].process.send_signal(signal.SIGCONT)


def _overrun(node, name):
    block = node.heap(name).alloc(100)
    region, offset = block._region()
    region.buffer[offset + 100] = 1


def _check_while_it_stops(node, name, pid):
    """Stop a node when it has verified its pool, and has yet to list its blocks."""
    with pytest.MonkeyPatch.context() as patched:
        check = guarded.check

        def stop_first(heap, silent):
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: process_state(pid)[0] == "T")
            return check(heap, silent)

        patched.setattr(guarded, "check", stop_first)
        return programs.check(node, name)


def test_a_node_that_stops_after_its_pool_was_verified_is_named():
    with Cluster(nodes=2) as cluster:
        first = cluster.workers[0]
        for worker in cluster.workers:
            worker.call(programs.allocate, "stops", [100], 1, {"debug": True})
        process = cluster.managers[1].process
        kind, said = first.call(_check_while_it_stops, "stops", process.pid)
        process.send_signal(signal.SIGCONT)
        assert kind == "PageTimeoutError" and "not verified on node 1, which did not answer" in said
