"""Locks as users hold them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from dsm.errors import WaitTimeoutError
from dsm.wire.calls import Op
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.robust import Robust


class Lock(Robust):
    """A mutual exclusion lock of the cluster, owned by one thread at a time; made by `Node.lock`.

    It is not reentrant: acquiring it twice in a thread is an error, not a deadlock.  Waiters get it in
    turn (dsm/sync/turns.py says in which order).

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

    _releases = Op.LOCK_RELEASE

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
        return self._acquire(Op.LOCK_ACQUIRE, timeout)

    def __enter__(self) -> Lock:
        if not self.acquire(self._timeout):
            raise WaitTimeoutError(f"{self._what} was not free within {self._timeout} s; it is not held")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(kind, error, trace)

    def __repr__(self) -> str:
        return f"<dsm.Lock {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("lock", self.name, self._timeout)
