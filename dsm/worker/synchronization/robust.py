"""What a thread may hold, and takes over half changed when the process of the last owner dies.

Owns acquiring, `consistent` and releasing, for locks and rwlocks alike.
"""

from __future__ import annotations

import functools
import threading
from types import TracebackType
from typing import ClassVar

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
from dsm.types import SyncObject
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.synchronization.handles import Handle
from dsm.worker.synchronization.owners import HeldLocks, Hold, owner_token


class Robust(Handle):
    """A lock or rwlock of the cluster.

    Parameters
    ----------
    described
        The object.
    held
        Of this process.
    timeout
        Seconds that a ``with`` block waits.
    """

    _releases: ClassVar[Op]

    def __init__(self, described: SyncObject, held: HeldLocks, timeout: float | None) -> None:
        super().__init__(described)
        self._held = held
        self._timeout = timeout

    def _acquire(self, op: Op, timeout: float | None) -> bool:
        """Wait for it; False when the time was over."""
        seconds, token = calls.check_timeout(timeout), owner_token()
        hold = self._held.of(self._number, token)
        if hold is Hold.REPAIRED:
            self._held.add(self._number, token, Hold.NORMAL)
            return True
        if hold is Hold.INCONSISTENT:
            raise UsageError(
                f"this thread holds {self._what} since it was told that its owner died; repair what it "
                "protects and call consistent(), or call release()"
            )
        if hold is not None:
            raise UsageError(self._held_already(op, hold))
        return self._ask(op, token, seconds)

    def _held_already(self, op: Op, hold: Hold) -> str:
        return f"this thread holds {self._what} already; a dsm {self._described.kind} is not reentrant"

    def _granted(self, op: Op, token: int, status: int) -> None:
        """Note that this thread has it."""
        if _native.worker_lost():  # this process was stopped: another may hold the lock by now
            raise NodeLostError(f"acquiring {self._what}: the manager of this node is gone")
        shared = Hold.SHARED if op == Op.RW_READ else Hold.NORMAL
        self._held.add(self._number, token, Hold.INCONSISTENT if status == Status.OWNER_DIED else shared)

    def _ask(self, op: Op, token: int, seconds: float | None) -> bool:
        def undo(status: int) -> calls.Request:
            self._held.remove(self._number, token)
            return self._releases, self._number, token, int(status == Status.OWNER_DIED), 0

        try:
            calls.ask(
                op, self._number, token, what=f"acquiring {self._what}", timeout=seconds,
                granted=functools.partial(self._granted, op, token), undo=undo, meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            return False
        except OwnerDiedError:
            raise
        except BaseException:  # interrupted behind the grant
            if self._held.of(self._number, token) is not None:
                self.release()
            raise
        return True

    def consistent(self) -> None:
        """Say that what it protects is in order again, after `OwnerDiedError`.

        The thread still holds it: it releases it, or acquires it once more (a ``with`` block does), which
        succeeds at once.

        Raises
        ------
        NotOwnerError
            When this thread does not hold it.
        UsageError
            When it holds it without having been told `OwnerDiedError`, or has said so already.
        """
        token = owner_token()
        hold = self._held.of(self._number, token)
        if hold is None:
            raise self._not_owner("the thread that was told OwnerDiedError calls consistent()")
        if hold is not Hold.INCONSISTENT:
            raise UsageError(
                f"{self._what} is consistent already; consistent() is for the thread that got the "
                f"{self._described.kind} with OwnerDiedError, once"
            )
        self._held.add(self._number, token, Hold.REPAIRED)

    def release(self) -> None:
        """Give it up; after `OwnerDiedError` without `consistent`, the next owner gets that error too.

        Raises
        ------
        NotOwnerError
            When this thread does not hold it.
        """
        token = owner_token()
        hold = self._held.of(self._number, token)
        if hold is None:
            raise self._not_owner(f"the thread that acquired a {self._described.kind} releases it")
        inconsistent = int(hold is Hold.INCONSISTENT)
        self._held.remove(self._number, token)
        try:
            calls.tell(self._releases, self._number, token, inconsistent, what=f"releasing {self._what}")
        except ClosedError:
            raise
        except BaseException:  # interrupted: told or not, its home ignores a second release
            self._held.restore(self._number, token, hold)
            raise

    def _not_owner(self, rule: str) -> NotOwnerError:
        thread = threading.current_thread().name
        return NotOwnerError(f"{self._what} is not held by thread {thread!r}; {rule}")

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a ``with`` block; an exception in it is not hidden by what follows from it."""
        if error is None or self._held.of(self._number, owner_token()) is not None:
            self.release()
