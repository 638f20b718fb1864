"""Intervals, vector times, and the log of who wrote what.

An *interval* of a node is what its workers did between two releases of the node; its *write notices* are
the pages that it changed (lazy release consistency: Keleher, Cox and Zwaenepoel, 1992).  A vector time says
of each node up to which of its intervals everything has happened before.

Owns this node's log: of each node the notices of its latest intervals, without a gap, up to the latest that
is known.  The log has a bound (order of operations, 14): the oldest are forgotten, and whoever acquires
from before what the log still has must give all its copies up.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

import msgspec
import numpy as np

from dsm.coherence.messages import Runs
from dsm.errors import WireError
from dsm.limits import LOG_INTERVALS, LOG_RUNS, MAX_NODES
from dsm.vector_time import Time, at

_HEAD = struct.Struct("<HHI")  # node, regions, number
_PART = struct.Struct("<II")  # region, runs
_ROW_BYTES = 8  # page u32, count u32


class Interval(msgspec.Struct, frozen=True, gc=False):
    """Write notices of one interval."""

    node: int
    #: Counts from 1, on each node.
    number: int
    #: region -> pages that were changed.
    pages: dict[int, Runs]

    @property
    def size(self) -> int:
        """Runs, for the log's bound."""
        return sum(len(runs) for runs in self.pages.values())


class Log:
    """Notices of the latest intervals of every node.

    Parameters
    ----------
    max_intervals
        Intervals of one node that are kept.
    max_runs
        Runs of pages that are kept of all nodes together; one interval with more is kept all the same.
    """

    def __init__(self, max_intervals: int = LOG_INTERVALS, max_runs: int = LOG_RUNS) -> None:
        self._max_intervals = max_intervals
        self._max_runs = max_runs
        #: node -> its intervals floor + 1 … known, in order.
        self._kept: dict[int, deque[Interval]] = {}
        #: node -> the latest interval of which notices were forgotten, or never came.
        self._floor: dict[int, int] = {}
        self.runs = 0

    def known(self, node: int) -> int:
        """Return the latest interval of a node that is known."""
        kept = self._kept.get(node)
        return kept[-1].number if kept else self._floor.get(node, 0)

    def learn(self, intervals: Iterable[Interval]) -> None:
        """Take intervals of other nodes, or the latest of this one; those of a node in ascending order."""
        for interval in intervals:
            node, known = interval.node, self.known(interval.node)
            if interval.number <= known:
                continue
            kept = self._kept.setdefault(node, deque())
            if interval.number != known + 1:  # what is between was forgotten where this comes from
                self._forget(node, len(kept))
                self._floor[node] = interval.number - 1
            kept.append(interval)
            self.runs += interval.size
            self._trim(node)

    def skip(self, time: Time) -> None:
        """Everything up to `time` has been dealt with without its notices."""
        for node, number in enumerate(time):
            if number > self.known(node):
                self._forget(node, len(self._kept.get(node, ())))
                self._floor[node] = number

    def since(self, have: Time, upto: Time) -> list[Interval]:
        """Return what is kept of the intervals behind `have`, as far as `upto`."""
        found: list[Interval] = []
        for node, last in enumerate(upto):
            first = at(have, node)
            if last > first:
                kept = self._kept.get(node, ())
                found += [interval for interval in kept if first < interval.number <= last]
        return found

    def is_complete(self, have: Time, upto: Time) -> bool:
        """Whether no interval behind `have`, as far as `upto`, is missing."""
        for node, last in enumerate(upto):
            first = at(have, node)
            if last > first and (first < self._floor.get(node, 0) or last > self.known(node)):
                return False
        return True

    def _trim(self, node: int) -> None:
        kept = self._kept[node]
        if len(kept) > self._max_intervals:
            self._forget(node, len(kept) - self._max_intervals)
        while self.runs > self._max_runs:
            longest = max(self._kept, key=lambda n: (len(self._kept[n]), n))
            if len(self._kept[longest]) < 2:
                return
            self._forget(longest, 1)

    def _forget(self, node: int, count: int) -> None:
        kept = self._kept.get(node)
        for _ in range(count):
            assert kept is not None
            interval = kept.popleft()
            self.runs -= interval.size
            self._floor[node] = interval.number


def encode(intervals: list[Interval]) -> bytes:
    """Return intervals as bytes: little-endian, notices as pairs of page and count of 32 bits each."""
    parts: list[bytes] = []
    for interval in intervals:
        parts.append(_HEAD.pack(interval.node, len(interval.pages), interval.number))
        for region, runs in interval.pages.items():
            parts.append(_PART.pack(region, len(runs)))
            parts.append(runs.astype("<u4").tobytes())
    return b"".join(parts)


def decode(data: memoryview) -> list[Interval]:
    """Return the intervals of `encode`.

    Raises
    ------
    WireError
        A length or value that `encode` does not make.
    """
    intervals: list[Interval] = []
    position = 0
    while position < len(data):
        if len(data) - position < _HEAD.size:
            raise WireError(f"write notices break off in an interval's head, at byte {position}")
        node, regions, number = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        if node >= MAX_NODES or not number:
            raise WireError(f"write notices of interval {number} of node {node}")
        pages: dict[int, Runs] = {}
        for _ in range(regions):
            region, position, runs = _decode_part(data, position)
            pages[region] = runs
        intervals.append(Interval(node, number, pages))
    return intervals


def _decode_part(data: memoryview, position: int) -> tuple[int, int, Runs]:
    if len(data) - position < _PART.size:
        raise WireError(f"write notices break off in a region's head, at byte {position}")
    region, count = _PART.unpack_from(data, position)
    position += _PART.size
    if count * _ROW_BYTES > len(data) - position:
        raise WireError(f"write notices of region {region} announce {count} runs, which are not there")
    rows = np.frombuffer(data, "<u4", 2 * count, position).reshape(count, 2).astype(np.int64)
    ends = rows[:, 0] + rows[:, 1]
    if not (rows[:, 1] > 0).all() or not (rows[1:, 0] > ends[:-1]).all():
        raise WireError(f"write notices of region {region} are not ascending runs of pages")
    return region, position + count * _ROW_BYTES, rows
