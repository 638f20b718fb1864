"""`connect_async` and `AsyncLeaseClient`: the lease service for asyncio.

Owns the connection as an asyncio protocol: requests of any number of tasks are under way at once, and each
waits for its own reply.  A task that is cancelled takes nothing from the others: its reply is dropped when it
comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from dsm.client import calls
from dsm.client.connection import REPEATABLE
from dsm.client.contents import Buffer, fixed
from dsm.client.lease import Handle, contiguous
from dsm.client.options import Secret, checked_timeout, server_address, server_secret
from dsm.errors import (
    ClosedError,
    DSMError,
    NodeLostError,
    PeerError,
    UnknownLeaseError,
    UsageError,
    WaitTimeoutError,
)
from dsm.log import logger
from dsm.units import bytes_of, milliseconds_of
from dsm.wire import leases as wire
from dsm.wire.address import show_address
from dsm.wire.lease_handshake import NONCE_BYTES
from dsm.wire.lease_handshake import Client as Handshake
from dsm.wire.leases import REPLY, REPLY_BYTES, Op

#: What is received at once when no long reply is due.
_BUFFER_BYTES = 64 * 1024

#: While bytes wait to be taken the timeout is looked after so many times in its length.
_LOOKS = 8

#: Payload, a and b of a reply.
Answer = tuple[bytes, int, int]


class _SilentError(ConnectionError):
    """The server said nothing and took nothing for the timeout."""


class _Call:
    """A request that is under way."""

    __slots__ = ("expected", "future", "most")

    def __init__(self, expected: tuple[int, int], most: int, future: asyncio.Future[Answer]) -> None:
        self.expected = expected
        self.most = most
        self.future = future


class _Protocol(asyncio.BufferedProtocol):
    """One socket: the handshake, then replies in the order of requests."""

    def __init__(self, secret: bytes | None, loop: asyncio.AbstractEventLoop) -> None:
        self._handshake: Handshake | None = Handshake(secret, os.urandom(NONCE_BYTES))
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        #: A long reply that is being received: its head, its payload, and how much of that is here.
        self._head: tuple[int, int, int] | None = None
        self._body = bytearray()
        self._body_filled = 0
        self._calls: deque[_Call] = deque()
        self._number = 0
        #: While the socket takes no more: done when it does again, or never will.
        self.room: asyncio.Future[None] | None = None
        #: Done when the handshake is.
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: Exception | None = None
        #: When the server last said something, or was last seen to have taken something.
        self._heard = time.monotonic()
        #: Bytes that were handed to the transport, and those of them that had left it at the last look.
        self._handed = 0
        self._taken = 0

    # -- asyncio's side ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) and self._handshake is not None
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._write(self._handshake.start())

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def pause_writing(self) -> None:
        if self.room is None:
            self.room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self.room = self.room, None
        if room is not None:
            room.set_result(None)

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._head is not None:
            return memoryview(self._body)[self._body_filled :]
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = time.monotonic()
        try:
            if self._head is not None:
                self._body_filled += nbytes
                if self._body_filled == len(self._body):
                    self._finish(self._head, bytes(self._body))
                    self._head, self._body = None, bytearray()
                return
            self._filled += nbytes
            if self._handshake is not None:
                self._shake_hands(self._handshake)
            if self._handshake is None:
                self._cut()
        except Exception as error:
            self._fail(error)

    def _shake_hands(self, handshake: Handshake) -> None:
        out = handshake.feed(bytes(self._buffer[: self._filled]))
        self._filled = 0
        if out:
            self._write(out)
        if handshake.done:
            self._handshake = None
            self._buffer[: len(handshake.leftover)] = handshake.leftover
            self._filled = len(handshake.leftover)
            if not self.ready.done():
                self.ready.set_result(None)

    def _cut(self) -> None:
        """Give replies to who waits for them."""
        buffer, end, position = self._buffer, self._filled, 0
        while end - position >= REPLY_BYTES:
            op, status, zero, number, payload, a, b = REPLY.unpack_from(buffer, position)
            call = self._calls[0] if self._calls else None
            expected = call.expected if call else (0, 0)
            wire.check_reply(expected, op, status, zero, number, payload, call.most if call else 0)
            first = position + REPLY_BYTES
            if payload > end - first:
                if payload + REPLY_BYTES > _BUFFER_BYTES:  # the rest goes straight to its place
                    self._head = status, a, b
                    self._body = bytearray(payload)
                    self._body_filled = end - first
                    self._body[: end - first] = buffer[first:end]
                    position = end
                break
            self._finish((status, a, b), bytes(buffer[first : first + payload]))
            position = first + payload
        if position:
            buffer[: end - position] = bytes(buffer[position:end])
        self._filled = end - position

    def _finish(self, head: tuple[int, int, int], payload: bytes) -> None:
        status, a, b = head
        future = self._calls.popleft().future
        if future.done():  # cancelled
            return
        if status:
            future.set_exception(wire.error_of(status, payload))
        else:
            future.set_result((payload, a, b))

    def _write(self, data: Buffer) -> None:
        assert self._transport is not None
        self._handed += len(data)
        self._transport.write(data)

    def _fail(self, error: Exception) -> None:
        """The connection is over: whoever waits is told why."""
        if self.lost is None:
            self.lost = error
        if self._transport is not None:
            with contextlib.suppress(OSError):  # a child of fork may have the socket, too
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        if self._loop.is_closed():  # nobody waits any more, and nobody can be told
            return
        if self._transport is not None:
            self._transport.abort()
        self.resume_writing()
        waiting: list[asyncio.Future[Any]] = [self.ready, *(call.future for call in self._calls)]
        self._calls.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(_another(error))
                future.exception()  # nobody need look at it

    # -- the client's side -------------------------------------------------------------------------------

    def heard(self) -> float:
        """Return when the server last said or took something, as far as can be seen."""
        if self._transport is not None:
            taken = self._handed - self._transport.get_write_buffer_size()
            if taken > self._taken:
                self._taken = taken
                self._heard = time.monotonic()
        return self._heard

    @property
    def over(self) -> bool:
        """Whether the connection broke; the transport knows a round earlier than this is told."""
        return self.lost is not None or self._transport is None or self._transport.is_closing()

    @property
    def sending(self) -> bool:
        """Whether bytes wait to be taken."""
        return self._taken < self._handed

    def ask(
        self, op: Op, token: bytes, offset: int, count: int, data: Buffer, most: int
    ) -> asyncio.Future[Answer]:
        """Send a request, when there is room; return the future of its reply."""
        if self.over:
            raise _another(self.lost or ConnectionResetError("the connection was closed"))
        # All that may raise comes first: half a request would take the next one for its data.  The transport
        # may keep what it is given longer than the caller waits for the reply: it can be cancelled.
        contents = fixed(data)
        number = (self._number + 1) & 0xFFFFFFFF
        header = wire.request(op, number, payload=len(data), offset=offset, count=count, token=token)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._number = number
        self._calls.append(_Call((op, number), most, future))
        if len(contents) > _BUFFER_BYTES:
            self._write(header)
            self._write(contents)
        else:
            self._write(header + contents)
        return future

    def give_up(self) -> None:
        """The server is silent: end the connection."""
        self._fail(_SilentError("the server is silent"))

    def close(self) -> None:
        """End the connection."""
        self._fail(ConnectionResetError("the connection was closed"))


def _another(error: Exception) -> Exception:
    """Return the same error for somebody else: each has a traceback of its own."""
    return type(error)(*error.args)


class AsyncLeaseClient:
    """A persistent connection to a lease server; made by `connect_async`.

    Any number of tasks may use it at once: their requests are under way together.  What a broken connection
    means for a call is as with `dsm.LeaseClient`.
    """

    def __init__(self, address: tuple[str, int], secret: bytes | None, timeout: float | None) -> None:
        self._address = address
        self._secret = secret
        self._timeout = timeout
        self._protocol: _Protocol | None = None
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

    async def _connected(self) -> _Protocol:
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
                raise _another(self._failure)
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
            raise ClosedError("this lease client was closed; connect again")

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Protocol:
        try:
            async with asyncio.timeout(self._timeout):
                made: tuple[Any, _Protocol] = await loop.create_connection(
                    lambda: _Protocol(self._secret, loop), *self._address
                )
                try:
                    await made[1].ready
                except BaseException:
                    made[1].close()
                    raise
                return made[1]
        except DSMError as error:
            raise type(error)(f"{self.address}: {error}") from None
        except TimeoutError:
            raise WaitTimeoutError(
                f"no lease server answers at {self.address} within {self._timeout} s"
            ) from None
        except OSError as error:
            raise NodeLostError(
                f"no lease server answers at {self.address}: {error.strerror or error}; start one with "
                "`dsm serve`, or check the address"
            ) from None
        except ValueError as error:  # also of names that are none in the domain name system
            raise UsageError(f"{self.address} is no address: {error}; write HOST:PORT") from None

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
            except _SilentError:
                raise WaitTimeoutError(
                    f"the lease server at {self.address} did not answer {op.name} within {self._timeout} s; "
                    "it may have done it all the same"
                ) from None
            except OSError as error:
                if isinstance(error, DSMError):
                    raise
                if self._closed:
                    raise ClosedError("this lease client was closed while it waited for the server") from None
                if (op in REPEATABLE or not sent) and not again:
                    again = True
                    continue
                raise NodeLostError(
                    f"the connection to the lease server at {self.address} broke in {op.name}: "
                    f"{error.strerror or error}; it may have done it all the same"
                ) from None

    async def _wait(self, protocol: _Protocol, future: asyncio.Future[Any]) -> None:
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
        self._check_writable("set()")
        await self._client._ask(Op.SET, token=self._shown, offset=first, count=count, data=view)

    async def renew(self, duration: float | str) -> None:
        """Let the lease end `duration` from now: seconds, or text as in ``"60s"``."""
        milliseconds = milliseconds_of(duration)
        self._check_writable("renew()")
        asked = time.monotonic()
        await self._client._ask(Op.RENEW, token=self._shown, offset=milliseconds)
        self._lasts(milliseconds, asked)
        self._changed.set()

    async def release(self) -> None:
        """End the lease now; its memory is zeroed and can be leased again."""
        self._check_writable("release()")
        await self._client._ask(Op.RELEASE, token=self._shown)
        self._deadline = -math.inf
        self._changed.set()

    def on_expiry(self, callback: Callable[[AsyncRemoteLease], Awaitable[object] | object]) -> None:
        """Call ``callback(lease)`` once, in the event loop, when the lease has ended.

        As `dsm.RemoteLease.on_expiry`; what the callback returns is awaited if it can be.
        """
        if not callable(callback):
            raise UsageError(f"callback is a {type(callback).__name__}; pass a function of one argument")
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
            asked = time.monotonic()
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
            if self._deadline != -math.inf:
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
