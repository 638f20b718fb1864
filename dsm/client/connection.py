"""One connection to a lease server, used by one thread at a time.

Owns the socket: connecting, the handshake, sending a request and receiving its reply, and what is done when
the connection breaks.  The path of a small GET or SET is two system calls and few steps besides; after a
request the socket is polled for a short time, yielding the processor, as long as that has paid lately.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from dsm.client import failures
from dsm.client.calls import Buffer
from dsm.client.contents import fixed, send_all
from dsm.client.exchange import Asked, exchange
from dsm.errors import DSMError, NodeLostError, UsageError, WireError
from dsm.limits import MAX_LEASE_ERROR_BYTES
from dsm.wire import leases as wire
from dsm.wire.address import show_address
from dsm.wire.lease_handshake import NONCE_BYTES
from dsm.wire.lease_handshake import Client as Handshake
from dsm.wire.leases import REPLY, REPLY_BYTES, REQUEST, Op

#: A reply up to this size is received by one call.
_AT_ONCE: Final = 256 * 1024
#: How long a reply is polled for, and how many replies are not after it was in vain.
_SPIN_NS: Final = 50_000
_REST: Final = 32
#: A connection that was not used for this long is looked at before it is trusted with a request.
_IDLE_NS: Final = 1_000_000_000
#: How long `close` waits for who is in a call; a thread that connects sees it later, and keeps nothing.
_CLOSE_S: Final = 1.0

_GET: Final = int(Op.GET)
_SET: Final = int(Op.SET)
_pack = REQUEST.pack
_unpack = REPLY.unpack_from

T = TypeVar("T")


class Connection:
    """A connection that is made when it is needed, and again when it broke.

    Parameters
    ----------
    address
        Host and port.
    secret
        The server's secret, or None.
    timeout
        Seconds that the server may be silent; None: any time.
    """

    def __init__(self, address: tuple[str, int], secret: bytes | None, timeout: float | None) -> None:
        self.address = address
        self.secret = secret
        self.timeout = timeout
        #: Who has it may use the socket.  Of a kind that knows its owner: see `_check_turn`.
        self.lock = threading.RLock()
        self._sock: socket.socket | None = None
        self._number = 0
        self._used_ns = 0
        #: The error that the server's reply is, while it is raised: the connection goes on.
        self._told: DSMError | None = None
        #: Replies that are still not polled for.
        self._rest = 0
        self._closed = False

    # -- life --------------------------------------------------------------------------------------------

    def open(self) -> socket.socket:
        """Return the connected socket; the caller has the lock."""
        self._check_open()
        where = show_address(*self.address)
        try:
            sock = socket.create_connection(self.address, self.timeout)
        except (OSError, ValueError) as error:
            raise failures.not_reached(where, error, self.timeout) from None
        self._sock = sock  # so that `close` finds it
        try:
            self._check_open()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._shake_hands(sock, where)
            sock.settimeout(None)
            # Not the timeout of Python's sockets: that costs a system call for each that may wait.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, _timeval(self.timeout))
            self._check_open()
        except BaseException:
            self.drop()
            raise
        self._used_ns = time.monotonic_ns()
        return sock

    def _check_open(self) -> None:
        if self._closed:
            raise failures.closed()

    def _check_turn(self) -> None:
        """Refuse a call in the middle of another one of the same thread: it would wait for itself."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            raise UsageError(
                "this lease client is in the middle of a call of this thread: who interrupts it, as handlers "
                "of signals and __del__ do, uses a clone() of it"
            )

    def _shake_hands(self, sock: socket.socket, where: str) -> None:
        handshake = Handshake(self.secret, os.urandom(NONCE_BYTES))
        try:
            sock.sendall(handshake.start())
            while not handshake.done:
                data = sock.recv(4096)
                if not data:
                    self._check_open()
                    raise NodeLostError(
                        f"{where} closed the connection in the handshake; it is no lease server"
                    )
                if out := handshake.feed(data):
                    sock.sendall(out)
        except TimeoutError as error:
            raise failures.not_reached(where, error, self.timeout) from None
        except DSMError as error:
            raise type(error)(f"{where}: {error}") from None
        except OSError as error:
            self._check_open()
            raise NodeLostError(f"the connection to {where} broke: {error.strerror or error}") from None

    def drop(self) -> None:
        """Close the socket; the next request connects anew."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):  # a child of fork may have the socket, too
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        """Close for good; a thread that waits for a reply gets an error."""
        self._closed = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        # Who is in a call, and be it this thread (in a handler), finds the socket shut down and drops it.
        mine = self.lock._is_owned()  # type: ignore[attr-defined]
        if not mine and self.lock.acquire(timeout=_CLOSE_S):
            try:
                self.drop()
            finally:
                self.lock.release()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def forget(self) -> None:
        """In a child of fork: the socket is the parent's."""
        self.lock = threading.RLock()
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()  # the descriptor of this process only

    def usable(self) -> socket.socket:
        """Return the socket, fit for a request as far as can be known; the caller has the lock."""
        sock = self._sock
        if sock is None:
            return self.open()
        now = time.monotonic_ns()
        if now - self._used_ns > _IDLE_NS:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if poll.poll(0):  # nothing was asked: it can only be the end
                self.drop()
                return self.open()
        self._used_ns = now
        return sock

    # -- the two that count ------------------------------------------------------------------------------

    def get(self, token: bytes, offset: int, count: int) -> bytes:
        """Return bytes of a lease."""
        if count > _AT_ONCE:
            return self.ask(Op.GET, token=token, offset=offset, count=count, most=count)[0]
        self._check_turn()
        with self.lock:
            again = False
            while True:
                sock = self.usable()
                number = self._number = (self._number + 1) & 0xFFFFFFFF
                try:
                    sock.sendall(_pack(_GET, 0, 0, number, 0, offset, count, token))
                    data = self._receive(sock, REPLY_BYTES + count)
                    if len(data) == REPLY_BYTES + count:
                        op, status, zero, answered, payload, _, _ = _unpack(data)
                        if answered == number and payload == count and op == _GET and not (status or zero):
                            return data[REPLY_BYTES:]
                    return self._finish(sock, data, (_GET, number), count)[0]
                except BaseException as error:
                    if not self._broken(error, Op.GET, again):
                        raise
                    again = True

    def set(self, token: bytes, offset: int, data: Buffer) -> None:
        """Write bytes of a lease."""
        count = len(data)
        if count > _AT_ONCE:
            self.ask(Op.SET, token=token, offset=offset, count=count, data=data)
            return
        if type(data) is not bytes:
            data = fixed(data)  # what is the matter with a page of it is raised before anything is sent
        self._check_turn()
        with self.lock:
            again = False
            while True:
                sock = self.usable()
                number = self._number = (self._number + 1) & 0xFFFFFFFF
                try:
                    sock.sendall(_pack(_SET, 0, 0, number, count, offset, count, token) + data)
                    answer = self._receive(sock, REPLY_BYTES)
                    if len(answer) == REPLY_BYTES:
                        op, status, zero, answered, payload, _, _ = _unpack(answer)
                        if answered == number and op == _SET and not (payload or status or zero):
                            return
                    self._finish(sock, answer, (_SET, number), 0)
                    return
                except BaseException as error:
                    if not self._broken(error, Op.SET, again):
                        raise
                    again = True

    # -- everything --------------------------------------------------------------------------------------

    def ask(
        self, op: Op, *, token: bytes = wire.NO_TOKEN, offset: int = 0, count: int = 0, data: Buffer = b"",
        most: int = 0,
    ) -> tuple[bytes, int, int]:  # fmt: skip
        """Return payload, a and b of the reply to a request.

        Parameters
        ----------
        most
            Bytes that the reply's payload may have.
        """

        def once(sock: socket.socket) -> tuple[bytes, int, int]:
            number = self._number = (self._number + 1) & 0xFFFFFFFF
            header = wire.request(op, number, payload=len(data), offset=offset, count=count, token=token)
            self._send(sock, header, data)
            return self._finish(sock, self._receive(sock, REPLY_BYTES), (op, number), most)

        return self._do(op, once)

    def exchange(self, asked: Sequence[Asked]) -> list[Any]:
        """Send several GETs and SETs at once; return what each brings: bytes, None, or its error."""

        def once(sock: socket.socket) -> list[Any]:
            first = self._number + 1
            self._number += len(asked)
            return exchange(sock, asked, first, self.timeout)

        return self._do(Op.GET, once)

    def _do(self, op: Op, once: Callable[[socket.socket], T]) -> T:
        """Return what one try brings, or a second one where that may be (`get` and `set` do this inline)."""
        self._check_turn()
        with self.lock:
            again = False
            while True:
                sock = self.usable()
                try:
                    return once(sock)
                except BaseException as error:
                    if not self._broken(error, op, again):
                        raise
                    again = True

    # -- steps -------------------------------------------------------------------------------------------

    @staticmethod
    def _send(sock: socket.socket, header: bytes, data: Buffer) -> None:
        if not data:
            sock.sendall(header)
            return
        sock.sendall(header, socket.MSG_MORE)
        send_all(sock, data)

    def _receive(self, sock: socket.socket, most: int) -> bytes:
        """Return the first bytes of a reply."""
        if self._rest:
            self._rest -= 1
        else:
            give_up = 0
            while True:
                try:
                    data = sock.recv(most, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    now = time.monotonic_ns()
                    if not give_up:
                        give_up = now + _SPIN_NS
                    elif now > give_up:
                        self._rest = _REST
                        break
                    os.sched_yield()
                else:
                    if data:
                        return data
                    raise ConnectionResetError("the server closed the connection")
        data = sock.recv(most)
        if data:
            return data
        raise ConnectionResetError("the server closed the connection")

    def _finish(
        self, sock: socket.socket, data: bytes, expected: tuple[int, int], most: int
    ) -> tuple[bytes, int, int]:
        """Receive the rest of a reply; return its payload, a and b, or raise what it says."""
        while len(data) < REPLY_BYTES:
            data += self._more(sock, REPLY_BYTES - len(data))
        op, status, zero, number, payload, a, b = _unpack(data)
        wire.check_reply(expected, op, status, zero, number, payload, most)
        body = data[REPLY_BYTES:]
        missing = payload - len(body)
        if missing > 0:
            first = self._more(sock, missing)
            body = body + first if body else first
            if len(body) < payload:
                parts = [body]
                missing = payload - len(body)
                while missing:
                    parts.append(self._more(sock, missing))
                    missing -= len(parts[-1])
                body = b"".join(parts)
        elif missing:
            raise WireError("the server sent more than its reply; the connection is closed")
        if status:
            self._told = wire.error_of(status, body)
            raise self._told
        return body, a, b

    @staticmethod
    def _more(sock: socket.socket, count: int) -> bytes:
        data = sock.recv(count, socket.MSG_WAITALL)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def _broken(self, error: BaseException, op: Op, again: bool) -> bool:
        """Judge an error in a call: return whether to ask once more, or raise what the caller is to see."""
        if isinstance(error, DSMError):
            told, self._told = self._told, None
            if error is not told or isinstance(error, WireError):  # the reply may still come
                self.drop()
            return False
        self.drop()  # whatever the rest of this call would have brought must not answer the next one
        if not isinstance(error, OSError):
            return False
        where = show_address(*self.address)
        if self._closed:
            raise failures.closed_meanwhile() from None
        if isinstance(error, BlockingIOError):
            raise failures.silent(where, op, self.timeout) from None
        if op in failures.REPEATABLE and not again:
            return True
        raise failures.broken(where, op, error) from None


def _timeval(seconds: float | None) -> bytes:
    """Return a struct timeval; zeros: without end."""
    whole = 0.0 if seconds is None else max(seconds, 0.001)
    return struct.pack("@ll", int(whole), int(whole % 1 * 1_000_000))


assert MAX_LEASE_ERROR_BYTES < _AT_ONCE
