"""One connection to a lease server as an asyncio protocol.

Owns the handshake, and replies in the order of requests: any number are under way, each with a future.
Who waits how long, and what a broken connection means for a call, is in `dsm.client.asynchronous`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from typing import Any

from dsm.client.calls import Buffer
from dsm.client.contents import fixed
from dsm.wire import leases as wire
from dsm.wire.lease_handshake import NONCE_BYTES
from dsm.wire.lease_handshake import Client as Handshake
from dsm.wire.leases import REPLY, REPLY_BYTES, Op

#: What is received at once when no long reply is due.
_BUFFER_BYTES = 64 * 1024

#: Payload, a and b of a reply.
Answer = tuple[bytes, int, int]


class SilentError(ConnectionError):
    """The server said nothing and took nothing for the timeout."""


class _Call:
    """A request that is under way."""

    __slots__ = ("expected", "future", "most")

    def __init__(self, expected: tuple[int, int], most: int, future: asyncio.Future[Answer]) -> None:
        self.expected = expected
        self.most = most
        self.future = future


class Protocol(asyncio.BufferedProtocol):
    """One socket: the handshake, then replies in the order of requests."""

    def __init__(self, secret: bytes | None, loop: asyncio.AbstractEventLoop) -> None:
        self._handshake: Handshake | None = Handshake(secret, os.urandom(NONCE_BYTES))
        self._loop = loop
        #: Whose the connection is: a child of fork has its socket, too.
        self._pid = os.getpid()
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
        if self._transport is not None and os.getpid() == self._pid:
            with contextlib.suppress(OSError):  # else it would stay open in children of fork
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        if self._loop.is_closed():  # nobody waits any more, and nobody can be told
            return
        if self._transport is not None and os.getpid() == self._pid:  # the loop's epoll is shared, too
            self._transport.abort()
        self.resume_writing()
        waiting: list[asyncio.Future[Any]] = [self.ready, *(call.future for call in self._calls)]
        self._calls.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(another(error))
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
            raise another(self.lost or ConnectionResetError("the connection was closed"))
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
        self._fail(SilentError("the server is silent"))

    def close(self) -> None:
        """End the connection."""
        self._fail(ConnectionResetError("the connection was closed"))


def another(error: Exception) -> Exception:
    """Return the same error for somebody else: each has a traceback of its own."""
    return type(error)(*error.args)
