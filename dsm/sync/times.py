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

    __slots__ = ("_everybody", "_times")

    def __init__(self) -> None:
        self._times: dict[int, Time] = {}
        #: Joined into all of them.
        self._everybody: Time = ()

    def join(self, object: int, time: Time) -> None:
        """Note that `time` has happened before whoever acquires from `object` from now on."""
        before = self._times.get(object)
        if before is None:
            self._times[object] = time
        elif before != time:
            self._times[object] = _join(before, time)

    def of(self, object: int) -> Time:
        """Return what has happened before whoever acquires from `object` now; empty: nothing."""
        time = self._times.get(object, ())
        return _join(time, self._everybody) if self._everybody else time

    def join_all(self, time: Time) -> None:
        """Note that `time` has happened before whoever acquires from any object from now on."""
        if time:
            self._everybody = _join(self._everybody, time)

    def drop(self, object: int) -> None:
        """Forget a destroyed object."""
        self._times.pop(object, None)


def _join(a: Time, b: Time) -> Time:
    return tuple(itertools.starmap(max, itertools.zip_longest(a, b, fillvalue=0)))
