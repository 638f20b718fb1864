"""Releases and acquires of one node: what orders the intervals of all its release regions.

Owns this node's vector time, the log of write notices, and the queue of releases and acquires.  All workers
of a node are one writer to the protocol, so a release is a *round* of the whole node: it closes the interval
of everything that any worker has written.  Rounds and acquires take place one after the other, in order of
arrival; releases that arrive during a round share the next one (its writes are only then sure to be in).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from dsm.coherence.messages import Acquired, Released
from dsm.coherence.release.intervals import Interval, Log
from dsm.coherence.release.runs import union
from dsm.vector_time import Time, at, covers, join

if TYPE_CHECKING:
    from dsm.coherence.engine import Engine
    from dsm.coherence.release.region import ReleaseRegion


class _Wanted(NamedTuple):
    ticket: int
    #: What an acquire is to see; None: a release.
    time: Time | None


class Fence:
    """Order of one node's releases and acquires.

    Parameters
    ----------
    engine
        Whose.
    log
        Where notices are kept.
    """

    def __init__(self, engine: Engine, log: Log | None = None) -> None:
        self._engine = engine
        self.log = Log() if log is None else log
        #: What has happened before whatever this node's workers do now.
        self.time: Time = ()
        self.regions: dict[int, ReleaseRegion] = {}
        self._queue: deque[_Wanted] = deque()
        #: What is being done: one round, or one acquire, for all of these.
        self._current: list[_Wanted] = []
        self._target: Time = ()
        self._is_advancing = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return not self._queue and not self._current

    def release(self, ticket: int, now: int) -> None:
        """Bring what this node has written to its homes; ends with `Released`."""
        self._engine.now = now
        self._queue.append(_Wanted(ticket, None))
        self._advance()

    def acquire(self, ticket: int, time: Time, now: int) -> None:
        """Let no worker of this node see what was before `time`; ends with `Acquired`.

        The notices up to `time` were learnt by the log before, as far as the sender still had them.
        """
        self._engine.now = now
        self._queue.append(_Wanted(ticket, time))
        self._advance()

    def look(self) -> None:
        """Something was acknowledged: go on if that was the last."""
        if self._current:
            self._advance()

    def _advance(self) -> None:
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while True:
                if self._current:
                    if any(r.writer.is_busy or r.acquirer.is_busy for r in self.regions.values()):
                        return
                    self._finish()
                if not self._queue:
                    return
                self._begin()
        finally:
            self._is_advancing = False

    def _begin(self) -> None:
        """Take what stands in front of the queue, and everything of the same sort behind it."""
        queue = self._queue
        is_release = queue[0].time is None
        while queue and (queue[0].time is None) == is_release:
            self._current.append(queue.popleft())
        if is_release:
            for region in self.regions.values():
                region.writer.begin_round()
            return
        self._target = ()
        for wanted in self._current:
            assert wanted.time is not None
            self._target = join(self._target, wanted.time)
        if covers(self.time, self._target):
            return
        if not self.log.is_complete(self.time, self._target):
            for region in self.regions.values():
                region.acquirer.invalidate(None)
            self.log.skip(self._target)
            return
        intervals = self.log.since(self.time, self._target)
        for number, region in self.regions.items():
            runs = union(interval.pages[number] for interval in intervals if number in interval.pages)
            if len(runs):
                region.acquirer.invalidate(runs)

    def _finish(self) -> None:
        current, self._current = self._current, []
        effects = self._engine.effects
        if current[0].time is None:
            self._close_interval()
            effects += [Released(wanted.ticket, self.time) for wanted in current]
        else:
            self.time = join(self.time, self._target)
            effects += [Acquired(wanted.ticket) for wanted in current]

    def _close_interval(self) -> None:
        changed = {number: region.writer.end_round() for number, region in self.regions.items()}
        pages = {number: runs for number, runs in changed.items() if len(runs)}
        if pages:
            node = self._engine.node
            number = at(self.time, node) + 1
            self.log.learn([Interval(node, number, pages)])
            self.time = join(self.time, (0,) * node + (number,))
