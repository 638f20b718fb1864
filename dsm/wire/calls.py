"""Numbers of the fast calls: what a worker asks through a slot of its board, and nodes of each other.

Owns `Op`.  A call carries the number of a region or object and the words a, b, c; its answer is a
`dsm.errors.Status` and one 64-bit result.  All words are unsigned 64-bit; signed values (atomic cells)
travel as two's complement.

============================  ======================  ===============================  ==================
operation                     object                  a, b, c                          result
============================  ======================  ===============================  ==================
PREFETCH, PIN, UNPIN          region                  page, count, write               0
LOCK_ACQUIRE                  lock                    a = token of the owning thread   0
LOCK_RELEASE                  lock                    a = token; b = 1: inconsistent   0
BARRIER_WAIT                  barrier                 a = token; b = 1: of all ranks   index of arrival
BARRIER_RESET, BARRIER_ABORT  barrier                 —                                0
ATOMIC_LOAD                   atomic                  —                                the value
ATOMIC_STORE                  atomic                  a = new                          0
ATOMIC_ADD, ATOMIC_EXCHANGE   atomic                  a = addend, new                  the old value
ATOMIC_COMPARE_EXCHANGE       atomic                  a = expected, b = new            the old value
CANCEL                        object of the call      a = slot (ticket) of the call    0
============================  ======================  ===============================  ==================

A lock that is released inconsistent tells its next owner, again, that an owner died.  A barrier of all
ranks needs every rank of the job: while one has no process, nobody can wait there.

A call that ends with OWNER_DIED or BROKEN says in its result who is the cause of it (`Cause`).

Between nodes these calls are messages of the sync family without payload: kind = operation, node,
region = object, request = ticket, count = worker, page = a, value = b.  The kinds below the first
operation are the home's answer and what a node tells the homes.
"""

from __future__ import annotations

from enum import IntEnum

#: Signed 64-bit values travel as ``value & WORD_MASK``.
WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF
_SIGN = 1 << 63


class Op(IntEnum):
    """What a fast call asks for.  16 (DSM_OP_CALL of layout.h) and above; the shim knows none of them."""

    PREFETCH = 16
    PIN = 17
    UNPIN = 18
    LOCK_ACQUIRE = 32
    LOCK_RELEASE = 33
    BARRIER_WAIT = 34
    ATOMIC_LOAD = 35
    ATOMIC_STORE = 36
    ATOMIC_ADD = 37
    ATOMIC_EXCHANGE = 38
    ATOMIC_COMPARE_EXCHANGE = 39
    BARRIER_RESET = 40
    BARRIER_ABORT = 41
    CANCEL = 48


class SyncKind(IntEnum):
    """Kinds of the sync family that are not an `Op`."""

    #: Home to requester: request = ticket, count = status, value = result.
    REPLY = 1
    #: Node to every home: count = worker, which is gone; page = its rank, value = 1: it died.
    WORKER_GONE = 2


assert max(SyncKind) < min(Op)


class Cause(IntEnum):
    """Why a barrier is broken, or what became of the owner of a lock; with a node and a number."""

    UNKNOWN = 0
    #: The process of a rank died: node, rank.
    DIED = 1
    #: A process left while it waited or held: node, rank.
    LEFT = 2
    #: A node died with all its workers.
    NODE_DIED = 3
    #: A rank of the job has no process: the node where it was, rank.
    RANK_MISSING = 4
    #: A thread stopped waiting: node, worker.
    GAVE_UP = 5
    #: A thread reset the barrier: node, worker.
    RESET = 6
    #: A thread broke the barrier on purpose: node, worker.
    ABORTED = 7
    #: The node that kept the object died.
    HOME_DIED = 8


#: Rank of a worker that has none (yet).
NO_RANK = 0xFFFF_FFFF


def cause_word(cause: Cause, node: int = 0, number: int = 0) -> int:
    """Return a cause as the 64-bit result of a call: cause in 8 bits, node in 16, number in 32."""
    return cause << 56 | (node & 0xFFFF) << 32 | number & 0xFFFF_FFFF


def cause_of(word: int) -> tuple[Cause, int, int]:
    """Return cause, node and number of a result; UNKNOWN for a word that is none."""
    value = word >> 56
    cause = Cause(value) if value in set(Cause) else Cause.UNKNOWN
    return cause, word >> 32 & 0xFFFF, word & 0xFFFF_FFFF


def to_signed(word: int) -> int:
    """Return the signed value of a 64-bit word."""
    return word - (1 << 64) if word & _SIGN else word
