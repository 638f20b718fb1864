"""Conditions as users hold them.

Owns how a thread gets its lock back, however its wait ends.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

from dsm.errors import (
    ClosedError,
    NodeLostError,
    NotOwnerError,
    OwnerDiedError,
    PageLostError,
    UsageError,
    WaitTimeoutError,
)
from dsm.types import SyncObject
from dsm.wire.calls import NOTIFY_ALL, Op, notify_word
from dsm.worker import calls
from dsm.worker.synchronization.handles import Handle
from dsm.worker.synchronization.locks import Lock
from dsm.worker.synchronization.numbers import number_of
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.owners import Hold, owner_token

T = TypeVar("T")

#: With these the lock is lost, too: there is nothing to get back.
_LOST = (ClosedError, NodeLostError, PageLostError, NotOwnerError)


class Condition(Handle):
    """Threads of the cluster that wait for a change of what a lock protects; made by `Node.condition`.

    As `threading.Condition`: with the lock in its hands a thread looks at the data and, if they are not as
    it needs them, waits; whoever changes them notifies, with the same lock in its hands.  Who waits has
    given the lock up, and has it again when the wait is over.  Look again then: others may have had the lock
    in between.

    Examples
    --------
    >>> with filled:  # doctest: +SKIP
    ...     filled.wait_for(lambda: count[0] > 0)
    ...     count[0] -= 1
    >>> with filled:  # doctest: +SKIP
    ...     count[0] += 1
    ...     filled.notify()
    """

    def __init__(self, described: SyncObject, lock: Lock, own: bool) -> None:
        super().__init__(described)
        self._lock = lock
        self._own = own

    @property
    def lock(self) -> Lock:
        """Its lock."""
        return self._lock

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock; as `Lock.acquire`."""
        return self._lock.acquire(timeout)

    def release(self) -> None:
        """Release the lock; as `Lock.release`."""
        self._lock.release()

    def consistent(self) -> None:
        """Say that what the lock protects is in order again; as `Lock.consistent`."""
        self._lock.consistent()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification, and acquire the lock again.

        Parameters
        ----------
        timeout
            Seconds to wait for a notification; None (default) waits without end.  Then the lock is
            waited for without end.

        Returns
        -------
        bool
            True when this thread was notified, False when the time was over.  It holds the lock.

        Raises
        ------
        OwnerDiedError
            When the process that had the lock meanwhile died: what it protects may be half written.  This
            thread holds the lock, and goes on with `consistent` or `release`.
        NotOwnerError
            When this thread does not hold the lock.
        UsageError
            When it holds the lock since it was told `OwnerDiedError`, and has not said `consistent`.
        PageLostError, NodeLostError, ClosedError
            The lock is lost, and not held.

        Whatever else ends the wait (Ctrl-C), the lock is acquired again first.  A notification that comes in
        the moment in which this thread gives up goes to another one that waits.
        """
        seconds, lock = calls.check_timeout(timeout), self._lock
        hold = self._hold("the thread that holds its lock waits")
        if hold is Hold.INCONSISTENT:
            raise UsageError(
                f"this thread holds {lock._what} since it was told that its owner died; repair what it "
                f"protects and call consistent() before it waits for {self._what}"
            )
        return self._wait(seconds, owner_token())

    def _hold(self, rule: str) -> Hold:
        hold = self._lock._held.of(self._lock._number, owner_token())
        if hold is None:
            raise self._lock._not_owner(rule)
        return hold

    def _wait(self, seconds: float | None, token: int) -> bool:
        lock = self._lock
        granted = functools.partial(lock._granted, Op.LOCK_ACQUIRE, token)
        try:
            lock._held.remove(lock._number, token)
            calls.ask(
                Op.CONDITION_WAIT, lock._number, token, self._number,
                what=f"waiting for {self._what}", timeout=seconds, granted=granted, undo=granted,
                meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            self._get_back(token)
            return False
        except OwnerDiedError:
            raise
        except _LOST:
            raise
        except BaseException:  # interrupted, or never asked
            with contextlib.suppress(OwnerDiedError):  # who releases the lock passes that on
                if lock._held.of(lock._number, token) is None:
                    self._get_back(token)
                else:
                    self._notify(1)  # it came too late for this thread
            raise
        return True

    def _get_back(self, token: int) -> None:
        """Acquire the lock; its home says USAGE when it was never given up."""
        lock = self._lock
        try:
            lock._ask(Op.LOCK_ACQUIRE, token, None)
        except UsageError:
            lock._held.add(lock._number, token, Hold.NORMAL)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true.

        Parameters
        ----------
        predicate
            Called with the lock held: now, and after each notification.
        timeout
            Seconds to wait for that; None (default) waits without end.

        Returns
        -------
        object
            What `predicate` returned last: false when the time was over.

        Raises
        ------
        OwnerDiedError, NotOwnerError, UsageError, PageLostError, NodeLostError, ClosedError
            As `wait`.
        """
        seconds = calls.check_timeout(timeout)
        self._hold("the thread that holds its lock waits")
        deadline = None if seconds is None else time.monotonic() + seconds
        result = predicate()
        while not result:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: SupportsIndex = 1) -> None:
        """Wake `n` of those who wait, in the order in which they came; no more if fewer wait.

        They go on when they have the lock, which this thread holds.

        Raises
        ------
        NotOwnerError
            When this thread does not hold the lock.
        """
        self._notify(number_of(n, "n", 1, NOTIFY_ALL))

    def notify_all(self) -> None:
        """Wake all who wait; as `notify`."""
        self._notify(NOTIFY_ALL)

    def _notify(self, count: int) -> None:
        self._hold("the thread that holds its lock notifies")
        calls.ask(
            Op.CONDITION_NOTIFY, self._lock._number, owner_token(),
            notify_word(self._number, count), what=f"notifying {self._what}",
            brief=True, meaning=self._meaning,
        )  # fmt: skip

    def __enter__(self) -> Condition:
        self._lock.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock._leave(kind, error, trace)

    def __repr__(self) -> str:
        return f"<dsm.Condition {self.name!r} of {self._lock!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("condition", self.name, None if self._own else self._lock)
