"""The shared cells: three words each, several in a page, pages with different directory nodes.

Pure.  A cell holds (writer, counter, checksum).  Cells of one page belong to different locks, those of one
lock lie in different pages, and the last cell of each page reaches into the next one.
"""

from __future__ import annotations

#: Pages that hold cells: one in each MiB, the unit in which directory nodes are dealt.
PAGES = 6
CELLS_PER_PAGE = 4
CELLS = PAGES * CELLS_PER_PAGE
GROUPS = PAGES
_APART_BYTES = 1 << 20
_WORD_BYTES = 8

#: Writer, counter, checksum.
Value = tuple[int, int, int]

_MASK = (1 << 62) - 1


def first_word(cell: int, page_size: int) -> int:
    """Return the place of a cell's first word in the array."""
    page, place = divmod(cell, CELLS_PER_PAGE)
    start = page * max(_APART_BYTES, page_size) // _WORD_BYTES
    # Places 0 and 1 share a cache line, 2 lies apart, 3 begins two words before the page's end.
    return start + (0, 4, 100, page_size // _WORD_BYTES - 2)[place]


def words(page_size: int) -> int:
    """Return the length of the shared array."""
    return (PAGES + 1) * max(_APART_BYTES, page_size) // _WORD_BYTES


def group_of(cell: int) -> int:
    """Return the number of the lock that guards a cell."""
    page, place = divmod(cell, CELLS_PER_PAGE)
    return (page + place) % GROUPS


MEMBERS = tuple(tuple(cell for cell in range(CELLS) if group_of(cell) == group) for group in range(GROUPS))


def checksum(cell: int, writer: int, counter: int) -> int:
    """Return what belongs to a writer and a counter; 0 for a cell that was never written."""
    if writer == 0 and counter == 0:
        return 0
    mixed = (writer * 0x9E3779B97F4A7C15 + counter * 0xC2B2AE3D27D4EB4F + cell * 0x165667B19E3779F9) & _MASK
    return (mixed ^ mixed >> 29) | 1 << 61


def is_whole(cell: int, value: Value) -> bool:
    """Return whether the three words belong together."""
    return value[2] == checksum(cell, value[0], value[1])
