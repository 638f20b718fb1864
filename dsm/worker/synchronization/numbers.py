"""Numbers that callers pass to synchronization objects.

Owns the checks, and how a signed number becomes the word that travels.
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

from dsm.errors import UsageError
from dsm.wire.calls import WORD_MASK


def number_of(value: SupportsIndex, what: str, lowest: int, highest: int) -> int:
    """Return an argument that counts something; `UsageError` when it does not."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not lowest <= number <= highest:
        raise UsageError(f"{what} is {value!r}; it must be an integer from {lowest} to {highest}")
    return number


def word(value: SupportsIndex, what: str) -> int:
    """Return a signed 64-bit `value` as the unsigned word that travels; `UsageError` outside."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{what} is {value!r}; an atomic holds integers") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise UsageError(f"{what} is {number}; an atomic holds integers from -2**63 to 2**63 - 1")
    return number & WORD_MASK
