"""Page tables in a database: millions of rows, of which most are alike.

Owns how the table ``pages`` is kept.  What all pages of a region have in common is there once, and so is
each combination of what a node says of a page; a row is but its page, its node and the number of the
combination.  That is three times as fast to fill.  ``pages`` is a view that puts them together.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dsm.cli.sql.contents import PAGES
from dsm.wire.control import Pages
from dsm.worker.pagetable import COLUMNS

#: The base tables: a region, a combination, a row.
BASE: Final = ("page_region", "page_said", "page_row")
_OF_REGION: Final = ("region", "name", "address", "size", "model")
_SAID: Final = tuple(name for name in COLUMNS.names or () if name not in (*_OF_REGION, "node", "page"))
_SAID_TYPE: Final = np.dtype([(name, COLUMNS[name]) for name in _SAID])
_WHERE_FROM: Final = {
    **{name: f'r."{name}"' for name in _OF_REGION},
    **{name: f's."{name}"' for name in _SAID},
    **{name: f'p."{name}"' for name in ("node", "page")},
    "address": "r.address + p.page * r.size",
    "faults": "s.faults_read + s.faults_write",
}


class PageRows:
    """The table ``pages`` of a database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        #: Combinations that are in the database: their bytes -> number.
        self._numbers: dict[bytes, int] = {}
        kinds = dict(PAGES.columns)
        said = ", ".join(f'"{name}" {kinds[name]}' for name in _SAID)
        shown = ", ".join(f'{_WHERE_FROM[name]} AS "{name}"' for name in PAGES.names)
        of_region = ", ".join(f'"{name}" {kinds[name]}' for name in _OF_REGION[1:])
        database.execute(f"CREATE TABLE page_region (region INTEGER PRIMARY KEY, {of_region})")
        database.execute(f"CREATE TABLE page_said (number INTEGER PRIMARY KEY, {said})")
        database.execute("CREATE TABLE page_row (region INTEGER, page INTEGER, node INTEGER, said INTEGER)")
        # CROSS JOIN: in this order, a row of each for every page_row.
        database.execute(
            f"CREATE VIEW pages AS SELECT {shown} FROM page_row p "
            "CROSS JOIN page_said s ON s.number = p.said CROSS JOIN page_region r ON r.region = p.region"
        )

    def add(self, region: Pages, table: npt.NDArray[Any]) -> None:
        """Add the page table of a part of a region."""
        database = self._database
        database.execute("BEGIN")
        about = (region.region, region.name, region.address, region.page_size, region.consistency)
        database.execute("INSERT OR IGNORE INTO page_region VALUES (?, ?, ?, ?, ?)", about)
        for node in np.unique(table["node"]).tolist():
            part = table[table["node"] == node]
            rows = zip(part["page"].tolist(), self._said(part), strict=True)
            database.executemany(f"INSERT INTO page_row VALUES ({region.region}, ?, {node}, ?)", rows)
        database.execute("COMMIT")

    def _said(self, part: npt.NDArray[Any]) -> list[int]:
        """Return the numbers of what a node says of pages in a row; neighbours are mostly alike."""
        said = np.zeros(len(part), _SAID_TYPE)  # with the bytes between the columns, if there are any
        for name in _SAID:
            said[name] = part[name]
        raw = said.view(np.uint8).reshape(len(said), -1)
        starts = np.flatnonzero(np.concatenate(([True], (raw[1:] != raw[:-1]).any(axis=1))))
        counts = np.diff(starts, append=len(said))
        repeated: list[int] = np.repeat(self._numbered(said[starts]), counts).tolist()
        return repeated

    def _numbered(self, said: npt.NDArray[Any]) -> list[int]:
        """Return the number of each combination; new ones go into the database."""
        size, data = said.itemsize, said.tobytes()
        numbers, new = [], []
        for at in range(len(said)):
            key = data[at * size : (at + 1) * size]
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self._numbers)
                new.append(at)
            numbers.append(number)
        first = len(self._numbers) - len(new)
        marks = ", ".join("?" * len(_SAID))
        rows = ((number, *row) for number, row in enumerate(said[new].tolist(), first))
        self._database.executemany(f"INSERT INTO page_said VALUES (?, {marks})", rows)
        return numbers
