"""`Lease`: memory for a time, mapped by this process.

Owns what a holder can do with a lease.  Who has which until when is the coordinator's to say: this process
counts down what it was told, never too slowly, and asks when that has passed.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dsm import units
from dsm.callbacks import checked_callback
from dsm.errors import ClosedError, LeaseExpiredError, UsageError
from dsm.memory.handle import LeaseHandle
from dsm.wire import control, leasing
from dsm.worker import awaited, layouts
from dsm.worker.leasebook import Held
from dsm.worker.leaseref import LeaseRef, open_reference
from dsm.worker.regions import LEASE_IS_OVER, Region

if TYPE_CHECKING:
    from dsm.worker.node import Node

R = TypeVar("R")
#: Copies of more bytes bring the pages first, all at once.
_BULK_BYTES = 64 * 1024
#: Another thread, which failed on a page, has the interpreter for so long before this one looks again.
_TELL_S = 0.002


class _ReadOnly:
    """The bytes of a region for numpy, which cannot be made writeable."""

    def __init__(self, region: Region) -> None:
        self._region = region

    @property
    def __array_interface__(self) -> dict[str, Any]:
        address, _ = self._region.__array_interface__["data"]
        return {**self._region.__array_interface__, "data": (address, True)}


class Lease(LeaseHandle):
    """Memory of the cluster for a time; made by `Node.lease` and `Node.open_lease`.

    Every lease has whole pages of its own, which are zero in the beginning and no other lease ever gets.
    After its end, by time or by `release`, in whatever process, every use raises `LeaseExpiredError`: calls,
    and accesses to its arrays and views of them.  As a context manager it releases the lease.

    Attributes
    ----------
    id : uuid.UUID
        The same in every worker; no secret.
    nbytes : int
        Size in bytes.
    key : bytes or None
        The capability to write, renew and release; None when it was opened with the read key.
    read_key : bytes or None
        The capability to read; None when it was opened with the write key, from which it cannot be told.
    """

    def __init__(
        self,
        node: Node,
        region: Region,
        held: Held,
        identity: bytes,
        write_key: bytes | None,
        read_key: bytes | None,
    ) -> None:
        super().__init__(identity, write_key, read_key, region.size)
        self._node = node
        self._region = region
        self._held = held
        self.id = uuid.UUID(bytes=identity)
        self._memory: np.ndarray[Any, Any] = np.asarray(
            region if write_key is not None else _ReadOnly(region)
        )

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def expires_in(self) -> float:
        """Seconds that it lasts at least; 0.0 when it has ended.

        Counts down here from what the coordinator said last.  Only when that has passed it is asked again:
        another process may have renewed the lease.  One that has shortened it is noticed when it ends, or
        by the first access that is too late, of whatever thread.
        """
        sure = self._held.sure
        while not self._held.ended:
            left = self._held.remaining_ns
            if sure and left > 0:
                return left / 1e9
            try:
                self._ask()
            except LeaseExpiredError:
                break
            sure = True
        return 0.0

    # -- memory ------------------------------------------------------------------------------------------

    @property
    def buffer(self) -> memoryview:
        """Its memory as a memoryview of bytes; read-only without the write key."""
        self._check()
        memory: Any = self._memory
        return memoryview(memory)

    def array(
        self,
        shape: layouts.ShapeLike | None = None,
        dtype: npt.DTypeLike = "u1",
        offset: int = 0,
        order: str = "C",
    ) -> np.ndarray[Any, Any]:
        """Return an array over the lease, or a part of it; no copy.

        Parameters
        ----------
        shape
            An integer or a tuple of integers; None: one dimension, as many items as there are.
        dtype
            Any dtype without Python objects.
        offset
            Byte of the lease where the array begins.
        order
            ``"C"`` or ``"F"``.

        Returns
        -------
        numpy.ndarray
            Not writeable when the lease was opened with its read key.

        Raises
        ------
        UsageError
            The array would not lie inside the lease; without a shape, the size is no multiple of the items'.
        LeaseExpiredError
            The lease has ended.
        """
        self._check()
        if shape is None:
            start = layouts.number(offset, "offset", "pass a byte of the lease")
            size = layouts.check_dtype(dtype).itemsize
            if not size or not 0 <= start <= self.nbytes or (self.nbytes - start) % size:
                raise UsageError(
                    f"the {self.nbytes} bytes of {self!r} from offset {start} are no whole number of items "
                    f"of {size} bytes; pass a shape"
                )
            shape = (self.nbytes - start) // size
        return self._region._cut(self._memory, shape, dtype, offset, order)

    def get(self, offset: int = 0, n: int | None = None) -> bytes:
        """Return a copy of its bytes.

        Parameters
        ----------
        offset
            First byte.
        n
            How many; None: all from there on.

        Raises
        ------
        UsageError
            They do not lie inside the lease.
        LeaseExpiredError
            The lease has ended: what was read after the end that was known here is not returned.
        """
        first, count = self._range(offset, n)
        self._check()
        return self._guarded(first, count, False, lambda part: part.tobytes())

    def set(self, data: Any, offset: int = 0) -> None:
        """Write bytes.

        Parameters
        ----------
        data
            Bytes, or anything with a contiguous buffer.
        offset
            Where the first one goes.

        Raises
        ------
        UsageError
            They do not fit into the lease there, or `data` has no buffer.
        NotPermittedError
            It was opened with the read key.
        LeaseExpiredError
            The lease has ended.
        """
        try:
            source = np.frombuffer(memoryview(data).cast("B"), "u1")
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"data of type {type(data).__name__} cannot be written to a lease ({error}); "
                "pass bytes, a contiguous array, or what its view('u1') gives"
            ) from None
        first, count = self._range(offset, len(source))
        self._check()
        self._need_write_key("written to")

        def write(part: np.ndarray[Any, Any]) -> None:
            part[:] = source

        self._guarded(first, count, True, write)

    def _guarded(self, first: int, count: int, write: bool, use: Callable[[np.ndarray[Any, Any]], R]) -> R:
        """Use a part of the memory, and make sure that the lease had not ended then.

        Another thread may have been told of the end: it got poison in place of the page, and so did this one,
        without a fault.  If the lease has not ended after all, the poison was of another error: the pages are
        brought, and the use is repeated when that thread has had some time to be told.
        """
        part = self._memory[first : first + count]
        bring = count > _BULK_BYTES
        while True:
            mark = self._held.mark
            try:
                if bring:
                    self._node.prefetch(part, write)
                result = use(part)
                self._node.check()
            except (ClosedError, UsageError):
                self._check()
                raise
            if not self._held.sure:
                self._check()
            if 0 <= mark == self._held.mark:
                return result
            bring = True
            time.sleep(_TELL_S)

    # -- time --------------------------------------------------------------------------------------------

    def renew(self, duration: float | str) -> None:
        """Let it end that long from now, be that later or sooner than it would have.

        Parameters
        ----------
        duration
            Seconds, or text as in ``"250ms"``, ``"60s"``, ``"5m"``, ``"1h"``.

        Raises
        ------
        LeaseExpiredError
            It has ended already.
        NotPermittedError
            It was opened with the read key.
        UsageError
            The duration is none.
        """
        duration_ms = units.milliseconds_of(duration)
        self._check()
        self._need_write_key("renewed")
        assert self.key is not None
        self._told(leasing.RenewLease(self.id.bytes, self.key, duration_ms))

    @awaited.elsewhere
    def release(self) -> None:
        """End it now, for everybody; its memory is gone.

        Returns when no process reaches the memory any more; processes that are stopped are not waited for.

        Raises
        ------
        LeaseExpiredError
            It has ended already.
        NotPermittedError
            It was opened with the read key.
        """
        self._check()
        self._need_write_key("released")
        assert self.key is not None
        self._call(leasing.ReleaseLease(self.id.bytes, self.key), control.Done)
        self._node._leases.ended(self._held.number)

    def on_expiry(self, callback: Callable[[Lease], object]) -> None:
        """Call ``callback(lease)`` once, in another thread, when the lease has ended.

        However it ends: it ran out (perhaps later than was known now, when it was renewed), or was released
        here or elsewhere.  Callbacks run one after the other in one thread of this process.  What one raises
        is logged (logger ``dsm``).  They are not called when this process leaves its node before.

        Parameters
        ----------
        callback
            Any number of them can be registered; when the lease has ended already it is called at once.

        Raises
        ------
        UsageError
            It cannot be called.
        """
        checked_callback(callback)
        self._node._leases.on_end(self._held, callback, self)

    def _told(self, question: leasing.RenewLease | leasing.AskLease) -> None:
        """Ask the coordinator, and note what it says about the time that is left."""
        asked_ns, mark = time.monotonic_ns(), self._held.mark
        answer = self._call(question, leasing.LeaseTime)
        self._held.told(answer.remaining_ns, asked_ns, mark)

    def _call(self, question: leasing.Request, expect: type[R]) -> R:
        """Ask the coordinator; when it says that the lease has ended, it has ended here, too."""
        try:
            return self._node._connection.session.call(question, expect)[0]
        except LeaseExpiredError:
            self._node._leases.ended(self._held.number)
            raise

    def _ask(self) -> None:
        self._told(leasing.AskLease(self.id.bytes, self._best_key))

    # -- checks ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise unless the lease is alive, as far as can be known."""
        if self._held.ended:
            raise LeaseExpiredError(f"lease {self.id} {LEASE_IS_OVER}")
        if self._node.closed:
            raise ClosedError(f"{self!r} cannot be used: this process has closed its node; attach again")
        if not self._held.sure:
            self._ask()

    # -- protocols ---------------------------------------------------------------------------------------

    def __enter__(self) -> Lease:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it, if it was opened with the write key and has not ended."""
        if self.key is not None and not self._held.ended and not self._node.closed:
            with contextlib.suppress(LeaseExpiredError):
                self.release()

    def __repr__(self) -> str:
        access = "" if self.writable else ", read-only"
        over = ", ended" if self._held.ended else ""
        return f"<dsm.Lease {self.id}: {self.nbytes} bytes{access}{over}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_reference, (self._reference(),)

    def _reference(self) -> LeaseRef:
        return LeaseRef(self._node.cluster, self.id, self._best_key)
