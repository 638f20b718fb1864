"""Calls that carry consistency: which operations release, which acquire.

Owns the rule of the synchronization objects.  The cluster-wide object of ``node.acquire()`` and
``node.release()`` is a cell here: its store releases and nothing else, its load acquires and nothing else.
"""

from __future__ import annotations

from dsm.errors import Status
from dsm.testing.simulation.sync import SyncCall
from dsm.wire.calls import ACQUIRING, RELEASING, Op

#: Replies from which something is acquired.
_TAKEN = frozenset({int(Status.OK), int(Status.OWNER_DIED), int(Status.BROKEN)})


class TimedCall(SyncCall):
    """A call of a synchronization object."""

    __slots__ = ("least", "relaxed")

    def __init__(
        self,
        op: Op,
        number: int,
        a: int = 0,
        *,
        relaxed: bool = False,
        patience: int = 0,
        skip: int = 0,
        least: int = 0,
    ) -> None:
        super().__init__(op, number, a, patience, skip)
        #: An atomic operation without consistency.
        self.relaxed = relaxed
        #: With a smaller result the next `skip` operations are left out.
        self.least = least


def releases(call: TimedCall) -> bool:
    """Whether what its thread did before must be visible to whoever acquires from the object later."""
    return call.kind in RELEASING and not call.relaxed


def acquires(call: TimedCall, status: int) -> bool:
    """Whether a reply with that status makes visible to its thread what was released before."""
    return call.kind in ACQUIRING and not call.relaxed and status in _TAKEN
