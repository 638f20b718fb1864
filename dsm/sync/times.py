"""Vector times of synchronization objects: what has happened before whoever acquires from one.

Owns one time for each object whose home is this node.  An operation that releases joins the time of its
node into it; the reply of an operation that acquires carries it (order of operations, 15).
"""

from __future__ import annotations

from dsm.vector_time import Time, join


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
            self._times[object] = join(before, time)

    def of(self, object: int) -> Time:
        """Return what has happened before whoever acquires from `object` now; empty: nothing."""
        time = self._times.get(object, ())
        return join(time, self._everybody) if self._everybody else time

    def join_all(self, time: Time) -> None:
        """Note that `time` has happened before whoever acquires from any object from now on."""
        if time:
            self._everybody = join(self._everybody, time)
