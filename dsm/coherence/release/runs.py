"""Arithmetic on runs of pages, by the array and never by the page.

Owns the conversions between three forms of a set of pages: runs (`dsm.coherence.messages.Runs`: rows of
page and count, ascending, not touching), ascending page numbers, and lists of (page, count) in any order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dsm.coherence.messages import Runs

#: Ascending page numbers.
Pages = npt.NDArray[np.int64]

NONE: Runs = np.empty((0, 2), np.int64)
NONE.flags.writeable = False


def one(page: int, count: int) -> Runs:
    """Return the runs of a single range."""
    return np.array([[page, count]], np.int64)


def pages_of(runs: Runs) -> Pages:
    """Return the page numbers of runs, ascending."""
    if len(runs) == 1:
        return np.arange(runs[0, 0], runs[0, 0] + runs[0, 1], dtype=np.int64)
    counts = runs[:, 1]
    # The n-th page of all is the start of its run plus how far it lies behind the run's first one.
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(runs[:, 0] - ends + counts, counts)


def runs_of(pages: Pages) -> Runs:
    """Return the runs of ascending page numbers."""
    if not len(pages):
        return NONE
    starts = np.flatnonzero(np.diff(pages, prepend=pages[0] - 2) != 1)
    counts = np.diff(starts, append=len(pages))
    return np.stack((pages[starts], counts), axis=1)


def run_around(holds: npt.NDArray[np.bool_], at: int) -> tuple[int, int]:
    """Return the run (first, end) of places that hold around place `at`, which is taken to hold."""
    before, behind = np.flatnonzero(~holds[:at]), np.flatnonzero(~holds[at + 1 :])
    first = int(before[-1]) + 1 if len(before) else 0
    end = at + 1 + int(behind[0]) if len(behind) else len(holds)
    return first, end


def union(parts: Iterable[Runs]) -> Runs:
    """Return the runs of all pages of `parts`, which may overlap and need no order."""
    rows = [part for part in parts if len(part)]
    if not rows:
        return NONE
    table = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if len(table) == 1:
        return table
    table = table[np.argsort(table[:, 0], kind="stable")]
    ends = np.maximum.accumulate(table[:, 0] + table[:, 1])
    starts = np.flatnonzero(np.concatenate(([True], table[1:, 0] > ends[:-1])))
    lows = table[starts, 0]
    highs = ends[np.append(starts[1:], len(table)) - 1]
    return np.stack((lows, highs - lows), axis=1)


def count_of(runs: Runs) -> int:
    """Return the number of pages."""
    return int(runs[:, 1].sum())


def below(runs: Runs, pages: int) -> Runs:
    """Return the part of `runs` that lies below page number `pages`."""
    if not len(runs) or runs[-1, 0] + runs[-1, 1] <= pages:
        return runs
    kept = runs[runs[:, 0] < pages].copy()
    if len(kept):
        kept[-1, 1] = min(kept[-1, 1], pages - kept[-1, 0])
    return kept
