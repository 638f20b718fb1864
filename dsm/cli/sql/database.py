"""An SQLite database in memory that can be asked, and nothing else.

Owns what a question may do: read these tables, for a time.  It cannot open, attach or write a file, load an
extension or change anything, whatever its text says.
"""

from __future__ import annotations

import signal
import sqlite3
import textwrap
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, Final

from dsm.cli.sql.contents import PAGES, Table
from dsm.cli.sql.pagerows import BASE, PageRows
from dsm.errors import DSMError

#: Instructions of SQLite's machine between two looks at the clock: well below a millisecond.
_LOOK: Final = 5000
#: Bytes of one value, and of everything that SQLite may take while it answers.
_VALUE_BYTES: Final = 16 << 20
_HEAP_BYTES: Final = 4 << 30
_READING: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)


class QuestionError(DSMError):
    """The question is wrong, took too long, or needs too much."""


class Database:
    """Tables of a cluster, empty at first.

    Parameters
    ----------
    tables
        Those that it has.
    kinds
        Kinds of synchronization objects: each gets a table ``<kind>s``.
    """

    def __init__(self, tables: Sequence[Table], kinds: Sequence[str] = ()) -> None:
        self._sqlite = sqlite3.connect(":memory:", isolation_level=None)
        self._sqlite.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES)
        self._sqlite.execute("PRAGMA temp_store = MEMORY")
        self._sqlite.execute(f"PRAGMA hard_heap_limit = {_HEAP_BYTES}")
        #: Takes page tables, for the table ``pages``.
        self.pages = PageRows(self._sqlite)
        for table in tables:
            if table is PAGES:
                continue
            columns = ", ".join(f'"{name}" {kind}' for name, kind in table.columns)
            self._sqlite.execute(f'CREATE TABLE "{table.name}" ({columns})')
        for kind in kinds:
            self._sqlite.execute(f"CREATE VIEW \"{kind}s\" AS SELECT * FROM objects WHERE kind = '{kind}'")
        self._tables = {table.name: table for table in tables}
        self._kinds = kinds
        #: Tables that the statement being compiled reads; None while nobody asks.
        self._read: set[str] | None = None
        self._until = float("inf")
        self._interrupted = False

    def close(self) -> None:
        """Forget everything."""
        self._sqlite.close()

    def fill(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to the table of that name."""
        count = len(self._tables[name].columns)
        self._sqlite.execute("BEGIN")
        self._sqlite.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * count)})', rows)
        self._sqlite.execute("COMMIT")

    def tables_of(self, question: str) -> set[str]:
        """Return the tables that a question reads; nothing is computed.

        Raises
        ------
        QuestionError
            It is not one question that may be asked.
        """
        if not question.strip():
            raise QuestionError("there is no question: write a SELECT")
        self._read = set()
        try:
            self.ask(f"EXPLAIN {question}" if not _explains(question) else question, 0, 5.0)
            return self._read
        finally:
            self._read = None

    def ask(self, question: str, limit: int, seconds: float) -> tuple[list[str], list[tuple[Any, ...]], bool]:
        """Return names of columns, at most `limit` rows (0: all), and whether there are more.

        Raises
        ------
        QuestionError
            The question is wrong, or cannot be answered in so many seconds, or in this memory.
        KeyboardInterrupt
            Ctrl-C.
        """
        self._until = time.monotonic() + seconds
        self._interrupted = False
        before = signal.signal(signal.SIGINT, self._interrupt)
        self._sqlite.set_authorizer(self._may)
        self._sqlite.set_progress_handler(self._is_over, _LOOK)
        try:
            cursor = self._sqlite.execute(question)
            names = [column[0] for column in cursor.description or ()]
            rows = cursor.fetchmany(limit) if limit else cursor.fetchall()
            more = bool(limit) and cursor.fetchone() is not None
            cursor.close()
            if self._interrupted:
                raise KeyboardInterrupt
            return names, rows, more
        except MemoryError:
            raise QuestionError(
                "the answer needs more memory than there is: ask for less at a time"
            ) from None
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError) as error:
            if self._interrupted:
                raise KeyboardInterrupt from None
            raise QuestionError(self._explain(error, seconds)) from None
        finally:
            self._sqlite.set_progress_handler(None, 0)
            self._sqlite.set_authorizer(None)
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # SQLite calls back into Python, and would swallow an exception there.
        self._interrupted = True

    def _is_over(self) -> bool:
        return self._interrupted or time.monotonic() > self._until

    def _may(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action not in _READING or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ and self._read is not None and first is not None:
            self._read.add(PAGES.name if first in BASE else first)
        return sqlite3.SQLITE_OK

    def _explain(self, error: Exception, seconds: float) -> str:
        said = str(error)
        if said == "interrupted":
            return f"no answer within {seconds:g} s (--timeout): ask for less"
        if "not authorized" in said or "authorization denied" in said or "prohibited" in said:
            return "only reading is possible here: one SELECT, or EXPLAIN"
        if "one statement at a time" in said:
            return "one statement at a time"
        if "no such" in said:
            return f"{said}; there are\n\n{schema(list(self._tables.values()), self._kinds)}"
        return said


def schema(tables: Sequence[Table], kinds: Sequence[str]) -> str:
    """Return the tables, their columns and what their rows are, for people."""
    blocks = [f"{table.name}: a row is {table.about}\n{_wrapped(table.names)}" for table in tables]
    if kinds:
        names = _wrapped(f"{kind}s" for kind in kinds)
        blocks.append(f"of each kind, with the columns of objects:\n{names}")
    return "\n".join(blocks)


def _wrapped(words: Iterable[str]) -> str:
    return textwrap.fill(", ".join(words), 100, initial_indent="    ", subsequent_indent="    ")


def _explains(question: str) -> bool:
    return question.lstrip().lower().startswith("explain")
