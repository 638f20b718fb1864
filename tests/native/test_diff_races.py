"""Diffs while workers write: no byte is lost, and none beside a changed one is touched."""

from __future__ import annotations

import ctypes
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diff_machines import PAGE, address, aligned
from support import wait_until


@pytest.fixture
def writer(helper):
    library = ctypes.CDLL(str(helper))
    u64 = ctypes.c_uint64
    library.write_all.argtypes = [ctypes.c_void_p, u64, u64, ctypes.c_uint32, ctypes.POINTER(u64)]
    library.count_up.argtypes = [ctypes.c_void_p, u64, u64, u64, ctypes.POINTER(u64), ctypes.POINTER(u64)]
    library.count_up.restype = u64
    return library


def test_whatever_is_written_during_diffs_arrives(machine, writer):
    frames, twins, home = (aligned(8 * PAGE) for _ in range(3))
    during = 0
    for seed in itertools.count():
        if seed >= 40 and during:
            break
        written = ctypes.c_uint64(0)
        arguments = (address(frames), frames.size, seed * 7919 + 1, 100, ctypes.byref(written))
        thread = threading.Thread(target=writer.write_all, args=arguments)
        thread.start()
        while written.value < frames.size:
            payload = machine.diff(frames, twins, keep=True)
            if payload:
                machine.patch(home, payload)
                during += 1
        thread.join()
        payload = machine.diff(frames, twins)
        if payload:
            machine.patch(home, payload)
        assert (home == frames).all()
        twins[:] = frames


@pytest.mark.parametrize(
    ("first", "step"), [(0, 2), (3, 8), (0, 64), (7, 97), (4095, 4096)], ids=lambda value: str(value)
)
def test_bytes_beside_changed_ones_are_not_touched(machine, writer, first, step):
    old = np.zeros(2 * PAGE, np.uint8)
    frames, twins = aligned(2 * PAGE), aligned(2 * PAGE)
    theirs = np.ones(2 * PAGE, bool)
    theirs[first::step] = False
    payloads = []
    for value in (1, 2):
        frames[:] = np.where(theirs, value, old)
        payloads.append(machine.diff(frames, twins))
    home = aligned(2 * PAGE)
    stop, rounds = ctypes.c_uint64(0), ctypes.c_uint64(0)
    arguments = (address(home), home.size, first, step, ctypes.byref(stop), ctypes.byref(rounds))
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(writer.count_up, *arguments)
        try:
            wait_until(lambda: rounds.value)
            for i in range(4000):
                machine.patch(home, payloads[i % 2])
        finally:
            stop.value = 1
    assert lost.result() == 0
    assert (home[theirs] == 2).all() and (home[~theirs] == rounds.value % 256).all()
