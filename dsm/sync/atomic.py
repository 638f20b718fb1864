"""Atomic cells: 64 bits, wrap-around, linearizable because one home executes one operation at a time.

Owns the value of a cell.  Nothing waits here.
"""

from __future__ import annotations

from dsm.errors import Status
from dsm.sync.reply import Description, Gone, Owner, Reply
from dsm.types import SyncObject
from dsm.wire.calls import WORD_MASK, Op, to_signed

_LOAD = int(Op.ATOMIC_LOAD)
_STORE = int(Op.ATOMIC_STORE)
_ADD = int(Op.ATOMIC_ADD)
_EXCHANGE = int(Op.ATOMIC_EXCHANGE)
_COMPARE_EXCHANGE = int(Op.ATOMIC_COMPARE_EXCHANGE)
_USAGE = int(Status.USAGE)


class Atomic:
    """One cell; its initial value is `SyncObject.value`."""

    def __init__(self, described: SyncObject) -> None:
        self.described = described
        #: 0 … 2^64 - 1, the two's complement of the value.
        self._word = described.value & WORD_MASK

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Execute one operation; USAGE when it is none of an atomic."""
        old, number = self._word, self.described.object
        if op == _ADD:
            self._word = (old + a) & WORD_MASK
        elif op == _LOAD:
            pass
        elif op == _COMPARE_EXCHANGE:
            if old == a & WORD_MASK:
                self._word = b & WORD_MASK
        elif op == _EXCHANGE:
            self._word = a & WORD_MASK
        elif op == _STORE:
            self._word = a & WORD_MASK
            return [Reply(node, ticket, object=number)]
        else:
            return [Reply(node, ticket, _USAGE, object=number)]
        return [Reply(node, ticket, 0, old, number)]

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """Nothing ever waits."""
        return []

    def gone(self, gone: Gone) -> list[Reply]:
        """Keep the cell: it belongs to no worker."""
        return []

    def close(self) -> list[Reply]:
        """Nothing ever waits."""
        return []

    def describe(self) -> Description:
        """Return the state."""
        it = self.described
        return Description(it.object, it.kind, it.name, value=to_signed(self._word))
