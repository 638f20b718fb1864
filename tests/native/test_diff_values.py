"""Values of every dtype arrive at full page size, from the code of this machine and of any other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diff_reference as reference
from diff_machines import aligned

PAGE = 4096
STRUCTURED = np.dtype([("key", "u1"), ("value", "f8"), ("point", "f4", (3,)), ("name", "S7")])
DTYPES = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", "S5", "U3", "M8[ns]",
    STRUCTURED,
]  # fmt: skip


def _carry(machine, old, new):
    """Take what changed from a frame to a copy of its twin; returns it, with the payload."""
    frames, twins, target = (aligned(new.size) for _ in range(3))
    frames[:], twins[:], target[:] = new, old, old
    payload = machine.diff(frames, twins)
    assert payload == reference.payload(new, old, PAGE, [(0, new.size // PAGE)])
    if payload:
        machine.patch(target, payload)
    kept = machine.diff(frames, twins, keep=True)
    assert kept == payload and (twins == new).all()
    return target


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_every_dtype(machine, dtype):
    dtype = np.dtype(dtype)

    @given(st.data())
    @settings(max_examples=15, deadline=None)
    def check(data):
        random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
        size = 2 * PAGE // dtype.itemsize
        raw = data.draw(st.binary(min_size=16 * dtype.itemsize, max_size=16 * dtype.itemsize))
        few = np.array([each & 1 for each in raw], bool) if dtype.kind == "b" else np.frombuffer(raw, dtype)
        old, new = few[random.integers(0, 16, size)], few[random.integers(0, 16, size)]
        where = random.random(size) < data.draw(st.sampled_from([0.001, 0.1, 0.9, 1.0]))
        new = np.where(where, new, old)
        full = [np.zeros(2 * PAGE, np.uint8) for _ in range(2)]
        for page, values in zip(full, (old, new), strict=True):
            page[: size * dtype.itemsize] = np.frombuffer(values.astype(dtype).tobytes(), np.uint8)
        assert (_carry(machine, *full) == full[1]).all()

    check()


@given(st.integers(0, 1 << 32), st.integers(1, 64), st.integers(1, 64), st.integers(0, 63))
@settings(max_examples=150, deadline=None)
def test_runs_of_every_length_at_every_distance(machine, seed, length, gap, start):
    old = np.random.default_rng(seed).integers(0, 256, 2 * PAGE, np.uint8)
    new = old.copy()
    new[start:][np.arange(2 * PAGE - start) % (length + gap) < length] ^= 0x80
    assert (_carry(machine, old, new) == new).all()


@given(st.integers(0, 1 << 32), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_bytes_at_random(machine, seed, density):
    random = np.random.default_rng(seed)
    old = random.integers(0, 256, 2 * PAGE, np.uint8)
    new = np.where(random.random(2 * PAGE) < density, random.integers(0, 256, 2 * PAGE, np.uint8), old)
    assert (_carry(machine, old, new.astype(np.uint8)) == new).all()


@pytest.mark.parametrize("same", [126, 127, 128])
def test_the_largest_entries_fit(machine, same):
    old = np.zeros(PAGE, np.uint8)
    new = np.ones(PAGE, np.uint8)
    new[1 : 1 + 2 * same : 2] = 0
    assert (_carry(machine, old, new) == new).all()
