"""Zeroing the memory of ended leases, a piece at a time.

Owns how far it has come with the first of them.  Which leases those are is the book's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.limits import LEASE_CLEAN_BYTES
from dsm.server.memory import GIVE_BACK_BYTES

if TYPE_CHECKING:
    from dsm.server.book import Book
    from dsm.server.memory import Memory

#: What cleaning a lease costs at least, in bytes of the same time.
_LEAST_BYTES = 16 * 1024


class Cleaner:
    """Zeroes what nobody uses any more."""

    def __init__(self, book: Book, memory: Memory) -> None:
        self._book = book
        self._memory = memory
        #: Offset up to which the first ended lease is zeroed.
        self._at = 0

    def clean(self) -> bool:
        """Zero one round's worth; return whether memory has become free by that."""
        budget = LEASE_CLEAN_BYTES
        book, memory = self._book, self._memory
        freed = False
        while budget > 0 and (holding := book.next_to_clean()) is not None:
            low = max(holding.low, self._at)
            part = min(max(0, holding.high - low), budget)
            if part:
                give_back = holding.high - holding.low > GIVE_BACK_BYTES
                memory.zero(holding.address - memory.address + low, part, give_back)
            budget -= max(part, _LEAST_BYTES)
            if low + part >= holding.high:
                self._at = 0
                book.cleaned(holding)
                freed = True
            else:
                self._at = low + part
        return freed
