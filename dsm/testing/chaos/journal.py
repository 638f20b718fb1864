"""What a worker writes down before and after everything it does.

Owns the record.  A record is one `write` to a file: it is there also when the next instruction never
runs.  Times are of the machine's monotonic clock, the same for all processes.
"""

from __future__ import annotations

import os
import struct
import time
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from dsm import errors

#: Exit status of a worker that has lost its node.
NODE_LOST_STATUS = 3


class Kind(IntEnum):
    """What is done; `which` is a lock for ACQUIRE and RELEASE, a round for BARRIER, else a cell, or 0."""

    ATTACH = 1
    ACQUIRE = 2
    RELEASE = 3
    #: A cell is read under its lock.
    READ = 4
    #: A cell is read without its lock.
    LOOK = 5
    WRITE = 6
    #: A write stays half done: the cell is lost to this worker.
    ABANDON = 7
    BARRIER = 8
    PREFETCH = 9
    PIN = 10
    LEAVE = 11


class Outcome(IntEnum):
    """How it ended; BEGIN says that it has begun."""

    BEGIN = 0
    OK = 1
    WAIT_TIMEOUT = 2
    NODE_LOST = 3
    PAGE_LOST = 4
    PAGE_TIMEOUT = 5
    OWNER_DIED = 6
    BROKEN = 7
    OTHER = 8


_OUTCOMES: dict[type[BaseException], Outcome] = {
    errors.WaitTimeoutError: Outcome.WAIT_TIMEOUT,
    errors.NodeLostError: Outcome.NODE_LOST,
    errors.PageLostError: Outcome.PAGE_LOST,
    errors.PageTimeoutError: Outcome.PAGE_TIMEOUT,
    errors.OwnerDiedError: Outcome.OWNER_DIED,
    errors.BrokenBarrierError: Outcome.BROKEN,
}


def outcome_of(error: BaseException) -> Outcome:
    """Return how what raised `error` ended."""
    return _OUTCOMES.get(type(error), Outcome.OTHER)


class Record(NamedTuple):
    """One line of the journal; `a`, `b`, `c` are a cell's words, or what the kind needs."""

    kind: int
    outcome: int
    which: int
    time_ns: int
    a: int
    b: int
    c: int


_RECORD = struct.Struct("<BBxxiqqqq")
RECORD_BYTES = _RECORD.size


class Journal:
    """The writer's end."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: Kind, outcome: Outcome, which: int = 0, a: int = 0, b: int = 0, c: int = 0) -> None:
        """Add a record."""
        os.write(self._fd, _RECORD.pack(kind, outcome, which, time.monotonic_ns(), a, b, c))


def read(path: Path) -> list[Record]:
    """Return all records of a journal; a process that is killed leaves no half one."""
    data = path.read_bytes() if path.exists() else b""
    whole = len(data) - len(data) % RECORD_BYTES
    return [Record(*fields) for fields in _RECORD.iter_unpack(data[:whole])]


def last(path: Path) -> Record | None:
    """Return the newest record."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            whole = size - size % RECORD_BYTES
            if not whole:
                return None
            file.seek(whole - RECORD_BYTES)
            return Record(*_RECORD.unpack(file.read(RECORD_BYTES)))
    except FileNotFoundError:
        return None
