"""`connect_async` and `AsyncLeaseClient`: the lease service for asyncio.

Owns the calls that are about a server as a whole, connecting, and how long is waited.  The requests of all
tasks are under way together on one connection (`dsm.client.protocol`); a task that is cancelled takes nothing
from the others: its reply is dropped when it comes.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

from dsm.client import calls, failures
from dsm.client.async_lease import AsyncRemoteLease
from dsm.client.calls import Buffer
from dsm.client.options import Secret, checked_timeout, server_address, server_secret
from dsm.client.protocol import Answer, Protocol, SilentError, another
from dsm.errors import DSMError, UsageError
from dsm.units import bytes_of, milliseconds_of
from dsm.wire import leases as wire
from dsm.wire.address import show_address
from dsm.wire.leases import Op

__all__ = ["AsyncLeaseClient", "AsyncRemoteLease", "connect_async"]

#: While bytes wait to be taken the timeout is looked after so many times in its length.
_LOOKS = 8


class AsyncLeaseClient:
    """A persistent connection to a lease server; made by `connect_async`.

    Any number of tasks may use it at once: their requests are under way together.  What a broken connection
    means for a call is as with `dsm.LeaseClient`.
    """

    def __init__(self, address: tuple[str, int], secret: bytes | None, timeout: float | None) -> None:
        self._address = address
        self._secret = secret
        self._timeout = timeout
        self._protocol: Protocol | None = None
        self._connecting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: How often a connection was tried, and why the last one was in vain.
        self._tries = 0
        self._failure: DSMError | None = None
        self._closed = False
        self._watchers: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The server, as ``HOST:PORT``."""
        return show_address(*self._address)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    # -- leases ------------------------------------------------------------------------------------------

    async def lease(self, nbytes: int | str, duration: float | str) -> AsyncRemoteLease:
        """Lease memory for a time; as `dsm.LeaseClient.lease`."""
        size, milliseconds = bytes_of(nbytes, "nbytes"), milliseconds_of(duration)
        payload, granted, remaining = await self._ask(
            Op.LEASE, offset=milliseconds, count=size, most=wire.KEYS.size
        )
        return AsyncRemoteLease(self, *calls.opened(payload), granted, remaining)

    async def open(self, token: str) -> AsyncRemoteLease:
        """Return the lease that a token stands for; as `dsm.LeaseClient.open`."""
        payload, _, _ = await self._ask(Op.INFO, token=calls.shown(token), most=wire.ROW.size)
        return AsyncRemoteLease(self, *calls.described(token, payload))

    async def leases(self) -> list[calls.LeaseInfo]:
        """Return the server's leases, soonest end first; their keys are not told."""
        found: list[calls.LeaseInfo] = []
        while True:
            payload, total, _ = await self._ask(
                Op.LIST, offset=len(found), count=calls.ROWS_AT_ONCE, most=calls.ROWS_BYTES
            )
            part = calls.infos(payload)
            found += part
            if not part or len(found) >= total:
                return found

    async def figures(self) -> dict[str, int]:
        """Return the server's figures by name."""
        return wire.unpack_figures((await self._ask(Op.FIGURES, most=calls.FIGURES_BYTES))[0])

    async def ping(self) -> float:
        """Return the seconds that a question and its answer take."""
        start = time.perf_counter()
        await self._ask(Op.PING)
        return time.perf_counter() - start

    # -- life --------------------------------------------------------------------------------------------

    async def clone(self) -> AsyncLeaseClient:
        """Return a client of the same server with a connection of its own."""
        client = AsyncLeaseClient(self._address, self._secret, self._timeout)
        await client._connected()
        return client

    async def close(self) -> None:
        """Close the connection; leases go on until they end.  Closing twice is allowed."""
        self._closed = True
        for task in self._watchers - {asyncio.current_task()}:
            task.cancel()
        if self._protocol is not None:
            self._protocol.close()
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next round

    async def __aenter__(self) -> AsyncLeaseClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<dsm.AsyncLeaseClient of {self.address}{', closed' if self._closed else ''}>"

    # -- requests ----------------------------------------------------------------------------------------

    async def _connected(self) -> Protocol:
        """Return the connection, made anew if it broke."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise UsageError("this lease client belongs to another event loop; connect in this one")
            self._loop = loop
        tries = self._tries
        async with self._connecting:
            self._check_open()
            protocol = self._protocol
            if protocol is not None and not protocol.over:
                return protocol
            if self._failure is not None and self._tries > tries:  # tried while this task waited for its turn
                raise another(self._failure)
            self._tries += 1
            self._failure = None
            try:
                protocol = await self._connect(loop)
            except DSMError as error:
                self._failure = error
                raise
            if self._closed:
                protocol.close()
            self._check_open()
            self._protocol = protocol
            return protocol

    def _check_open(self) -> None:
        if self._closed:
            raise failures.closed()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Protocol:
        try:
            async with asyncio.timeout(self._timeout):
                made: tuple[Any, Protocol] = await loop.create_connection(
                    lambda: Protocol(self._secret, loop), *self._address
                )
                try:
                    await made[1].ready
                except BaseException:
                    made[1].close()
                    raise
                return made[1]
        except DSMError as error:
            raise type(error)(f"{self.address}: {error}") from None
        except (OSError, ValueError) as error:
            raise failures.not_reached(self.address, error, self._timeout) from None

    async def _ask(
        self, op: Op, *, token: bytes = wire.NO_TOKEN, offset: int = 0, count: int = 0, data: Buffer = b"",
        most: int = 0,
    ) -> Answer:  # fmt: skip
        again = False
        while True:
            protocol = await self._connected()
            sent = False
            try:
                while (room := protocol.room) is not None:
                    await self._wait(protocol, room)
                future = protocol.ask(op, token, offset, count, data, most)
                sent = True
                try:
                    await self._wait(protocol, future)
                except asyncio.CancelledError:
                    future.cancel()  # its reply is dropped when it comes
                    raise
                return future.result()
            except SilentError:
                raise failures.silent(self.address, op, self._timeout) from None
            except OSError as error:
                if isinstance(error, DSMError):
                    raise
                if self._closed:
                    raise failures.closed_meanwhile() from None
                if (op in failures.REPEATABLE or not sent) and not again:
                    again = True
                    continue
                raise failures.broken(self.address, op, error) from None

    async def _wait(self, protocol: Protocol, future: asyncio.Future[Any]) -> None:
        """Wait until a future is done; give the connection up when the server is silent for the timeout."""
        asked = time.monotonic()
        while not future.done():
            left = None
            if self._timeout is not None:
                left = max(asked, protocol.heard()) + self._timeout - time.monotonic()
                if left <= 0:
                    protocol.give_up()
                    return
                if protocol.sending:
                    left = min(left, self._timeout / _LOOKS)
            await asyncio.wait((future,), timeout=left)


async def connect_async(
    address: str | None = None, *, secret: Secret = None, timeout: float | None = 30.0
) -> AsyncLeaseClient:
    """Connect to a lease server from asyncio; parameters and errors as of `dsm.connect`.

    Examples
    --------
    >>> client = await dsm.connect_async("127.0.0.1:7412")  # doctest: +SKIP
    >>> lease = await client.lease("1K", "60s")  # doctest: +SKIP
    >>> parts = await asyncio.gather(*(lease.get(i, 1) for i in range(100)))  # doctest: +SKIP
    """
    client = AsyncLeaseClient(server_address(address), server_secret(secret), checked_timeout(timeout))
    await client._connected()
    return client
