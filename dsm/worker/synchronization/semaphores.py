"""Semaphores as users hold them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, SupportsIndex

from dsm.errors import UsageError, WaitTimeoutError
from dsm.types import MAX_UNITS, SyncObject
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.synchronization.handles import Handle
from dsm.worker.synchronization.numbers import number_of
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.owners import owner_token


class Semaphore(Handle):
    """A number of units that the threads of the cluster take and give back; made by `Node.semaphore`.

    Who waits is served in turn; who wants many is not overtaken by who wants few.

    *Unbounded* (the default), as `threading.Semaphore`: units belong to nobody.  Any thread may release some,
    also to say that there is something to fetch.  What a process had taken when it died is not given back:
    nobody knows whether it was used.

    *Bounded*, as `threading.BoundedSemaphore`, and robust: there are never more units than in the beginning.
    Each that is taken belongs to the process that took it.  Only that process gives it back, and what it has
    when it dies or ends is free again.  This is what limits how many use something at a time.
    """

    def __init__(self, described: SyncObject, timeout: float | None) -> None:
        super().__init__(described)
        self._timeout = timeout

    @property
    def bounded(self) -> bool:
        """Whether its units belong to who has taken them."""
        return self._described.bounded

    def acquire(self, n: SupportsIndex = 1, timeout: float | None = None) -> bool:
        """Take `n` units, all at once.

        Parameters
        ----------
        n
            How many.
        timeout
            Seconds to wait; 0 tries once; None (default) waits without end.

        Returns
        -------
        bool
            True when they are taken, False when the time was over: then none is.

        Raises
        ------
        UsageError
            When `n` is none, or more than a bounded semaphore has.
        PageLostError
            When the node that kept the semaphore has died.
        """
        units, seconds, token = self._units(n), calls.check_timeout(timeout), owner_token()
        if self.bounded and units > self._described.value:
            raise UsageError(f"n is {units}; {self._what} has {self._described.value} units in all")
        taken: list[int] = []

        def undo(status: int) -> calls.Request:
            taken.clear()
            return Op.SEMAPHORE_RELEASE, self._number, token, units, 0

        try:
            calls.ask(
                Op.SEMAPHORE_ACQUIRE, self._number, token, units, what=f"acquiring {self._what}",
                timeout=seconds, granted=taken.append, undo=undo, meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            return False
        except BaseException:  # interrupted behind the grant
            if taken:
                self.release(units)
            raise
        return True

    def release(self, n: SupportsIndex = 1) -> None:
        """Give `n` units back, or (unbounded) add them.

        Raises
        ------
        NotOwnerError
            When it is bounded, and this process has not taken so many.
        UsageError
            When `n` is none, or an unbounded semaphore would have more than 2**63 - 1 units.
        """
        calls.ask(
            Op.SEMAPHORE_RELEASE, self._number, owner_token(), self._units(n),
            what=f"releasing {self._what}", brief=True, meaning=self._meaning,
        )  # fmt: skip

    def _units(self, n: SupportsIndex) -> int:
        return number_of(n, "n", 1, MAX_UNITS)

    def __enter__(self) -> Semaphore:
        if not self.acquire(1, self._timeout):
            raise WaitTimeoutError(f"{self._what} had no free unit within {self._timeout} s; none is taken")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<dsm.Semaphore {self.name!r}{', bounded' * self.bounded}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("semaphore", self.name, self._described.value, self.bounded, self._timeout)
