"""Numbers of the fast calls: what a worker asks through a slot of its board, and nodes of each other.

Owns `Op`, and what each operation is to consistency.  A call carries the number of a region or object and
the words a, b, c; its answer is a `dsm.errors.Status` and one 64-bit result.  All words are unsigned 64-bit;
signed values (atomic cells) travel as two's complement.

============================  ======================  ===============================  ==================
operation                     object                  a, b, c                          result
============================  ======================  ===============================  ==================
PREFETCH, PIN, UNPIN          region                  page, count, write               0
REHOME                        region                  page, count                      homes now here
LOCK_ACQUIRE                  lock                    a = token of the owning thread   0
LOCK_RELEASE                  lock                    a = token; b = 1: inconsistent   0
RW_READ, RW_WRITE             rwlock                  a = token of the owning thread   0
RW_RELEASE                    rwlock                  a = token; b = 1: inconsistent   0
BARRIER_WAIT                  barrier                 a = token; b = 1: of all ranks   index of arrival
BARRIER_RESET, BARRIER_ABORT  barrier                 —                                0
SEMAPHORE_ACQUIRE, _RELEASE   semaphore               a = token; b = units             0
EVENT_SET, EVENT_CLEAR        event                   —                                0
EVENT_IS_SET                  event                   —                                1 if it is set
EVENT_WAIT                    event                   a = token                        0
CONDITION_WAIT                lock of the condition   a = token; b = condition         0
CONDITION_NOTIFY              lock of the condition   a = token; b = condition in 32   threads notified
                                                      bits, how many above them
ATOMIC_LOAD                   atomic                  c = 1: relaxed                   the value
ATOMIC_STORE                  atomic                  a = new; c = 1: relaxed          0
ATOMIC_ADD, ATOMIC_EXCHANGE   atomic                  a = addend, new; c = 1: relaxed  the old value
ATOMIC_COMPARE_EXCHANGE       atomic                  a = expected, b = new;           the old value
                                                      c = 1: relaxed
CANCEL                        object of the call      a = slot (ticket) of the call    0
============================  ======================  ===============================  ==================

A lock that is released inconsistent tells its next owner, again, that an owner died.  A barrier of all
ranks needs every rank of the job: while one has no process, nobody can wait there.

A condition is a part of its lock: its operations name the lock as their object, so that their writes and
those under the lock travel with one time.  CONDITION_WAIT gives the lock up and ends, as an acquire does,
when the thread has it again; CANCELLED means that the thread does not hold it.

*Consistency.*  An operation of `RELEASING` is done only when what its node wrote before is where others find
it; the answer to one of `ACQUIRING` (also OWNER_DIED and BROKEN) lets its node see what was written before
the operations that it follows.  Word c of an operation on an atomic says that it is neither: that word goes
no further than the thread's own manager.

==========================================  =========  =========  ==========================================
operation                                   RELEASING  ACQUIRING  why
==========================================  =========  =========  ==========================================
LOCK_ACQUIRE, RW_READ, RW_WRITE             no         yes        sees what was done under the lock
LOCK_RELEASE, RW_RELEASE                    yes        no         a reader's too: it may have written
                                                                  elsewhere
BARRIER_WAIT                                yes        yes        everybody sees everybody
BARRIER_RESET, BARRIER_ABORT                yes        no         who is told BROKEN sees what came before
SEMAPHORE_ACQUIRE                           no         yes        follows the releases of units before it
SEMAPHORE_RELEASE                           yes        no
EVENT_SET, EVENT_CLEAR                      yes        no         stores of a flag
EVENT_IS_SET, EVENT_WAIT                    no         yes        loads of a flag
CONDITION_WAIT                              yes        yes        releases the lock, acquires it again
CONDITION_NOTIFY                            no         no         who is notified sees what was done when it
                                                                  gets the lock, which is released later
ATOMIC_LOAD                                 no         yes
ATOMIC_STORE                                yes        no
ATOMIC_ADD, _EXCHANGE, _COMPARE_EXCHANGE    yes        yes
==========================================  =========  =========  ==========================================

A call that ends with OWNER_DIED or BROKEN says in its result who is the cause of it (`Cause`).

Between nodes these calls are messages of the sync family: kind = operation, node, region = object,
request = ticket, count = worker, page = a, value = b; the payload is what they carry of consistency
(`dsm.manager.ordering`), or nothing.  The kinds below the first operation are the home's answer and what a
node tells the homes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

#: Signed 64-bit values travel as ``value & WORD_MASK``.
WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF
_SIGN = 1 << 63


class Op(IntEnum):
    """What a fast call asks for.  16 (DSM_OP_CALL of layout.h) and above; the shim knows none of them."""

    PREFETCH = 16
    PIN = 17
    UNPIN = 18
    REHOME = 19
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
    RW_READ = 42
    RW_WRITE = 43
    RW_RELEASE = 44
    SEMAPHORE_ACQUIRE = 45
    SEMAPHORE_RELEASE = 46
    CANCEL = 48
    EVENT_SET = 49
    EVENT_CLEAR = 50
    EVENT_IS_SET = 51
    EVENT_WAIT = 52
    CONDITION_WAIT = 53
    CONDITION_NOTIFY = 54


#: Before these the node makes what it wrote visible (a release).
RELEASING = frozenset(
    {
        Op.LOCK_RELEASE, Op.RW_RELEASE, Op.BARRIER_WAIT, Op.BARRIER_RESET, Op.BARRIER_ABORT,
        Op.SEMAPHORE_RELEASE, Op.EVENT_SET, Op.EVENT_CLEAR, Op.CONDITION_WAIT, Op.ATOMIC_STORE, Op.ATOMIC_ADD,
        Op.ATOMIC_EXCHANGE, Op.ATOMIC_COMPARE_EXCHANGE,
    }
)  # fmt: skip
#: Behind these the node sees what was made visible before (an acquire).
ACQUIRING = frozenset(
    {
        Op.LOCK_ACQUIRE, Op.RW_READ, Op.RW_WRITE, Op.BARRIER_WAIT, Op.SEMAPHORE_ACQUIRE, Op.EVENT_IS_SET,
        Op.EVENT_WAIT, Op.CONDITION_WAIT, Op.ATOMIC_LOAD, Op.ATOMIC_ADD, Op.ATOMIC_EXCHANGE,
        Op.ATOMIC_COMPARE_EXCHANGE,
    }
)  # fmt: skip
#: Calls that last as long as others let them: their thread decides how long it waits.
WAITING = frozenset(
    {
        Op.LOCK_ACQUIRE, Op.RW_READ, Op.RW_WRITE, Op.BARRIER_WAIT, Op.SEMAPHORE_ACQUIRE, Op.EVENT_WAIT,
        Op.CONDITION_WAIT,
    }
)  # fmt: skip
#: Those among them that end with a lock in the thread's hands.
LOCKING = frozenset({Op.LOCK_ACQUIRE, Op.RW_READ, Op.RW_WRITE, Op.CONDITION_WAIT})

#: Results that go with PAGE_TIMEOUT: the object's home was not asked, for the node's own release did not end;
#: it has answered, but the node could not give old copies up.
UNASKED, UNSEEN = 1, 2

#: CONDITION_NOTIFY: word b holds the condition in so many bits, and the number of threads above.
CONDITION_BITS = 32
#: As many threads as wait.
NOTIFY_ALL = 0xFFFF_FFFF


def notify_word(condition: int, count: int) -> int:
    """Return word b of CONDITION_NOTIFY."""
    return min(count, NOTIFY_ALL) << CONDITION_BITS | condition


def undoing(op: int, a: int, b: int, owner_died: bool) -> list[tuple[int, int, int]]:
    """Return what gives back what a call was granted that nobody waits for any more: op, a, b of each step.

    Parameters
    ----------
    op, a, b
        The call.
    owner_died
        It was granted with OWNER_DIED: the next owner is to hear of that.
    """
    if op == Op.CONDITION_WAIT:  # somebody else is to have the notification
        return [(Op.CONDITION_NOTIFY, a, notify_word(b, 1)), (Op.LOCK_RELEASE, a, int(owner_died))]
    if op == Op.LOCK_ACQUIRE:
        return [(Op.LOCK_RELEASE, a, int(owner_died))]
    if op in (Op.RW_READ, Op.RW_WRITE):
        return [(Op.RW_RELEASE, a, int(owner_died))]
    if op == Op.SEMAPHORE_ACQUIRE:
        return [(Op.SEMAPHORE_RELEASE, a, b)]
    return []


class SyncKind(IntEnum):
    """Kinds of the sync family that are not an `Op`."""

    #: Home to requester: request = ticket, count = status, value = result.
    REPLY = 1
    #: Node to every home: count = worker, which is gone; page = its rank, value = 1: it died.
    WORKER_GONE = 2
    #: Home to the node that a lock is lent to: it is wanted back.
    RECALL = 3
    #: That node to the home: the lock; count = worker, page = token of who holds it, value = `returned_word`.
    RETURN = 4


class Returned(IntFlag):
    """How a lock that was lent comes back."""

    #: A thread of the node holds it.
    HELD = 1
    #: Its last owner died there and nobody has been told yet.
    DIED = 2


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


_RETURNED_SHIFT = 48
#: Rank of a worker that has none (yet).
NO_RANK = 0xFFFF_FFFF


def cause_word(cause: Cause, node: int = 0, number: int = 0) -> int:
    """Return a cause as the 64-bit result of a call: cause in 8 bits, node in 16, number in 32."""
    return cause << 56 | (node & 0xFFFF) << 32 | number & 0xFFFF_FFFF


def returned_word(what: int, cause: int) -> int:
    """Return `Returned` and the cause of the last death, for RETURN: in the bits that a cause leaves free."""
    return cause | what << _RETURNED_SHIFT


def returned_of(word: int) -> tuple[Returned, int]:
    """Return what `returned_word` was made of."""
    what = Returned(word >> _RETURNED_SHIFT & 3)
    return what, word & ~(0xFF << _RETURNED_SHIFT)


def cause_of(word: int) -> tuple[Cause, int, int]:
    """Return cause, node and number of a result; UNKNOWN for a word that is none."""
    value = word >> 56
    cause = Cause(value) if value in set(Cause) else Cause.UNKNOWN
    return cause, word >> 32 & 0xFFFF, word & 0xFFFF_FFFF


def to_signed(word: int) -> int:
    """Return the signed value of a 64-bit word."""
    return word - (1 << 64) if word & _SIGN else word
