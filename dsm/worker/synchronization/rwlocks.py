"""Readers-writer locks as users hold them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from dsm.errors import WaitTimeoutError
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.owners import Hold
from dsm.worker.synchronization.robust import Robust


class RWLock(Robust):
    """A lock of the cluster that many threads hold for reading, or one for writing; made by `Node.rwlock`.

    Nobody starves: behind a writer all readers that wait go together, behind them one writer; who comes to
    read while a writer waits, waits too.  It is not reentrant in either way, and who reads cannot become a
    writer without releasing first: two that tried would wait for each other.

    It is robust: when the process of a writer dies, the next in turn gets `OwnerDiedError` and holds the
    lock *alone*, also if it asked to read.  So it may repair what is half written, says so by `consistent`,
    and releases the lock or acquires it once more (in either way; it stays alone until it releases).  A
    reader that dies has changed nothing: nobody is told.

    Examples
    --------
    >>> with rw.read():  # doctest: +SKIP
    ...     total = table.sum()
    >>> with rw.write(timeout=5):  # doctest: +SKIP
    ...     table[row] = fresh
    """

    _releases = Op.RW_RELEASE

    def acquire_read(self, timeout: float | None = None) -> bool:
        """Wait until no writer has the lock or waits for it, and hold it for reading.

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
            When the process that held it alone died.  This thread holds the lock, alone.
        PageLostError
            When the node that kept the lock has died.
        UsageError
            When this thread holds it already.
        """
        return self._acquire(Op.RW_READ, timeout)

    def acquire_write(self, timeout: float | None = None) -> bool:
        """Wait until nobody has the lock, and hold it alone; otherwise as `acquire_read`."""
        return self._acquire(Op.RW_WRITE, timeout)

    def read(self, timeout: float | None = None) -> Section:
        """Return a context manager that holds the lock for reading.

        After `timeout` seconds it raises `WaitTimeoutError` instead of entering its block.
        """
        return Section(self, self.acquire_read, timeout, "for reading")

    def write(self, timeout: float | None = None) -> Section:
        """Return a context manager that holds the lock alone; otherwise as `read`."""
        return Section(self, self.acquire_write, timeout, "for writing")

    def _held_already(self, op: Op, hold: Hold) -> str:
        how = "for reading" if hold is Hold.SHARED else "alone"
        if hold is Hold.SHARED and op == Op.RW_WRITE:
            advice = "release it first, and look again at what you have read: others may write in between"
        else:
            advice = "a dsm rwlock is not reentrant"
        return f"this thread holds {self._what} {how} already; {advice}"

    def __repr__(self) -> str:
        return f"<dsm.RWLock {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("rwlock", self.name)


class Section:
    """The context manager of one way to hold a `RWLock`."""

    def __init__(
        self, lock: RWLock, acquire: Callable[[float | None], bool], timeout: float | None, how: str
    ) -> None:
        calls.check_timeout(timeout)
        self._lock = lock
        self._acquire = acquire
        self._timeout = timeout
        self._how = how

    def __enter__(self) -> RWLock:
        if not self._acquire(self._timeout):
            raise WaitTimeoutError(
                f"{self._lock._what} could not be had {self._how} within {self._timeout} s; it is not held"
            )
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock._leave(kind, error, trace)
