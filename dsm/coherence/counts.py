"""How often something happened to each page of a region.

Owns one byte a page, which costs no memory until something happens near it, and a dictionary of what the
few pages counted beyond 255 that are hot.  When too many are, the count of a further one stays at 255.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_FULL: Final = 255
#: Each byte plus 1, for `bytes.translate`.
_NEXT: Final = bytes((byte + 1) % 256 for byte in range(256))
#: Pages of a region that are counted beyond 255.
MAX_HOT: Final = 1 << 13
#: No count is read as more: it fits 32 bits.
MAX_COUNT: Final = (1 << 32) - 1


class PageCounts:
    """Counts of one kind for the pages of one region, from 0."""

    __slots__ = ("_high", "_low", "_lows")

    def __init__(self, pages: int) -> None:
        self._lows = np.zeros(pages, np.uint8)
        self._low = memoryview(self._lows.data)
        #: page -> how often its byte has run over.
        self._high: dict[int, int] = {}

    def one(self, page: int) -> None:
        """It happened to `page` once more."""
        low = self._low
        value = low[page]
        if value != _FULL:
            low[page] = value + 1
        else:
            self._carry(page)

    def run(self, page: int, count: int) -> None:
        """It happened to each of these pages once more."""
        if count == 1:
            self.one(page)
            return
        before = bytes(self._low[page : page + count])
        self._low[page : page + count] = before.translate(_NEXT)
        over = before.find(_FULL)
        while over >= 0:
            self._carry(page + over)
            over = before.find(_FULL, over + 1)

    def each(self, pages: npt.NDArray[np.int64]) -> None:
        """It happened to each of `pages`, no two of which are alike, once more."""
        lows = self._lows[pages]
        lows += 1
        self._lows[pages] = lows
        if not lows.all():
            for over in pages[lows == 0].tolist():
                self._carry(over)

    def _carry(self, page: int) -> None:
        """The byte of `page` runs over."""
        high = self._high
        if page in high or len(high) < MAX_HOT:
            high[page] = high.get(page, 0) + 1
            self._low[page] = 0
        else:
            self._low[page] = _FULL

    def read(self, page: int, count: int) -> npt.NDArray[np.uint32]:
        """Return the counts of a range."""
        counts = self._lows[page : page + count].astype(np.uint32)
        if self._high:
            hot = np.fromiter(self._high, np.int64, len(self._high))
            for each in hot[(hot >= page) & (hot < page + count)].tolist():
                whole = self._high[each] * (_FULL + 1) + self._low[each]
                counts[each - page] = min(MAX_COUNT, whole)
        return counts
