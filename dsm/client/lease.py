"""A lease of a server, as a client has it.

Owns what the handle knows: id, keys, size, when it ends.  Bytes are fetched and stored by its client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from dsm.errors import UsageError
from dsm.memory.handle import LeaseHandle
from dsm.units import milliseconds_of

if TYPE_CHECKING:
    import uuid

    from dsm.client.calls import Buffer
    from dsm.client.sync import LeaseClient


class Handle(LeaseHandle):
    """What a client's handle knows: also how long the lease lasts, by what was told last."""

    def __init__(
        self, identity: bytes, key: bytes | None, read_key: bytes | None, nbytes: int, remaining_ms: int
    ) -> None:
        super().__init__(identity, key, read_key, nbytes)
        #: Id and the best key, as requests show them.
        self._shown = identity + self._best_key
        self._deadline = 0.0
        self._lasts(remaining_ms)

    def _lasts(self, remaining_ms: int, asked: float | None = None) -> None:
        """Note how long it lasts from when that was asked."""
        self._deadline = (time.monotonic() if asked is None else asked) + remaining_ms / 1000

    @property
    def id(self) -> uuid.UUID:
        """The lease's id; it is no secret."""
        import uuid

        return uuid.UUID(bytes=self._id)

    @property
    def expires_in(self) -> float:
        """Seconds until the lease ends, as far as this handle knows; 0 when it has ended."""
        return max(0.0, self._deadline - time.monotonic())

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"{self!r} cannot be pickled: its connection is this process's; send its token and open that"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}: {self._nbytes} bytes, {self.expires_in:.1f} s left>"


class RemoteLease(Handle):
    """Memory of a server for a time; made by `LeaseClient.lease` and `LeaseClient.open`.

    Also a context manager, which releases it.  May be used by several threads; they take turns on the
    client's connection (`LeaseClient.clone` gives another one).
    """

    def __init__(
        self, client: LeaseClient, identity: bytes, key: bytes | None, read_key: bytes | None, nbytes: int,
        remaining_ms: int,
    ) -> None:  # fmt: skip
        super().__init__(identity, key, read_key, nbytes, remaining_ms)
        self._client = client
        self._get = client._connection.get
        self._set = client._connection.set

    def get(self, offset: int = 0, n: int | None = None) -> bytes:
        """Return bytes of the lease.

        Parameters
        ----------
        offset
            The first one.
        n
            How many; default: all behind it.

        Raises
        ------
        LeaseExpiredError, UnknownLeaseError
            The lease has ended; or the server does not know it (any more).
        UsageError
            They do not lie in the lease.
        """
        if type(offset) is not int or type(n) is not int or offset < 0 or n < 0 or offset + n > self._nbytes:
            offset, n = self._range(offset, n)
        return self._get(self._shown, offset, n)

    def set(self, data: Buffer, offset: int = 0) -> None:
        """Write bytes.

        Parameters
        ----------
        data
            Anything with contiguous bytes: also arrays.
        offset
            Where the first one goes.

        Raises
        ------
        NotPermittedError
            This handle may only read.
        LeaseExpiredError, UnknownLeaseError, UsageError
            As `get`.
        """
        if type(data) is not bytes:
            data = contiguous(data)
        if type(offset) is not int or offset < 0 or offset + len(data) > self._nbytes:
            offset, _ = self._range(offset, len(data))
        if self._key is None:
            self._need_write_key("written to")
        self._set(self._shown, offset, data)

    def renew(self, duration: float | str) -> None:
        """Let the lease end `duration` from now: seconds, or text as in ``"60s"``."""
        milliseconds = milliseconds_of(duration)
        self._need_write_key("renewed")
        asked = time.monotonic()
        self._client._renew(self._shown, milliseconds)
        self._client._timed(self, asked + milliseconds / 1000)

    def release(self) -> None:
        """End the lease now; its memory is zeroed and can be leased again."""
        self._need_write_key("released")
        self._client._release(self._shown)
        self._client._timed(self, -math.inf)

    def on_expiry(self, callback: Callable[[RemoteLease], object]) -> None:
        """Call ``callback(lease)`` once, in a thread of the client, when the lease has ended.

        However it ends: it ran out (later than is known now, when somebody renews it), or this handle
        released it. What else released it is noticed when its time would have run out.  What a callback
        raises is logged (logger ``dsm``).  Not called any more when the client was closed.

        Raises
        ------
        UsageError
            The callback cannot be called.
        ClosedError
            The client was closed.
        """
        self._client._watch(self, callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from dsm.errors import ClosedError, PeerError, UnknownLeaseError

        if self._key is None or self._deadline == -math.inf:
            return
        try:
            self.release()
        except (ClosedError, UnknownLeaseError):  # it has ended
            return
        except PeerError:
            if error is None:
                raise


def contiguous(data: Any) -> memoryview:
    """Return anything with contiguous bytes as such.

    Raises
    ------
    UsageError
        It has none.
    """
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{type(data).__name__} cannot be written to a lease: {error}; pass bytes, a contiguous array, "
            "or what its view('u1') gives"
        ) from None
