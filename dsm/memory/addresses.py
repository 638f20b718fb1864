"""Handing out the cluster's range of addresses to regions.

Owns what of the range has been given away.  Pure: nothing is mapped here.

Regions lie one after the other, each on a multiple of `ADDRESS_ALIGNMENT`, with one free unit before
the first, between any two and behind the last: running off the end of an array traps instead of
reaching its neighbour.  Addresses are never given out again: a worker that still holds an array of a
destroyed region must meet an error there, not somebody else's data.
"""

from __future__ import annotations

from dsm.errors import InternalError, LimitError, UsageError
from dsm.limits import ADDRESS_ALIGNMENT, ADDRESS_HIGH, ADDRESS_LOW

#: Free bytes before each region, and behind the last one.
GUARD_BYTES = ADDRESS_ALIGNMENT


def largest_region(low: int, high: int) -> int:
    """Return the bytes of the largest region that an empty range of addresses has room for."""
    return max(0, high - low - 2 * GUARD_BYTES)


class AddressRange:
    """A range of addresses from which regions are cut, from its low end up.

    Parameters
    ----------
    low, high : int
        First address, and the one behind the last; multiples of `ADDRESS_ALIGNMENT`.
    used : int, default `low`
        Everything below is taken (a store that was restored).

    Raises
    ------
    UsageError
        The bounds are no such range.
    """

    def __init__(self, low: int = ADDRESS_LOW, high: int = ADDRESS_HIGH, used: int | None = None) -> None:
        if low % ADDRESS_ALIGNMENT or high % ADDRESS_ALIGNMENT or not 0 < low < high < 1 << 63:
            raise UsageError(
                f"DSM_ADDRESS_LOW={low:#x} and DSM_ADDRESS_HIGH={high:#x} are no address range: both must be "
                f"multiples of {ADDRESS_ALIGNMENT:#x}, the first below the second "
                f"(the default is {ADDRESS_LOW:#x} to {ADDRESS_HIGH:#x})"
            )
        self.low = low
        self.high = high
        #: End of the last region, rounded up; `low` when there is none.
        self.used = low if used is None else used

    @property
    def largest(self) -> int:
        """Bytes of the largest region that still fits."""
        return largest_region(self.used, self.high)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes that nobody else gets.

        Raises
        ------
        LimitError
            They do not fit any more; nothing has been taken.
        """
        if size < 1:
            raise InternalError(f"{size} bytes of addresses were asked for")
        if size > self.largest:
            raise LimitError(
                f"{size} bytes of addresses are needed and at most {self.largest} are left of the range "
                f"{self.low:#x} to {self.high:#x}: {self.used - self.low} bytes belong to regions, also to "
                "destroyed ones, whose addresses are not used again; start a new cluster, or set "
                "DSM_ADDRESS_LOW and DSM_ADDRESS_HIGH to a wider range on every node"
            )
        address = self.used + GUARD_BYTES
        self.used = address + -(-size // ADDRESS_ALIGNMENT) * ADDRESS_ALIGNMENT
        return address
