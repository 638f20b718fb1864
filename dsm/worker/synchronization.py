"""Locks, atomics and barriers as users hold them.

Owns which objects this process has opened, and who holds a lock in it (a thread, by a token that is never
used again) and how.  Who gets a lock, in which order, is decided by the object's home.
"""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from enum import Enum
from types import TracebackType
from typing import Any, SupportsIndex

from dsm import _native
from dsm.errors import (
    ClosedError,
    NodeLostError,
    NotOwnerError,
    OwnerDiedError,
    Status,
    UsageError,
    WaitTimeoutError,
)
from dsm.types import JOB_BARRIER, MAX_PARTIES, SyncObject
from dsm.wire import control
from dsm.wire.calls import WORD_MASK, Op, to_signed
from dsm.worker import calls, layouts
from dsm.worker.causes import explain
from dsm.worker.session import Session

_tokens = itertools.count(1)
_thread = threading.local()


def owner_token() -> int:
    """Return what names this thread as the owner of a lock; no other thread of this process ever has it."""
    token: int | None = getattr(_thread, "token", None)
    if token is None:
        token = _thread.token = next(_tokens)
    return token


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

    def barrier(self, name: str | None, parties: Any, attached: control.Attached) -> tuple[SyncObject, bool]:
        """Return the barrier of that name (None: the job's), and whether its parties are the job's ranks.

        `parties` None: all workers of the job.
        """
        of_ranks = attached.launched and parties is None
        if parties is None:
            if not attached.launched:
                raise UsageError(
                    "barrier() needs parties= here: without `dsm run` nobody knows how many workers will come"
                )
            parties = attached.size
        count = parties if type(parties) is int else _index(parties)
        if not 1 <= count <= MAX_PARTIES:
            raise UsageError(f"parties is {parties!r}; it must be an integer from 1 to {MAX_PARTIES}")
        described = self.get("barrier", JOB_BARRIER if name is None else name, count)
        if described.value != count:
            raise UsageError(
                f"barrier {described.name!r} has {described.value} parties, not {count}; "
                "all must give the same number, or choose another name"
            )
        job = attached.launched and described.name == JOB_BARRIER and count == attached.size
        return described, of_ranks or job


def wait_at(described: SyncObject, of_ranks: bool, timeout: float | None) -> int:
    """Wait at a barrier; returns the index of arrival."""
    what = f"waiting at barrier {described.name!r} of {described.value} parties"
    return calls.ask(
        Op.BARRIER_WAIT, described.object, owner_token(), int(of_ranks), what=what, timeout=timeout,
        meaning=functools.partial(explain, described),
    )  # fmt: skip


def reset(described: SyncObject) -> None:
    """Make a barrier new."""
    calls.ask(
        Op.BARRIER_RESET, described.object, owner_token(), what=f"resetting barrier {described.name!r}",
        brief=True, meaning=functools.partial(explain, described),
    )  # fmt: skip


def _index(parties: object) -> int:
    """Return a number of parties that is not plainly an int; -1 when it is none."""
    try:
        return -1 if isinstance(parties, bool) else operator.index(parties)  # type: ignore[arg-type]
    except TypeError:
        return -1


class Hold(Enum):
    """How a thread holds a lock."""

    #: As ever.
    NORMAL = 0
    #: It was told OwnerDiedError: what the lock protects may be half written.
    INCONSISTENT = 1
    #: It has repaired that, and may acquire the lock that it holds, once.
    REPAIRED = 2


class HeldLocks:
    """Which locks the threads of this process hold, and how: object number → owner token, hold."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[int, Hold]] = {}

    def clear(self) -> None:
        """Forget them: the node was closed, or this is a child of fork, which holds none."""
        self._owners.clear()

    def mine(self, number: int) -> Hold | None:
        """How this thread holds that lock; None when it does not."""
        token, hold = self._owners.get(number, (0, Hold.NORMAL))
        return hold if token == owner_token() else None

    def add(self, number: int, hold: Hold) -> None:
        """Note that the calling thread has it now, in that way."""
        self._owners[number] = owner_token(), hold

    def restore(self, number: int, hold: Hold) -> None:
        """Note that the calling thread still has it in that way, unless another one has it by now."""
        self._owners.setdefault(number, (owner_token(), hold))

    def remove(self, number: int) -> None:
        """Note that nobody of this process has it any more."""
        self._owners.pop(number, None)


class Lock:
    """A mutual exclusion lock of the cluster, owned by one thread at a time; made by `Node.lock`.

    It is not reentrant: acquiring it twice in a thread is an error, not a deadlock.  Waiters get it in
    turn (dsm/sync/lock.py says in which order).

    It is robust: when the process of its owner dies, the next in turn gets `OwnerDiedError` *and holds the
    lock*.  It looks at what the lock protects, repairs it and says so by `consistent`; then it releases the
    lock, or acquires it once more, which succeeds at once.  If it releases the lock without that, the next
    in turn gets `OwnerDiedError` too.

    Examples
    --------
    >>> while True:  # doctest: +SKIP
    ...     try:
    ...         with lock:
    ...             step(shared)
    ...         break
    ...     except dsm.OwnerDiedError:
    ...         repair(shared)
    ...         lock.consistent()
    """

    def __init__(self, described: SyncObject, held: HeldLocks, timeout: float | None) -> None:
        self._described = described
        self._meaning = functools.partial(explain, described)
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
            When the process that held it died: what it protects may be half written.  This thread holds
            the lock, and goes on with `consistent` or `release`.
        PageLostError
            When the node that kept the lock has died.
        UsageError
            When this thread holds it already.
        """
        seconds, number = calls.check_timeout(timeout), self._described.object
        hold = self._held.mine(number)
        if hold is Hold.REPAIRED:
            self._held.add(number, Hold.NORMAL)
            return True
        if hold is Hold.INCONSISTENT:
            raise UsageError(
                f"this thread holds lock {self.name!r} since it was told that its owner died; repair what it "
                "protects and call consistent(), or call release()"
            )
        if hold is not None:
            raise UsageError(f"this thread holds lock {self.name!r} already; a dsm lock is not reentrant")
        return self._ask(number, owner_token(), seconds)

    def _ask(self, number: int, token: int, seconds: float | None) -> bool:
        def granted(status: int) -> None:
            if _native.worker_lost():  # this process was stopped: another may hold the lock by now
                raise NodeLostError(f"acquiring lock {self.name!r}: the manager of this node is gone")
            self._held.add(number, Hold.INCONSISTENT if status == Status.OWNER_DIED else Hold.NORMAL)

        def undo(status: int) -> calls.Request:
            self._held.remove(number)
            return Op.LOCK_RELEASE, number, token, int(status == Status.OWNER_DIED), 0

        try:
            calls.ask(
                Op.LOCK_ACQUIRE, number, token, what=f"acquiring lock {self.name!r}", timeout=seconds,
                granted=granted, undo=undo, meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            return False
        except OwnerDiedError:
            raise
        except BaseException:  # interrupted behind the grant
            if self._held.mine(number):
                self.release()
            raise
        return True

    def consistent(self) -> None:
        """Say that what the lock protects is in order again, after `OwnerDiedError`.

        The thread still holds the lock: it releases it, or acquires it once more (a ``with`` block does),
        which succeeds at once.

        Raises
        ------
        NotOwnerError
            When this thread does not hold the lock.
        UsageError
            When it holds it without having been told `OwnerDiedError`, or has said so already.
        """
        number = self._described.object
        hold = self._held.mine(number)
        if hold is None:
            raise self._not_owner("the thread that was told OwnerDiedError calls consistent()")
        if hold is not Hold.INCONSISTENT:
            raise UsageError(
                f"lock {self.name!r} is consistent already; consistent() is for the thread that got the lock "
                "with OwnerDiedError, once"
            )
        self._held.add(number, Hold.REPAIRED)

    def release(self) -> None:
        """Give the lock up; after `OwnerDiedError` without `consistent`, the next owner gets that error too.

        Raises
        ------
        NotOwnerError
            When this thread does not hold it.
        """
        number = self._described.object
        hold = self._held.mine(number)
        if hold is None:
            raise self._not_owner("the thread that acquired a lock releases it")
        inconsistent = int(hold is Hold.INCONSISTENT)
        what = f"releasing lock {self.name!r}"
        self._held.remove(number)
        try:
            calls.tell(Op.LOCK_RELEASE, number, owner_token(), inconsistent, what=what)
        except ClosedError:
            raise
        except BaseException:  # interrupted: told or not, its home ignores a second release
            self._held.restore(number, hold)
            raise

    def _not_owner(self, rule: str) -> NotOwnerError:
        thread = threading.current_thread().name
        return NotOwnerError(f"lock {self.name!r} is not held by thread {thread!r}; {rule}")

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
        self._meaning = functools.partial(explain, described)

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
        number, meaning = self._described.object, self._meaning
        return to_signed(calls.ask(op, number, a, b, what=what, brief=True, meaning=meaning))

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
