"""Size classes: every size has one, little is wasted, nothing is left over in a span."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import UsageError
from dsm.memory.buddy import rounded
from dsm.memory.classes import (
    BATCHES,
    CAPACITIES,
    CLASSES,
    MAX_BATCH,
    MAX_SMALL_BYTES,
    SIZES,
    SPAN_OBJECTS,
    batch_size,
    class_of,
    class_size,
    span_bytes,
)


def test_each_size_has_the_smallest_class_that_holds_it():
    expected = 0
    for nbytes in range(MAX_SMALL_BYTES + 1):
        if nbytes > SIZES[expected]:
            expected += 1
        if class_of(nbytes) != expected:
            pytest.fail(f"{nbytes} bytes: class {class_of(nbytes)}, not {expected}")


def test_classes_go_in_steps_of_16_bytes_and_then_waste_at_most_an_eighth():
    assert SIZES[:8] == tuple(range(16, 129, 16))
    for below, size in pairwise(SIZES[7:]):
        assert (size - (below + 1)) / size <= 0.125
        assert size % 16 == 0
    assert SIZES[-1] == MAX_SMALL_BYTES


@pytest.mark.parametrize("cls", range(CLASSES))
def test_a_span_is_a_size_that_a_buddy_cuts_exactly(cls):
    assert rounded(span_bytes(cls)) == span_bytes(cls) == SIZES[cls] * SPAN_OBJECTS[cls]
    assert 2 <= batch_size(cls) == BATCHES[cls] <= min(MAX_BATCH, SPAN_OBJECTS[cls])
    assert BATCHES[cls] < CAPACITIES[cls], "what comes in one batch is not at once too much"


@given(nbytes=st.integers(0, MAX_SMALL_BYTES), power=st.integers(0, 18))
def test_an_aligned_class_is_the_smallest_of_those_that_are_multiples(nbytes, power):
    align = 1 << power
    suitable = [size for size in SIZES if size >= nbytes and size % align == 0]
    assert class_size(class_of(nbytes, align)) == suitable[0]


@pytest.mark.parametrize("nbytes", [-1, MAX_SMALL_BYTES + 1, 1 << 70])
def test_a_size_without_a_class(nbytes):
    with pytest.raises(UsageError, match=f"{nbytes} bytes have no size class"):
        class_of(nbytes)


@pytest.mark.parametrize("align", [24, 2 * MAX_SMALL_BYTES])
def test_an_alignment_without_a_class(align):
    with pytest.raises(UsageError, match=f"align={align} has no size class"):
        class_of(8, align)
