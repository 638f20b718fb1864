"""What must hold of locks and barriers when nodes and workers die.

Owns a `SyncTruth` that knows the living: a thread whose worker died, or whose node is gone, holds nothing,
and says nothing any more.
"""

from __future__ import annotations

from dsm.sync.service import Reply
from dsm.testing.simulation.sync import Ask, SyncCall, SyncTruth
from dsm.testing.simulation.thread import Thread
from dsm.wire.calls import Op


class LivingTruth(SyncTruth):
    """The rules of `SyncTruth`, among the living."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.dead: set[int] = set()

    def dies(self, threads: list[Thread]) -> None:
        """These threads are gone: what they hold is free."""
        numbers = {thread.number for thread in threads}
        self.dead |= numbers
        for lock in [lock for lock, holder in self.holder.items() if holder in numbers]:
            del self.holder[lock]

    def begins(self, thread: int, call: SyncCall) -> None:
        """A thread makes a call."""
        if thread not in self.dead:
            super().begins(thread, call)

    def ends(self, thread: int, call: SyncCall, began: int, now: int, result: int, parties: int) -> None:
        """A call of a thread was answered with OK."""
        if thread not in self.dead and not (self.dead and call.kind == Op.BARRIER_WAIT):
            super().ends(thread, call, began, now, result, parties)

    def at_home(self, ask: Ask, replies: list[Reply]) -> None:
        """Whose turn it was is known as long as nobody has died."""
        if not self.dead:
            super().at_home(ask, replies)
