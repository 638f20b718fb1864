"""Diffs against a plain reference: what changed, in the shortest encoding, and not a byte more."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diff_reference as reference
from diff_machines import address, aligned
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
        self.frames = aligned(pages * page_size)
        self.twins = aligned(pages * page_size)
        self.frames[:] = np.random.default_rng(seed).integers(0, 256, self.frames.size, np.uint8)
        self.twins[:] = self.frames

    def diff(self, *runs, keep=False, room=1 << 22):
        """Return the payloads, and the runs of changed pages."""
        comparison = diffs.Diff(
            address(self.frames), address(self.twins), self.pages, self.page_size, runs_array(*runs), keep
        )
        payloads = []
        while not comparison.done:
            buffer = bytearray(room)
            payloads.append(bytes(buffer[: comparison.fill(buffer)]))
        return [data for data in payloads if data], comparison.changed.tolist()

    def expected(self, *runs):
        return reference.payload(self.frames, self.twins, self.page_size, runs)

    def patch(self, frames, payload, runs=None):
        diffs.Target(address(frames), -1, self.pages, self.page_size).patch(payload, runs)

    def named(self, payload):
        return diffs.named(self.pages, self.page_size, payload).tolist()


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


def _runs_body(*runs, data=None, count=None):
    size = sum(length for _, length in runs)
    pairs = b"".join(struct.pack("<HH", *run) for run in runs)
    return (
        struct.pack("<H", len(runs) if count is None else count)
        + pairs
        + (bytes(size) if data is None else data)
    )


def _mask_body(bits, data):
    mask = np.zeros(PAGE, bool)
    mask[bits] = True
    return np.packbits(mask, bitorder="little").tobytes() + data


ENTRY = reference.entry
GOOD = ENTRY(1, reference.RUNS, _runs_body((0, 4)))
MALFORMED = {
    "nothing": b"",
    "half a header": bytes(4),
    "zeros": bytes(8),
    "encoding 0": ENTRY(0, 0, bytes(8)),
    "encoding 4": ENTRY(0, 4, bytes(4096)),
    "a block behind the end": ENTRY(4, reference.RUNS, _runs_body((0, 4))),
    "the last block that there can be": ENTRY(0xFFFFFFFF, reference.RUNS, _runs_body((0, 4))),
    "a block twice": GOOD + GOOD,
    "blocks that descend": ENTRY(2, reference.FULL, bytes(4096)) + GOOD,
    "a page too short": ENTRY(0, reference.FULL, bytes(4095)),
    "a page too long": ENTRY(0, reference.FULL, bytes(4097)),
    "runs without a count": ENTRY(0, reference.RUNS, b""),
    "no runs": ENTRY(0, reference.RUNS, _runs_body()),
    "more runs than there are": ENTRY(0, reference.RUNS, _runs_body((0, 4), count=2)),
    "65535 runs": ENTRY(0, reference.RUNS, _runs_body((0, 4), count=65535)),
    "an empty run": ENTRY(0, reference.RUNS, _runs_body((8, 0))),
    "a run over the end": ENTRY(0, reference.RUNS, _runs_body((4093, 4))),
    "a run far behind the end": ENTRY(0, reference.RUNS, _runs_body((65535, 4))),
    "a run of 65535 bytes": ENTRY(0, reference.RUNS, _runs_body((0, 65535), data=bytes(100))),
    "runs that overlap": ENTRY(0, reference.RUNS, _runs_body((0, 4), (3, 2))),
    "runs that touch": ENTRY(0, reference.RUNS, _runs_body((0, 4), (4, 2))),
    "runs that descend": ENTRY(0, reference.RUNS, _runs_body((10, 4), (0, 2))),
    "runs with a byte too few": ENTRY(0, reference.RUNS, _runs_body((0, 4), data=bytes(3))),
    "runs with a byte too many": ENTRY(0, reference.RUNS, _runs_body((0, 4), data=bytes(5))),
    "half a mask": ENTRY(0, reference.MASK, bytes(256)),
    "an empty mask": ENTRY(0, reference.MASK, bytes(512)),
    "a mask with a byte too few": ENTRY(0, reference.MASK, _mask_body([1, 2], bytes(1))),
    "a mask with a byte too many": ENTRY(0, reference.MASK, _mask_body([1, 2], bytes(3))),
    "a body behind the end": struct.pack("<IHH", 0, reference.FULL, 4096),
    "padding that says something": GOOD[:-1] + b"\1",
    "padding that is missing": GOOD[:-2],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_payloads_are_refused_and_store_nothing(what):
    assert len(GOOD) == 24
    space = Space(pages=4)
    before = space.frames.copy()
    wrong = MALFORMED[what]
    good = ENTRY(0, reference.FULL, bytes(4096))
    # Alone, and behind an entry that could be stored.
    for payload in (wrong, good + wrong) if wrong else (wrong,):
        for use in (
            lambda data: space.patch(space.frames, data),
            lambda data: space.patch(space.frames, data, runs_array((1, 1))),
            space.named,
            lambda data: diffs.select(4, PAGE, data, runs_array((0, 4))),
        ):
            with pytest.raises(WireError, match="not well formed"):
                use(payload)
        assert (space.frames == before).all()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_done_to_a_payload_it_is_refused_or_stays_inside(data):
    space = Space(pages=4)
    space.frames[3 : 2 * PAGE : 50] ^= 1
    space.frames[2 * PAGE : 3 * PAGE : 2] ^= 1
    [payload], _ = space.diff((0, 4))
    broken = bytearray(payload)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(payload) - 1), st.integers(0, 255)), max_size=4)
    ):
        broken[at] = value
    guarded = aligned(6 * PAGE)
    try:
        space.patch(guarded[PAGE : 5 * PAGE], bytes(broken))
    except WireError:
        assert not guarded.any()
        with pytest.raises(WireError):
            space.named(bytes(broken))
    else:
        pages = _pages(space.named(bytes(broken)))
        assert pages == sorted(set(pages)) and set(pages) <= set(range(4))
        untouched = np.ones(6, bool)
        untouched[[page + 1 for page in pages]] = False
        assert not guarded.reshape(6, PAGE)[untouched].any()


@pytest.mark.parametrize("alignment", range(8))
def test_a_payload_may_lie_anywhere(alignment):
    space = Space(pages=4)
    space.frames[::8] ^= 1
    space.frames[:PAGE] ^= 2
    [payload], _ = space.diff((0, 4))
    target = space.twins.copy()
    memory = bytearray(alignment) + payload
    space.patch(target, memoryview(memory)[alignment:])
    assert (target == space.frames).all()


@pytest.mark.parametrize("shift", range(10))
def test_pages_of_every_size(shift):
    space = Space(pages=2, page_size=PAGE << shift)
    space.frames[(PAGE << shift) - 3 :: PAGE // 2 + 1] ^= 1
    check(space, (0, 2))
    assert space.diff((1, 1))[1] == [[1, 1]]


def test_runs_outside_the_region_are_refused():
    space = Space(pages=4)
    for runs in ([(3, 2)], [(0, 1), (4, 1)], [(-1, 1)], [(2, -1)]):
        with pytest.raises(OSError, match="Invalid argument"):
            space.diff(*runs, room=ENTRY_MOST)
