"""What the bytes of a region may hold under release consistency: the oracle.

Owns the history of every byte.  A byte of a simulated frame holds the number of the write that put it
there, so that every value is unique; a write is known by its number, its thread and the epoch of that thread.

* A read may return a write W unless another write W' to that byte has happened in between: W before W', W'
  before the read.  (That W does not come after the read is clear: the simulation had not run it yet.)  If
  the program has no data races, this leaves exactly the last write, so no update is lost, no value is
  stale, and no word of several bytes is torn.
* In programs without data races every access to a byte comes after the last write to it; a *race* there
  means that a lock or barrier let two in.
* A frame is *complete before it is visible*: no byte that is raised or mapped was never filled.
* *Frames at rest*: the manager fills, receives into and discards only what no worker may reach.

What `Truth` says of nodes and their access is kept; that only one may write is no rule here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.testing.simulation.release.clocks import Clocks, Epoch
from dsm.testing.simulation.truth import READ, WRITE, Truth
from dsm.testing.simulation.world import Violation

if TYPE_CHECKING:
    from dsm.testing.simulation.thread import Thread

#: Bytes that a simulated page has.
PAGE_BYTES = 16
#: After so many writes to a byte those are forgotten that nobody may read any more.
_PRUNE_AT = 24
#: In the place of a write's number: later than all writes so far.
_NOW = 1 << 62


class Write:
    """One write."""

    __slots__ = ("epoch", "number")

    def __init__(self, number: int, epoch: Epoch) -> None:
        self.number = number
        self.epoch = epoch

    def precedes(self, number: int, epoch: Epoch) -> bool:
        """Whether it happened before what `epoch`'s thread did in it as number `number`."""
        mine = self.epoch
        if mine.thread == epoch.thread:
            return self.number < number
        clock = epoch.clock
        return mine.thread < len(clock) and mine.number <= clock[mine.thread]

    def describe(self) -> str:
        """Words for reports."""
        return f"{self.number} by thread {self.epoch.thread} in its epoch {self.epoch.number}"


class ReleaseTruth(Truth):
    """The oracle of one region."""

    words = PAGE_BYTES

    def __init__(self, region: int, pages: int, fill: int) -> None:
        super().__init__(region, pages, fill)
        self.fill = fill
        self.clocks: Clocks
        #: page, offset -> its writes, in the order of the simulation.
        self.history: dict[tuple[int, int], list[Write]] = {}
        #: Writes that a test gave a value of its own.
        self.labels: dict[int, int] = {}
        #: Bytes for which the program promises nothing.
        self.racy: set[tuple[int, int]] = set()
        #: Nobody died: who has a lock or left a barrier knows what was done before.
        self.orderly = True
        #: Pages whose home went away: what is left of them is old.
        self.tainted: set[int] = set()

    # -- access of nodes --------------------------------------------------------------------------

    def raised(self, node: int, page: int, level: int, frame: list[int]) -> None:
        """`node` raised its wanted level of `page`; `frame` is what its workers will see."""
        bit = 1 << node
        if self.gone & bit:
            return
        self._complete(node, page, frame, "raises")
        self.wanted_read[page] |= bit
        if level == WRITE:
            self.wanted_write[page] |= bit

    def mapped(self, node: int, page: int, before: int, after: int, frame: list[int]) -> None:
        """The highest level at which a worker of `node` has `page` mapped went from `before` to `after`."""
        bit = 1 << node
        if self.gone & bit:
            return
        if after > before:
            self._complete(node, page, frame, "maps")
        for masks, level in ((self.mapped_read, READ), (self.mapped_write, WRITE)):
            masks[page] = masks[page] | bit if after >= level else masks[page] & ~bit

    def _complete(self, node: int, page: int, frame: list[int], does: str) -> None:
        if min(frame) < 0:
            raise self._broken(page, f"node {node} {does} a frame that holds {frame}")

    def overwritten(self, node: int, page: int, why: str) -> None:
        """The manager of `node` changes the frame of `page`: who may see it must find nothing strange there.

        What is received is never older than what was there, so that readers may look on; writers may not.
        """
        if why == "receives into":
            self.at_rest(node, page, why)
        else:
            super().overwritten(node, page, why)

    def at_rest(self, node: int, page: int, why: str) -> None:
        """No worker of `node` may write this page now."""
        if (self.mapped_write[page] | self.wanted_write[page]) >> node & 1:
            raise self._broken(page, f"node {node} {why} a frame that its workers may write")

    # -- what threads do --------------------------------------------------------------------------

    def wrote(self, thread: Thread, page: int, offset: int, number: int) -> None:
        """A thread wrote `number` to a byte."""
        epoch = self.clocks.epoch(thread.number)
        writes = self.history.setdefault((page, offset), [])
        if writes and not writes[-1].precedes(number, epoch):
            self._check_race(thread, page, offset, writes[-1], "writes")
        writes.append(Write(number, epoch))
        self.pages[page][offset] = number
        if len(writes) % _PRUNE_AT == 0:
            self._prune(writes)

    def found(self, thread: Thread, page: int, offset: int, value: int) -> None:
        """A thread read `value` from a byte."""
        if self.gone >> thread.node.number & 1:
            return
        writes = self.history.get((page, offset))
        if not writes:
            if value != self.fill:
                raise self._wrong(thread, page, offset, value, "nobody wrote to")
            return
        epoch = self.clocks.epoch(thread.number)
        last = writes[-1]
        if not last.precedes(_NOW, epoch):
            self._check_race(thread, page, offset, last, "reads")
        if value == last.number:
            return
        self._check_old(thread, page, offset, value)

    def _check_old(self, thread: Thread, page: int, offset: int, value: int) -> None:
        """A read returned another write than the last: may it?"""
        writes = self.history[page, offset]
        epoch = self.clocks.epoch(thread.number)
        source = next((write for write in reversed(writes) if write.number == value), None)
        if source is None and value != self.fill:
            raise self._wrong(thread, page, offset, value, "holds no such write:")
        if page in self.tainted:
            return
        write = self._overwriter(writes, source, epoch)
        if write is not None:
            raise self._wrong(thread, page, offset, value, f"{write.describe()} happened before; stale:")

    def _check_race(self, thread: Thread, page: int, offset: int, last: Write, does: str) -> None:
        if self.orderly and (page, offset) not in self.racy:
            raise self._broken(
                page,
                f"thread {thread.number} {does} byte {offset} in a race with {last.describe()}: "
                "a lock or barrier let both in",
            )

    def _wrong(self, thread: Thread, page: int, offset: int, value: int, why: str) -> Violation:
        writes = self.history.get((page, offset), ())
        known = "; ".join(write.describe() for write in writes[-6:])
        return self._broken(
            page,
            f"thread {thread.number} of node {thread.node.number} reads {value} from byte {offset}; "
            f"{why} byte {offset} (writes: {known}; clock {self.clocks.epoch(thread.number).clock})",
        )

    def _prune(self, writes: list[Write]) -> None:
        """Forget writes that are overwritten in the past of every thread that has a clock."""
        epochs = self.clocks.epochs
        seen = [all(write.precedes(_NOW, epoch) for epoch in epochs.values()) for write in writes]
        writes[:] = [
            write
            for write in writes
            if not any(
                known and other is not write and write.precedes(other.number, other.epoch)
                for other, known in zip(writes, seen, strict=True)
            )
        ]

    # -- at rest ----------------------------------------------------------------------------------

    def is_latest(self, page: int, offset: int, value: int, thread: int) -> bool:
        """Whether a byte may hold `value` after a barrier of all living threads, of which this is one."""
        writes = self.history.get((page, offset))
        if not writes:
            return value == self.fill
        source = next((write for write in reversed(writes) if write.number == value), None)
        if source is None and value != self.fill:
            return False
        return not self._overwriter(writes, source, self.clocks.epoch(thread))

    def _overwriter(self, writes: list[Write], source: Write | None, epoch: Epoch) -> Write | None:
        """Return a write after `source` (None: the fill) that happened before `epoch` is now."""
        for write in writes:
            if write.precedes(_NOW, epoch) and (
                source is None or (write is not source and source.precedes(write.number, write.epoch))
            ):
                return write
        return None
