"""Heaps in debug mode: who writes where nothing is its own is found, with the line of the allocation."""

from __future__ import annotations

import ctypes
import linecache

import numpy as np
import pytest

import dsm
import heap_programs as programs
from dsm.testing import Cluster
from dsm.testing.cluster import ManagerProcess
from dsm.worker import guarded

DEBUG = {"debug": True}

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def manager():
    manager = ManagerProcess("0" * 64, ["--ranks", "0"], None)
    yield manager.socket
    manager.end()


@pytest.fixture
def heap(manager, monkeypatch, request):
    monkeypatch.setenv("DSM_NODE", manager)
    with dsm.attach() as node:
        heap = node.heap(f"debug {request.node.name}"[:100], debug=True)
        yield heap
        heap.destroy()


def _poke(address, value=0x55):
    ctypes.memset(address, value, 1)


def _here(text):
    """Return ``file:line`` of the line of this file that has `text` in it."""
    lines = linecache.getlines(__file__)
    (number,) = [at for at, line in enumerate(lines, 1) if text in line and "_here(" not in line]
    return f"{__file__}:{number}"


def test_a_block_that_is_used_well_is_nobodys_business(heap):
    for size in (0, 1, 100, 5000, 400_000):
        for align in (16, 64, 4096):
            block = heap.alloc(size, align)
            assert block.address % align == 0 and not np.any(block.array())
            block.array()[:] = 1
            assert block.usable_size == size
            heap.check()
            block.free()
    assert bytes(heap.alloc(4, zero=False).buffer) == b"\xcd" * 4
    figures = heap.statistics()
    assert (figures.in_use, figures.allocated) == (1, 4)
    heap.check()


@pytest.mark.parametrize("by", [0, 3, 15])
def test_an_overrun(heap, by):
    block = heap.alloc(100)  # overrun
    _poke(block.address + 100 + by)
    for find in (heap.check, block.free):
        with pytest.raises(dsm.HeapCorruptionError) as caught:
            find()
        assert f"overrun: 1 byte differs at offset {100 + by} of the block" in str(caught.value)
        assert f"allocated at {_here('# overrun')}" in str(caught.value)
        assert "block of 100 bytes at" in str(caught.value)
    heap.check()  # it has been told, and the block is free


@pytest.mark.parametrize("by", [1, 20, 32])
def test_an_underrun(heap, by):
    block = heap.alloc(100)  # underrun
    _poke(block.address - by)
    for find in (heap.check, block.free):
        with pytest.raises(dsm.HeapCorruptionError, match="underrun: 1 byte differs") as caught:
            find()
        assert _here("# underrun") in str(caught.value)


def test_use_after_free_is_found_by_check(heap):
    block = heap.alloc(100)  # used later
    array = block.array()
    block.free()  # freed here
    heap.check()
    array[7] = 1
    with pytest.raises(dsm.HeapCorruptionError) as caught:
        heap.check()
    said = str(caught.value)
    assert "use after free: 1 byte differs at offset 7 of the block" in said
    assert _here("# used later") in said and f"freed at {_here('# freed here')}" in said


def test_use_after_free_is_found_when_the_memory_is_to_be_used_again(heap):
    block = heap.alloc(64)
    array = block.array()
    block.free()
    array[:] = 0
    with pytest.raises(dsm.HeapCorruptionError, match="use after free: 64 bytes differ"):
        for _ in range(1000):
            heap.alloc(64).free()
    heap.check()  # it has been told


def test_a_handle_is_freed_once_in_its_process(heap):
    block = heap.alloc(100)
    block.free()
    with pytest.raises(dsm.UsageError, match="double free"):
        block.free()
    with pytest.raises(dsm.UsageError, match="after this process freed it"):
        block.array()


def test_an_array_is_freed_once(heap):
    array = heap.array(100)  # an array
    heap.free(array)
    with pytest.raises(dsm.HeapCorruptionError, match="double free") as caught:
        heap.free(array)
    assert _here("# an array") in str(caught.value)


def test_realloc_moves_a_guarded_block(heap):
    block = heap.alloc(100)
    block.array()[:] = 7
    block = heap.realloc(block, 200)
    assert bytes(block.buffer) == b"\7" * 100 + bytes(100)
    block = heap.realloc(block, 10)
    assert bytes(block.buffer) == b"\7" * 10
    heap.check()
    block.free()


def test_an_extent_that_is_given_back_while_it_is_looked_at_is_no_damage(heap, monkeypatch):
    block = heap.alloc("20M")  # more than quarantine keeps
    address, damage, gone = block.address, guarded._damage, []

    def give_back_first(heap, listed):
        if listed.address == address and not gone:
            gone.append(address)
            monkeypatch.setattr(guarded, "_damage", damage)
            block.free()
            heap.trim()
            assert heap.statistics().managed == 0
        return damage(heap, listed)

    monkeypatch.setattr(guarded, "_damage", give_back_first)
    heap.check()
    assert gone


def test_memory_comes_back_from_quarantine(heap):
    for _ in range(60):
        heap.alloc("1M").free()
    figures = heap.statistics()
    assert figures.in_use == 0 and figures.managed <= 80 << 20
    heap.check()


def _overrun(node, ref):
    block = ref.block()
    _poke(block.address + block.nbytes)


def _write_freed(node, ref):
    node.stale[:] = 1


def _keep_array(node, ref):
    node.stale = ref.block().array()


def test_what_other_workers_of_other_nodes_do():
    with Cluster(nodes=2, workers=2) as cluster:
        first, second, third, fourth = cluster.workers
        refs = first.call(programs.allocate, "far", [100, 200, 300, 400], 1, DEBUG)
        assert third.call(programs.read, refs[:1]) == [b"\1" * 100]
        assert [worker.call(programs.check, "far") for worker in cluster.workers] == [None] * 4
        # Freed by two workers: of one node, of another.
        third.call(programs.free, refs[:1])
        for worker in (first, second, fourth):
            kind, said = worker.call(programs.free_again, refs[:1])
            assert kind == "HeapCorruptionError"
            assert said.startswith("double free: the block of 100 bytes")
            assert "allocated at" in said and "heap_programs.py" in said and "was freed at" in said
        # An overrun from far.
        fourth.call(_overrun, refs[1])
        for worker in (first, third):
            kind, said = worker.call(programs.check, "far")
            assert kind == "HeapCorruptionError" and "overrun" in said and "block of 200 bytes" in said
        kind, said = third.call(programs.free_again, [refs[1]])
        assert kind == "HeapCorruptionError" and "overrun" in said
        first.call(programs.destroy, "far")


def test_release_consistency_is_no_damage():
    """Nobody has synchronized, but for the guards."""
    options = {**DEBUG, "consistency": "release", "min_system_alloc": 65536}
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        for turn in range(12):
            refs = first.call(programs.allocate, "release", [50 + turn, 5000 - turn, 16, 800], turn, options)
            refs += second.call(programs.allocate, "release", [16, 900 - turn, 70 + turn], turn, options)
            for worker in cluster.workers:
                assert worker.call(programs.check, "release") is None
            second.call(programs.free, refs[::2])
            assert first.call(programs.check, "release") is None
            first.call(programs.free, refs[1::2])
            assert second.call(programs.check, "release") is None
        assert first.call(programs.figures, "release").in_use == 0


def test_a_node_that_never_opened_the_heap_has_no_blocks():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        (ref,) = first.call(programs.allocate, "one", [100], 1, DEBUG)
        assert first.call(programs.check, "one") is None
        first.call(programs.free, [ref])
        assert first.call(programs.figures, "one").in_use == 0
        assert second.call(programs.check, "one") is None


@pytest.mark.parametrize("nodes", [1, 2])
def test_who_frees_looks_at_blocks_in_extents_that_only_others_had(nodes):
    """Blocks leave the quarantine when any worker frees another one."""
    options = {**DEBUG, "min_system_alloc": 4096}
    with Cluster(nodes=nodes, workers=3 - nodes) as cluster:
        first, second = cluster.workers
        refs = first.call(programs.allocate, "theirs", [3000] * 300, 1, options)
        (last,) = first.call(programs.allocate, "theirs", [10], 1)
        second.call(programs.free, [last])
        first.call(programs.free, refs[:255])
        second.call(programs.free, refs[290:])
        assert second.call(programs.check, "theirs") is None
        assert second.call(programs.figures, "theirs").in_use == 35


def test_what_was_freed_is_watched_from_far():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        (ref,) = first.call(programs.allocate, "stale", [100], 1, DEBUG)
        second.call(_keep_array, ref)
        first.call(programs.free, [ref])
        assert second.call(programs.check, "stale") is None
        second.call(_write_freed, ref)
        kind, said = first.call(programs.check, "stale")
        assert kind == "HeapCorruptionError" and "use after free: 100 bytes differ" in said
