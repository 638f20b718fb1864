"""Locks and atomics as users hold them.

Owns which objects this process has opened, who holds a lock in it (a thread, by a token that is never
used again) and the range of atomic values.  Who gets a lock, in which order, is decided by the object's home.
"""

from __future__ import annotations

import itertools
import operator
import threading
from types import TracebackType
from typing import Any, SupportsIndex

from dsm.errors import NotOwnerError, OwnerDiedError, UsageError, WaitTimeoutError
from dsm.types import SyncObject
from dsm.wire import control
from dsm.wire.calls import WORD_MASK, Op, to_signed
from dsm.worker import calls, layouts
from dsm.worker.session import Session

_tokens = itertools.count(1)
_thread = threading.local()


def owner_token() -> int:
    """Return what names this thread as the owner of a lock; no other thread of this process ever has it."""
    token: int | None = getattr(_thread, "token", None)
    if token is None:
        token = _thread.token = next(_tokens)
    return token


#: Name of the barrier of all workers of a job.
JOB_BARRIER = "dsm.job"


class ObjectTable:
    """Synchronization objects that this process has opened; they live as long as their cluster."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[str, str], SyncObject] = {}

    def get(self, kind: str, name: str, value: int = 0) -> SyncObject:
        """Create or find the object of that kind and name."""
        if name is None:
            raise UsageError(f"name of the {kind} is None; pass a string, the same in every worker")
        layouts.check_name(name, f"the {kind}")
        found = self._known.get((kind, name))
        if found is None or self._session.lost:
            reply, _ = self._session.call(control.OpenSync(kind, name, value), control.SyncOpened)
            found = self._known[kind, name] = reply.object
        return found

    def barrier(self, name: str | None, parties: Any, attached: control.Attached) -> SyncObject:
        """Return the barrier of that name; None: the job's; `parties` None: all its workers."""
        if parties is None:
            if not attached.launched:
                raise UsageError(
                    "barrier() needs parties= here: without `dsm run` nobody knows how many workers will come"
                )
            parties = attached.size
        count = parties if type(parties) is int else _index(parties)
        if count < 1:
            raise UsageError(f"parties is {parties!r}; it must be an integer from 1 up")
        described = self.get("barrier", JOB_BARRIER if name is None else name, count)
        if described.value != count:
            raise UsageError(
                f"barrier {described.name!r} has {described.value} parties, not {count}; "
                "all must give the same number, or choose another name"
            )
        return described


def _index(parties: object) -> int:
    """Return a number of parties that is not plainly an int; -1 when it is none."""
    return (
        -1 if isinstance(parties, bool) or not isinstance(parties, SupportsIndex) else operator.index(parties)
    )


class HeldLocks:
    """Which locks the threads of this process hold: object number → owner token."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}

    def clear(self) -> None:
        """Forget them: the node was closed, or this is a child of fork, which holds none."""
        self._owners.clear()

    def mine(self, number: int) -> bool:
        """Whether this thread holds that lock."""
        return self._owners.get(number) == owner_token()

    def add(self, number: int) -> None:
        """Note that the calling thread has it now."""
        self._owners[number] = owner_token()

    def remove(self, number: int) -> None:
        """Note that nobody of this process has it any more."""
        self._owners.pop(number, None)


class Lock:
    """A mutual exclusion lock of the cluster, owned by one thread at a time; made by `Node.lock`.

    It is not reentrant: acquiring it twice in a thread is an error, not a deadlock.  Waiters get it in
    turn (dsm/sync/lock.py says in which order).  When the process of its owner dies, the next in turn gets
    `OwnerDiedError`.
    """

    def __init__(self, described: SyncObject, held: HeldLocks, timeout: float | None) -> None:
        self._described = described
        self._held = held
        self._timeout = timeout

    @property
    def name(self) -> str:
        """Name of the lock."""
        return self._described.name

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock.

        Parameters
        ----------
        timeout
            Seconds to wait; 0 tries once; None (default) waits without end.

        Returns
        -------
        bool
            True when this thread holds the lock, False when the time was over.

        Raises
        ------
        OwnerDiedError
            When the process that held it died: what it protects may be half written.  Told once; this
            thread does not hold the lock, and may acquire it again.
        UsageError
            When this thread holds it already.
        """
        seconds, number, token = calls.check_timeout(timeout), self._described.object, owner_token()
        if self._held.mine(number):
            raise UsageError(f"this thread holds lock {self.name!r} already; a dsm lock is not reentrant")
        undo = (Op.LOCK_RELEASE, number, token, 0, 0)
        what = f"acquiring lock {self.name!r}"
        try:
            calls.ask(Op.LOCK_ACQUIRE, number, token, what=what, timeout=seconds, undo=undo)
        except WaitTimeoutError:
            return False
        except OwnerDiedError:  # the manager says so to the one who holds it now
            calls.ask(Op.LOCK_RELEASE, number, token, what=f"releasing lock {self.name!r}", brief=True)
            raise
        self._held.add(number)
        return True

    def release(self) -> None:
        """Give the lock up.

        Raises
        ------
        NotOwnerError
            When this thread does not hold it.
        """
        number = self._described.object
        if not self._held.mine(number):
            raise NotOwnerError(
                f"lock {self.name!r} is not held by thread {threading.current_thread().name!r}; "
                "the thread that acquired a lock releases it"
            )
        self._held.remove(number)
        calls.tell(Op.LOCK_RELEASE, number, owner_token(), what=f"releasing lock {self.name!r}")

    def __enter__(self) -> Lock:
        if not self.acquire(self._timeout):
            raise WaitTimeoutError(
                f"lock {self.name!r} was not free within {self._timeout} s; it is not held"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<dsm.Lock {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, ("lock", self.name, self._timeout)


class Atomic:
    """A 64-bit signed integer of the cluster with indivisible operations; made by `Node.atomic`.

    Every operation takes effect at one moment between call and return, the same for everybody
    (linearizable), and orders the memory accesses around it.
    """

    def __init__(self, described: SyncObject) -> None:
        self._described = described

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self._described.name

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
        return to_signed(calls.ask(op, self._described.object, a, b, what=what, brief=True))

    def __repr__(self) -> str:
        return f"<dsm.Atomic {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, ("atomic", self.name, 0)


def word(value: SupportsIndex, what: str) -> int:
    """Return a signed 64-bit `value` as the unsigned word that travels; `UsageError` outside."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{what} is {value!r}; an atomic holds integers") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise UsageError(f"{what} is {number}; an atomic holds integers from -2**63 to 2**63 - 1")
    return number & WORD_MASK


def _open(kind: str, name: str, value: Any) -> Lock | Atomic:
    from dsm.worker.attach import attach

    node = attach()
    return node.lock(name, value) if kind == "lock" else node.atomic(name, value)
