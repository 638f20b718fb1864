"""Guards of debug blocks: what is damaged is found, and said exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import UsageError
from dsm.memory.guards import (
    BACK_BYTES,
    FREED,
    NEW,
    Damage,
    Harm,
    back,
    damage,
    freed_damage,
    front,
    front_bytes,
    guarded_bytes,
    read_front,
)

sizes = st.integers(0, 300)
aligns = st.sampled_from([1, 16, 32, 64, 4096])


def _block(nbytes, align, freed=False):
    fill = bytes([FREED if freed else NEW])
    return bytearray(front(nbytes, align, freed=freed) + fill * nbytes + back())


@given(nbytes=sizes, align=aligns, freed=st.booleans())
def test_a_block_as_it_was_made_is_sound(nbytes, align, freed):
    block = _block(nbytes, align, freed)
    assert len(block) == guarded_bytes(nbytes, align)
    assert front_bytes(align) % align == 0, "the payload is aligned when the block is"
    assert damage(block, nbytes, align, freed=freed) == []
    assert read_front(block[: front_bytes(align)]) == (nbytes, align, freed)


@given(nbytes=sizes, align=aligns, data=st.data())
def test_any_byte_of_the_payload_may_be_written_while_the_block_is_live(nbytes, align, data):
    block = _block(nbytes, align)
    start = front_bytes(align)
    block[start : start + nbytes] = data.draw(st.binary(min_size=nbytes, max_size=nbytes))
    assert damage(block, nbytes, align) == []


@given(nbytes=sizes, align=aligns, freed=st.booleans(), data=st.data())
def test_each_byte_that_changes_is_found(nbytes, align, freed, data):
    """Against a comparison of all bytes, one by one."""
    before = _block(nbytes, align, freed)
    block = bytearray(before)
    for place in data.draw(st.lists(st.integers(0, len(block) - 1), max_size=6)):
        block[place] ^= data.draw(st.integers(0, 255))
    start = front_bytes(align)
    expected = []
    for harm, low, high in (
        (Harm.UNDERRUN, 0, start),
        (Harm.USE_AFTER_FREE, start, start + nbytes if freed else start),
        (Harm.OVERRUN, start + nbytes, len(block)),
    ):
        wrong = [place for place in range(low, high) if block[place] != before[place]]
        if wrong:
            found = bytes(block[wrong[0] : min(wrong[0] + 16, high)])
            expected.append(Damage(harm, wrong[0] - start, len(wrong), found))
    assert damage(block, nbytes, align, freed=freed) == expected


def test_one_byte_too_many_is_an_overrun_right_behind_the_last_one():
    block = _block(13, 16)
    block[32 + 13] = 7
    (found,) = damage(block, 13, 16)
    assert str(found).startswith("overrun: 1 byte differs at offset 13 of the block, where 07 fb")


def test_the_front_of_a_freed_block_tells_a_double_free():
    assert read_front(front(100, 64, freed=True)) == (100, 64, True)


@given(place=st.integers(0, 31), change=st.integers(1, 255))
def test_a_damaged_front_is_not_believed(place, change):
    head = bytearray(front(100, 16))
    head[place] ^= change
    assert read_front(head) is None


def test_what_is_too_short_is_no_front():
    assert read_front(front(1, 16)[1:]) is None
    assert read_front(b"") is None


def test_a_large_freed_payload_is_judged_across_pieces():
    payload = bytearray([FREED]) * (3 << 20)
    assert freed_damage(payload) is None
    for place in ((1 << 20) - 1, 1 << 20, (3 << 20) - 1):
        payload[place] = 0
    assert freed_damage(payload, 4096) == Damage(
        Harm.USE_AFTER_FREE, 4096 + (1 << 20) - 1, 3, bytes([0, 0]) + bytes([FREED]) * 14
    )


@pytest.mark.parametrize("length", [0, 31, 32 + BACK_BYTES, 32 + 10 + BACK_BYTES + 1])
def test_bytes_that_are_no_guarded_block(length):
    with pytest.raises(UsageError, match=f"{length} bytes are no guarded block of 10 bytes"):
        damage(bytes(length), 10, 16)
