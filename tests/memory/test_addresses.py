"""Addresses of regions: aligned, apart, inside the range, never given out twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import InternalError, LimitError, UsageError
from dsm.limits import ADDRESS_ALIGNMENT, ADDRESS_HIGH, ADDRESS_LOW, MAX_REGION_BYTES
from dsm.memory.addresses import GUARD_BYTES, AddressRange

UNIT = ADDRESS_ALIGNMENT


@given(sizes=st.lists(st.integers(1, 10 * UNIT), max_size=30), units=st.integers(1, 100))
def test_regions_are_aligned_apart_and_inside(sizes, units):
    addresses = AddressRange(ADDRESS_LOW, ADDRESS_LOW + units * UNIT)
    taken = []
    for size in sizes:
        largest = addresses.largest
        try:
            address = addresses.allocate(size)
        except LimitError:
            assert size > largest
            assert addresses.largest == largest, "a refusal takes nothing"
            continue
        assert size <= largest
        assert address % UNIT == 0
        taken.append((address, address + size))
    edges = [(0, addresses.low), *taken, (addresses.high, 0)]
    for (_, end), (start, _) in pairwise(edges):
        assert start - end >= GUARD_BYTES


def test_the_largest_region_fits_exactly_into_the_upper_half_of_the_range():
    """A cluster begins somewhere in the lower half: the largest region fits all the same."""
    middle = (ADDRESS_LOW + ADDRESS_HIGH) // 2
    addresses = AddressRange(middle, ADDRESS_HIGH)
    assert addresses.largest == MAX_REGION_BYTES
    address = addresses.allocate(MAX_REGION_BYTES)
    assert address == middle + GUARD_BYTES
    assert address + MAX_REGION_BYTES == ADDRESS_HIGH - GUARD_BYTES


def test_exhaustion_names_the_figures_and_the_remedy():
    addresses = AddressRange(ADDRESS_LOW, ADDRESS_LOW + 5 * UNIT)
    addresses.allocate(UNIT)
    with pytest.raises(LimitError, match=f"{UNIT + 1} bytes .* at most {UNIT} are left .*DSM_ADDRESS_LOW"):
        addresses.allocate(UNIT + 1)
    with pytest.raises(LimitError, match="at most 0 are left"):
        full = AddressRange(ADDRESS_LOW, ADDRESS_LOW + UNIT)
        full.allocate(1)


def test_a_restored_range_goes_on_where_it_was():
    first = AddressRange()
    first.allocate(3 * UNIT + 1)
    assert AddressRange(used=first.used).allocate(1) == first.allocate(1)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, UNIT),
        (UNIT, UNIT),
        (2 * UNIT, UNIT),
        (UNIT + 1, 4 * UNIT),
        (UNIT, 4 * UNIT + 4096),
        (UNIT, 1 << 64),
    ],
)
def test_a_wrong_range_is_refused(low, high):
    with pytest.raises(UsageError, match=rf"DSM_ADDRESS_LOW={low:#x} and DSM_ADDRESS_HIGH={high:#x}"):
        AddressRange(low, high)


def test_nothing_is_no_region():
    with pytest.raises(InternalError):
        AddressRange().allocate(0)
