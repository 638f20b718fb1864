"""Vector times of synchronization objects: what has happened before whoever acquires from one.

Owns one time for each object whose home is this node.  An operation that releases joins the time of its
node into it; the reply of an operation that acquires carries it (order of operations, 15).  What a time
counts is no concern of this file: it is a tuple of numbers, one a node, that only grow.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

#: At position n, how many intervals of node n; nodes beyond its end have none.
Time: TypeAlias = tuple[int, ...]


class ObjectTimes:
    """One vector time for each synchronization object."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: dict[int, Time] = {}

    def join(self, object: int, time: Time) -> None:
        """Note that `time` has happened before whoever acquires from `object` from now on."""
        before = self._times.get(object)
        if before is None:
            self._times[object] = time
        elif before != time:
            self._times[object] = tuple(
                itertools.starmap(max, itertools.zip_longest(before, time, fillvalue=0))
            )

    def of(self, object: int) -> Time:
        """Return what has happened before whoever acquires from `object` now; empty: nothing."""
        return self._times.get(object, ())

    def drop(self, object: int) -> None:
        """Forget a destroyed object."""
        self._times.pop(object, None)
