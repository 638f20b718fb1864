"""A node's synchronization objects, by name.

Owns the checks of what callers pass, and their defaults.
"""

from __future__ import annotations

from typing import SupportsIndex

from dsm.errors import UsageError
from dsm.types import CONDITION_LOCK, MAX_UNITS, SyncObject
from dsm.wire.calls import to_signed
from dsm.worker import calls, layouts
from dsm.worker.node.parts import Part
from dsm.worker.synchronization import Atomic, Condition, Event, Lock, RWLock, Semaphore, atomics, barriers
from dsm.worker.synchronization.numbers import number_of, word


class Objects(Part):
    """The part of `Node` with locks, barriers and what else threads of several nodes meet at."""

    def lock(self, name: str, timeout: float | None = None) -> Lock:
        """Return the lock of that name, a context manager.

        Parameters
        ----------
        name
            The same in every worker.
        timeout
            How long a ``with`` block waits for it, in seconds; it raises `WaitTimeoutError` then.

        Returns
        -------
        Lock
            Owned by a thread: release it in the thread that acquired it.
        """
        calls.check_timeout(timeout)
        return Lock(self._objects.get("lock", name), self._held, timeout)

    def barrier(
        self, name: str | None = None, parties: SupportsIndex | None = None, *, timeout: float | None = None
    ) -> int:
        """Wait until all parties have arrived.

        Parameters
        ----------
        name
            Name of the barrier; None for the job's own.
        parties
            How many arrivals complete it; default: all workers of the job.  Required without a launcher,
            since nobody knows there how many workers will come.
        timeout
            Seconds to wait; None waits without end.

        Returns
        -------
        int
            Index of this arrival, from 0.

        Raises
        ------
        UsageError
            When `parties` is missing, or not what others gave.
        WaitTimeoutError
            After `timeout`; the barrier is broken for the others, as `threading.Barrier` is.
        BrokenBarrierError
            When another party gave up, or a worker that had met here before died, or the node that kept
            the barrier.  Once every party has been told they may meet again.  At a barrier of all workers of
            a job: when one of the ranks has ended, until a process attaches with that rank.
        """
        seconds = calls.check_timeout(timeout)
        return barriers.wait_at(*self._barrier(name, parties), seconds)

    def reset_barrier(self, name: str | None = None, parties: SupportsIndex | None = None) -> None:
        """Make a broken barrier usable at once; who waits at it gets `BrokenBarrierError`.

        It does not help a barrier of all workers of a job while one of the ranks has no process.
        """
        barriers.reset(self._barrier(name, parties)[0])

    def _barrier(self, name: str | None, parties: SupportsIndex | None) -> tuple[SyncObject, bool]:
        return barriers.find(self._objects, name, parties, self._connection.attached)

    def atomic(self, name: str, initial: SupportsIndex = 0, relaxed: bool = False) -> Atomic:
        """Return the atomic integer of that name.

        Parameters
        ----------
        name
            The same in every worker.
        initial
            Its first value, a signed 64-bit integer; has no effect when it exists.
        relaxed
            What is done by this handle orders no memory accesses: for counters and statistics of which only
            the value matters.  Under ``consistency="release"`` that saves the work of an acquire or release.
        """
        value = to_signed(word(initial, "initial"))
        return Atomic(self._objects.get("atomic", name, value), bool(relaxed))

    def rwlock(self, name: str) -> RWLock:
        """Return the readers-writer lock of that name: many read, or one writes.

        Parameters
        ----------
        name
            The same in every worker.

        Returns
        -------
        RWLock
            With ``with rw.read():`` and ``with rw.write():``.
        """
        return RWLock(self._objects.get("rwlock", name), self._held, None)

    def semaphore(
        self, name: str, value: SupportsIndex = 1, bounded: bool = False, timeout: float | None = None
    ) -> Semaphore:
        """Return the semaphore of that name, a context manager that takes one unit.

        Parameters
        ----------
        name
            The same in every worker.
        value
            Units in the beginning; the same in every worker.
        bounded
            Never more units than that, and each belongs to the process that takes it (`Semaphore`).
        timeout
            How long a ``with`` block waits for a unit, in seconds; it raises `WaitTimeoutError` then.

        Raises
        ------
        UsageError
            When the semaphore exists with another value, or in the other way.
        """
        calls.check_timeout(timeout)
        units = number_of(value, "value", int(bool(bounded)), MAX_UNITS)
        return Semaphore(self._objects.get("semaphore", name, units, bool(bounded)), timeout)

    def event(self, name: str) -> Event:
        """Return the event of that name, a flag to wait for.

        Parameters
        ----------
        name
            The same in every worker.
        """
        return Event(self._objects.get("event", name))

    def condition(self, name: str, lock: Lock | None = None) -> Condition:
        """Return the condition of that name, a context manager that holds its lock.

        Parameters
        ----------
        name
            The same in every worker.
        lock
            What `lock` returned, the same in every worker; None: a lock of its own.  Several conditions may
            share a lock.

        Raises
        ------
        UsageError
            When the condition exists with another lock.
        """
        layouts.check_name(name, "the condition")
        if lock is not None and not isinstance(lock, Lock):
            raise UsageError(f"lock is a {type(lock).__name__}; pass what node.lock() returned, or None")
        own = lock is None
        lock = self.lock(f"{CONDITION_LOCK}{name}") if lock is None else self.lock(lock.name, lock._timeout)
        return Condition(self._objects.get("condition", name, lock._number), lock, own)

    def acquire(self) -> None:
        """See what other nodes have released: for programs with a synchronization of their own.

        Locks, barriers, conditions, events, semaphores and atomics do this by themselves.  It is for what dsm
        does not see: a pipe, a queue, a file, a socket.  Whatever a worker wrote before it called `release`
        is seen by whoever is told afterwards, by whatever means, and calls `acquire` then.  Sequentially
        consistent arrays need neither.

        Examples
        --------
        >>> a[:] = 1.0; node.release(); pipe.send("done")  # doctest: +SKIP
        >>> pipe.recv(); node.acquire(); a.sum()  # another process  # doctest: +SKIP

        Raises
        ------
        PageTimeoutError
            When the node that keeps the order does not answer in time.
        """
        atomics.acquire(self._objects.fence())

    def release(self) -> None:
        """Show other nodes what this one has written; returns when it is done.

        See `acquire`: who is told after this has returned, and calls `acquire`, sees it.

        Raises
        ------
        PageTimeoutError
            When the node that keeps the order does not answer in time: it may not be done.
        """
        atomics.release(self._objects.fence())
