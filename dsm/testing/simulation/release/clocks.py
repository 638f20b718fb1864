"""Real happens-before, as the homes of the synchronization objects granted it.

Owns one vector clock a thread, and one an object.  A thread's clock counts its *epochs*: what it did between
two releases.  A call that releases takes the clock of its thread along and begins a new epoch; the object's
home joins it into the object's clock when it handles the call; a reply that acquires brings the object's
clock to its thread.  Nothing of the protocol is looked at.

Source: Lamport, "Time, clocks, and the ordering of events", 1978; the counting of epochs follows
Flanagan and Freund, "FastTrack", 2009.
"""

from __future__ import annotations

from typing import TypeAlias

#: At position t, the latest epoch of thread t that has happened before.
Clock: TypeAlias = tuple[int, ...]


class Epoch:
    """One epoch of a thread: what had happened before, when it last looked."""

    __slots__ = ("clock", "number", "thread")

    def __init__(self, thread: int, number: int, clock: Clock) -> None:
        self.thread = thread
        self.number = number
        self.clock = clock


class Clocks:
    """Clocks of all threads and objects."""

    def __init__(self) -> None:
        #: The epoch in which each thread is; a new object whenever number or clock change.
        self.epochs: dict[int, Epoch] = {}
        self._objects: dict[int, Clock] = {}

    def epoch(self, thread: int) -> Epoch:
        """Return the epoch in which a thread is."""
        epoch = self.epochs.get(thread)
        if epoch is None:
            epoch = self.epochs[thread] = Epoch(thread, 1, (0,) * thread + (1,))
        return epoch

    def release(self, thread: int) -> Clock:
        """Return the clock that a releasing call takes along; the thread begins a new epoch."""
        before = self.epoch(thread)
        number = before.number + 1
        clock = (*before.clock[:thread], number, *before.clock[thread + 1 :])
        self.epochs[thread] = Epoch(thread, number, clock)
        return before.clock

    def acquire(self, thread: int, clock: Clock) -> None:
        """A reply brought `clock` to a thread."""
        before = self.epoch(thread)
        after = joined(before.clock, clock)
        if after != before.clock:
            self.epochs[thread] = Epoch(thread, before.number, after)

    def arrives(self, number: int, clock: Clock) -> None:
        """The home of an object handles a call that releases."""
        self._objects[number] = joined(self._objects.get(number, ()), clock)

    def of(self, number: int) -> Clock:
        """Return the clock of an object, as its home has it now."""
        return self._objects.get(number, ())


def joined(a: Clock, b: Clock) -> Clock:
    """Return the least clock that is not before either."""
    if len(a) < len(b):
        a, b = b, a
    return tuple(map(max, a, b)) + a[len(b) :]
