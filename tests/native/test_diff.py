"""Diffs against a plain reference: what changed, in the shortest encoding, and not a byte more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diff_reference as reference
from dsm._native import diffs
from dsm._native.diffs import ENTRY_MOST
from dsm.errors import WireError

PAGE = 4096


def runs_array(*runs):
    return np.array(runs, np.int64).reshape(-1, 2)


class Space:
    """Frames and twins of a small region, in ordinary memory."""

    def __init__(self, pages=8, page_size=PAGE, seed=0):
        self.pages, self.page_size = pages, page_size
        self.frames = _aligned(pages * page_size)
        self.twins = _aligned(pages * page_size)
        self.frames[:] = np.random.default_rng(seed).integers(0, 256, self.frames.size, np.uint8)
        self.twins[:] = self.frames

    def diff(self, *runs, keep=False, room=1 << 22):
        """Return the payloads, and the runs of changed pages."""
        comparison = diffs.Diff(
            _address(self.frames), _address(self.twins), self.pages, self.page_size, runs_array(*runs), keep
        )
        payloads = []
        while not comparison.done:
            buffer = bytearray(room)
            payloads.append(bytes(buffer[: comparison.fill(buffer)]))
        return [data for data in payloads if data], comparison.changed.tolist()

    def expected(self, *runs):
        return reference.payload(self.frames, self.twins, self.page_size, runs)

    def patch(self, frames, payload, runs=None):
        diffs.patch(_address(frames), self.pages, self.page_size, payload, runs)

    def named(self, payload):
        return diffs.named(self.pages, self.page_size, payload).tolist()


def _aligned(size):
    memory = np.zeros(size + PAGE, np.uint8)
    return memory[-memory.ctypes.data % PAGE :][:size]


def _address(array):
    return diffs.address_of(array.data)


def check(space, *runs):
    """Diff, compare with the reference, patch a copy of the twins, and return the encodings."""
    before, sent = space.twins.copy(), space.frames.copy()
    expected = space.expected(*runs)
    payloads, changed = space.diff(*runs)
    assert b"".join(payloads) == expected
    assert (space.twins == before).all() and (space.frames == sent).all()
    target = before.copy()
    named = []
    for payload in payloads:
        space.patch(target, payload)
        named += space.named(payload)
    inside = np.zeros(space.pages, bool)
    for page, count in runs:
        inside[page : page + count] = True
    inside = np.repeat(inside, space.page_size)
    assert (target == np.where(inside, sent, before)).all()
    differing = ((before != sent) & inside).reshape(space.pages, -1).any(axis=1)
    assert _pages(changed) == _pages(named) == np.flatnonzero(differing).tolist()
    return [encoding for _, encoding, _ in reference.parse(expected)]


def _pages(runs):
    return [page for first, count in runs for page in range(first, first + count)]


def test_nothing_changed_says_nothing():
    assert Space().diff((0, 8)) == ([], [])


@pytest.mark.parametrize(
    ("step", "encoding"),
    [(1, reference.FULL)]
    + [(step, reference.MASK) for step in (2, 8, 31)]
    + [(step, reference.RUNS) for step in (33, 4096)],
)
def test_every_so_many_bytes(step, encoding):
    space = Space()
    space.frames[::step] ^= 0xFF
    assert check(space, (0, 8)) == [encoding] * 8


def test_up_to_127_runs_are_listed_and_128_are_a_mask():
    for count, encoding in [(127, reference.RUNS), (128, reference.MASK)]:
        space = Space(pages=1)
        space.frames[5 : 5 + 30 * count : 30] ^= 1
        assert check(space, (0, 1)) == [encoding]


def test_runs_do_not_join_across_pages_or_words():
    space = Space(pages=3)
    space.frames[PAGE - 3 : PAGE + 67] ^= 7
    space.frames[3 * PAGE - 1] ^= 7
    check(space, (0, 3))
    [payload], changed = space.diff((0, 3))
    assert [list(values) for _, _, values in reference.parse(payload)] == [
        [4093, 4094, 4095], list(range(67)), [4095],
    ]  # fmt: skip
    assert changed == [[0, 3]]


def test_only_the_pages_asked_for():
    space = Space()
    space.frames[:] ^= 1
    check(space, (1, 2), (5, 1), (7, 1))
    assert space.diff((1, 2), (5, 1), (7, 1))[1] == [[1, 2], [5, 1], [7, 1]]


PATTERNS = st.lists(
    st.tuples(
        st.integers(0, 4 * PAGE - 1), st.integers(1, 3 * PAGE), st.integers(1, 70), st.integers(1, 255)
    ),
    max_size=12,
)


@given(PATTERNS, st.integers(0, 1 << 32), st.sampled_from([0, 1, 2]))
@settings(max_examples=150, deadline=None)
def test_any_changes(patterns, seed, shift):
    space = Space(pages=4 >> shift, page_size=PAGE << shift, seed=seed)
    for start, length, step, value in patterns:
        space.frames[start : start + length : step] ^= value
    check(space, (0, space.pages))


@given(st.floats(0, 1), st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_any_density(density, seed):
    space = Space(pages=2, seed=seed)
    random = np.random.default_rng(seed)
    space.frames[random.random(space.frames.size) < density] ^= 0x55
    check(space, (0, 2))


def test_keep_makes_what_was_compared_the_twin():
    space = Space()
    space.frames[100::900] ^= 3
    [payload], _ = space.diff((0, 8), keep=True)
    assert payload and (space.twins == space.frames).all()
    assert space.diff((0, 8), keep=True) == ([], [])


@pytest.mark.parametrize("room", [ENTRY_MOST, ENTRY_MOST + 1, 2 * ENTRY_MOST - 1, 20000])
@pytest.mark.parametrize("keep", [False, True])
def test_a_full_buffer_loses_nothing(room, keep):
    space = Space(pages=4, page_size=4 * PAGE)
    space.frames[::3] ^= 1
    space.frames[5 * PAGE : 8 * PAGE] ^= 6
    before, expected = space.twins.copy(), space.expected((0, 1), (2, 2))
    payloads, changed = space.diff((0, 1), (2, 2), keep=keep, room=room)
    assert len(payloads) > 1 and all(len(data) <= room for data in payloads)
    assert b"".join(payloads) == expected and changed == [[0, 1], [2, 2]]
    for payload in payloads:
        space.patch(before, payload)
    assert (before[8 * PAGE :] == space.frames[8 * PAGE :]).all()


def test_a_part_of_a_payload_is_stored_or_forwarded():
    space = Space(pages=4, page_size=2 * PAGE)
    space.frames[::100] ^= 1
    target = space.twins.copy()
    [payload], _ = space.diff((0, 4))
    chosen = runs_array((0, 1), (2, 1))
    space.patch(target, payload, chosen)
    expected = space.twins.reshape(4, -1).copy()
    expected[[0, 2]] = space.frames.reshape(4, -1)[[0, 2]]
    assert (target.reshape(4, -1) == expected).all()
    part = diffs.select(4, space.page_size, payload, chosen)
    assert space.named(part) == [[0, 1], [2, 1]]
    assert part == space.expected((0, 1), (2, 1))
    assert diffs.select(4, space.page_size, part, runs_array((1, 1), (3, 1))) == b""


def test_every_truncation_is_refused_and_stores_nothing():
    space = Space(pages=3)
    space.frames[:PAGE] ^= 1
    space.frames[PAGE + 7 : PAGE + 30] ^= 1
    space.frames[2 * PAGE :: 8] ^= 1
    target = space.twins.copy()
    [payload], _ = space.diff((0, 3))
    ends, at = set(), 0
    for block, encoding, values in reference.parse(payload):
        body = reference.bodies(space.frames[block * PAGE :][:PAGE], space.twins[block * PAGE :][:PAGE])
        at += len(reference.entry(block, encoding, body[encoding]))
        ends.add(at)
        assert values
    assert len(ends) == 3
    for size in set(range(len(payload))) - ends:
        for use in (lambda data: space.patch(target, data), space.named):
            with pytest.raises(WireError):
                use(payload[:size])
    assert (target == space.twins).all()
