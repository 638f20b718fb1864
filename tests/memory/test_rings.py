"""The ring of blocks on their way home: in order, bounded, and not believed when somebody wrote over it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm._native import caches
from dsm.errors import UsageError
from dsm.memory.rings import RING_SLOTS, RING_WORDS, Ring, entry

SIZES = st.integers(0, 2**18)


def _words():
    return memoryview(bytearray(8 * RING_WORDS)).cast("Q")


@pytest.mark.parametrize("native", [False, True])
@given(
    st.lists(
        st.one_of(st.none(), st.tuples(st.integers(0, 63), st.integers(1, 2**48 - 1), SIZES)), max_size=600
    )
)
def test_what_goes_in_comes_out_once(native, steps):
    words = _words()
    ring, other = Ring(words), Ring(words)  # the reader's and the writer's
    waiting = []
    for step in steps:
        if step is None:
            found = other.take()
            assert {node: [block for n, *block in waiting if n == node] for node, *_ in waiting} == {
                node: [list(block) for block in blocks] for node, blocks in found.items()
            }
            waiting = []
        else:
            place = entry(*step[:2])
            kept = caches.put_away(words, RING_SLOTS, place, step[2]) if native else ring.put(*step)
            assert kept == (len(waiting) < RING_SLOTS)
            if len(waiting) < RING_SLOTS:
                waiting.append(step)
        assert len(ring) == len(waiting)


def test_it_goes_round():
    ring = Ring(_words())
    for turn in range(10 * RING_SLOTS):
        assert ring.put(3, 16 * turn + 16, turn)
        assert ring.take() == {3: [(16 * turn + 16, turn)]}
    assert ring.take() == {}


def test_a_damaged_ring_is_not_believed():
    words = _words()
    ring = Ring(words)
    for first, end in ((5, 4), (0, RING_SLOTS + 1), (0, 2**64 - 1)):
        words[0], words[1] = first, end
        with pytest.raises(UsageError, match="the ring of a worker is damaged"):
            ring.take()


def test_what_is_no_buffer_for_a_ring():
    for words in (memoryview(bytearray(8 * RING_WORDS)), memoryview(bytearray(80)).cast("Q")):
        with pytest.raises(UsageError, match="a ring needs"):
            Ring(words)
