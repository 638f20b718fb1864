"""A lease of a server, as an asyncio client has it.

Owns the calls about one lease, and telling of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dsm.callbacks import checked_callback
from dsm.client.calls import Buffer
from dsm.client.lease import Handle, contiguous
from dsm.errors import ClosedError, DSMError, PeerError, UnknownLeaseError
from dsm.log import logger
from dsm.units import milliseconds_of
from dsm.wire import leases as wire
from dsm.wire.leases import Op

if TYPE_CHECKING:
    from dsm.client.asynchronous import AsyncLeaseClient


class AsyncRemoteLease(Handle):
    """Memory of a server for a time; made by `AsyncLeaseClient.lease` and `AsyncLeaseClient.open`.

    As `dsm.RemoteLease`, with methods to await.
    """

    def __init__(
        self, client: AsyncLeaseClient, identity: bytes, key: bytes | None, read_key: bytes | None,
        nbytes: int, remaining_ms: int,
    ) -> None:  # fmt: skip
        super().__init__(identity, key, read_key, nbytes, remaining_ms)
        self._client = client
        #: Set when this handle has renewed or released it.
        self._changed = asyncio.Event()

    async def get(self, offset: int = 0, n: int | None = None) -> bytes:
        """Return bytes of the lease; as `dsm.RemoteLease.get`."""
        first, count = self._range(offset, n)
        payload, _, _ = await self._client._ask(
            Op.GET, token=self._shown, offset=first, count=count, most=count
        )
        return payload

    async def set(self, data: Buffer, offset: int = 0) -> None:
        """Write bytes; as `dsm.RemoteLease.set`.  They must not change before it returns."""
        view = contiguous(data)
        first, count = self._range(offset, len(view))
        self._need_write_key("written to")
        await self._client._ask(Op.SET, token=self._shown, offset=first, count=count, data=view)

    async def renew(self, duration: float | str) -> None:
        """Let the lease end `duration` from now: seconds, or text as in ``"60s"``."""
        milliseconds = milliseconds_of(duration)
        self._need_write_key("renewed")
        asked = time.monotonic()
        await self._client._ask(Op.RENEW, token=self._shown, offset=milliseconds)
        self._lasts(milliseconds, asked)
        self._changed.set()

    async def release(self) -> None:
        """End the lease now; its memory is zeroed and can be leased again."""
        self._need_write_key("released")
        await self._client._ask(Op.RELEASE, token=self._shown)
        self._deadline = -math.inf
        self._changed.set()

    def on_expiry(self, callback: Callable[[AsyncRemoteLease], Awaitable[object] | object]) -> None:
        """Call ``callback(lease)`` once, in the event loop, when the lease has ended.

        As `dsm.RemoteLease.on_expiry`; what the callback returns is awaited if it can be.
        """
        checked_callback(callback)
        self._client._check_open()
        task = asyncio.get_running_loop().create_task(self._wait_expiry(callback))
        self._client._watchers.add(task)
        task.add_done_callback(self._client._watchers.discard)

    async def _wait_expiry(self, callback: Callable[[AsyncRemoteLease], Awaitable[object] | object]) -> None:
        while True:
            self._changed.clear()
            if self._deadline == -math.inf:  # released by this handle
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self.expires_in + 0.001)
                continue
            if self.expires_in > 0:
                continue
            known, asked = self._deadline, time.monotonic()
            try:
                _, _, remaining = await self._client._ask(Op.INFO, token=self._shown, most=wire.ROW.size)
            except UnknownLeaseError:
                break
            except ClosedError:
                if self._client.closed:
                    return
                break
            except DSMError:
                await asyncio.sleep(1.0)
                continue
            if self._deadline == known:  # neither renewed nor released meanwhile
                self._lasts(remaining, asked)
        try:
            found = callback(self)
            if inspect.isawaitable(found):
                await found
        except Exception:
            logger.exception("what was to be called at the end of %r failed", self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._key is None or self._deadline == -math.inf:
            return
        try:
            await self.release()
        except (ClosedError, UnknownLeaseError):  # it has ended
            return
        except PeerError:
            if error is None:
                raise
