"""Atomic integers as users hold them, and the one that orders a node's memory."""

from __future__ import annotations

import functools
import operator
from typing import Any, SupportsIndex

from dsm.types import SyncObject
from dsm.wire.calls import Op, to_signed
from dsm.worker import calls
from dsm.worker.causes import explain
from dsm.worker.synchronization.handles import Handle
from dsm.worker.synchronization.numbers import word
from dsm.worker.synchronization.objects import reopen


class Atomic(Handle):
    """A 64-bit signed integer of the cluster with indivisible operations; made by `Node.atomic`.

    Every operation takes effect at one moment between call and return, the same for everybody
    (linearizable).  It orders the memory accesses around it, unless this handle is *relaxed*: what a thread
    wrote before it changed the cell is seen by who finds the change.
    """

    def __init__(self, described: SyncObject, relaxed: bool = False) -> None:
        super().__init__(described)
        self._relaxed = relaxed

    @property
    def relaxed(self) -> bool:
        """Whether operations by this handle leave the order of memory accesses alone."""
        return self._relaxed

    def load(self) -> int:
        """Return the value."""
        return self._ask(Op.ATOMIC_LOAD)

    def store(self, value: SupportsIndex) -> None:
        """Set the value."""
        self._ask(Op.ATOMIC_STORE, word(value, "value"))

    def fetch_add(self, value: SupportsIndex = 1) -> int:
        """Add `value` and return what was there before; the sum wraps around at 64 bits."""
        return self._ask(Op.ATOMIC_ADD, word(value, "value"))

    def exchange(self, value: SupportsIndex) -> int:
        """Set the value and return what was there before."""
        return self._ask(Op.ATOMIC_EXCHANGE, word(value, "value"))

    def compare_exchange(self, expected: SupportsIndex, desired: SupportsIndex) -> bool:
        """Set the value to `desired` if it is `expected`.

        Returns
        -------
        bool
            True when it was `expected` and is `desired` now; False when it was another and stays (as
            in C++'s ``compare_exchange_strong``).
        """
        before = self._ask(Op.ATOMIC_COMPARE_EXCHANGE, word(expected, "expected"), word(desired, "desired"))
        return before == operator.index(expected)

    def _ask(self, op: Op, a: int = 0, b: int = 0) -> int:
        what = f"{op.name.lower().replace('_', ' ')} of {self.name!r}"
        number, meaning, c = self._number, self._meaning, int(self._relaxed)
        return to_signed(calls.ask(op, number, a, b, c, what=what, brief=True, meaning=meaning))

    def __repr__(self) -> str:
        return f"<dsm.Atomic {self.name!r}{', relaxed' * self._relaxed}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("atomic", self.name, 0, self._relaxed)


def acquire(fence: SyncObject) -> None:
    """See what was written before the releases that are done (`Node.acquire`)."""
    what, meaning = "acquiring the cluster's memory", functools.partial(explain, fence)
    calls.ask(Op.ATOMIC_LOAD, fence.object, what=what, brief=True, meaning=meaning)


def release(fence: SyncObject) -> None:
    """Show what this node has written (`Node.release`)."""
    what, meaning = "releasing this node's memory", functools.partial(explain, fence)
    calls.ask(Op.ATOMIC_STORE, fence.object, what=what, brief=True, meaning=meaning)
