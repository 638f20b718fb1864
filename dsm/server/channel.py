"""The socket of one client of a lease server, without blocking.

Owns the handshake, what has arrived and is not handled yet, and what the socket did not take yet.  Small
answers are copied; large ones are sent from the lease's memory and large SETs received into it, so that a
client needs no memory of its own for them.  What requests mean is in `dsm.server.connection`.

A channel that waits (`_waiting`), or whose answers wait for a client that does not read, is not read from.
In one turn it moves at most `LEASE_TURN_BYTES` each way, whatever is asked, then others get theirs.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque
from typing import TYPE_CHECKING

from dsm.errors import DSMError
from dsm.limits import LEASE_TURN_BYTES
from dsm.log import logger
from dsm.wire.lease_handshake import Server as Handshake
from dsm.wire.leases import REQUEST_BYTES

if TYPE_CHECKING:
    from dsm.server.book import Holding
    from dsm.server.service import Service
    from dsm.server.upload import Upload

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class Channel:
    """A client, as the loop sees it."""

    __slots__ = (
        "_handshake", "_interest", "_lent", "_queue", "_refused", "_rest", "_service", "_turn_ends",
        "_upload", "_waiting", "closed", "fd", "moved", "name", "sock",
    )  # fmt: skip

    def __init__(self, service: Service, sock: socket.socket, name: str, handshake: Handshake) -> None:
        self._service = service
        self.sock = sock
        self.fd = sock.fileno()
        self.name = name
        self._handshake: Handshake | None = handshake
        #: Bytes that arrived and are not handled yet.
        self._rest = b""
        #: A SET that is on its way.
        self._upload: Upload | None = None
        #: What the client sent could not be understood: the rest is dropped until it closes.
        self._refused = False
        #: What the socket did not take: bytes, and the lease that they lie in, if any.
        self._queue: deque[tuple[memoryview, Holding | None]] = deque()
        #: What is being sent is memory of the share for leases of the cluster.
        self._lent = False
        #: A request waits for something that is not the client's; nothing is read meanwhile.
        self._waiting = False
        self._interest = _IN
        #: `Service.bytes_out` at which this turn is over.
        self._turn_ends = 0
        #: Bytes of large transfers: a client with whom that stands still makes no progress.
        self.moved = 0
        self.closed = False

    # -- events ------------------------------------------------------------------------------------------

    def turn(self, events: int = 0) -> None:
        """Do what the socket is ready for; without events: handle requests that are here.

        What fails costs this client only, unless the memory is gone: then it is raised.
        """
        self._turn_ends = self._service.bytes_out + LEASE_TURN_BYTES
        try:
            if events & _OUT:
                self._drain()
            if events & _IN and not self.closed and self._interest & _IN:
                self._receive()
            elif events & _GONE and not self.closed:
                self.close("")
            elif not (events or self.closed or self._waiting or self._queue):
                self._again()
                self._watch()
        except (BlockingIOError, InterruptedError):
            return
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, DSMError):
                self.close(error.strerror or str(error))
                return
            if self._service.memory.lost:
                raise
            logger.exception("lease client %s: closed", self.name)
            self.close("an internal error")

    def resume(self) -> None:
        """Handle again the request that waited, and what is behind it."""
        self._waiting = False
        self.turn()

    def granted(self) -> None:
        """There is room now for the bytes of the request that waits: it has a turn in the next round."""
        self._waiting = False
        self._service.later(self)

    def close(self, reason: str) -> None:
        """End the connection; nothing more is sent."""
        if self.closed:
            return
        self.closed = True
        if reason:
            logger.info("lease client %s: %s", self.name, reason)
        for _, holding in self._queue:
            if holding is not None:
                self._service.book.let_go(holding)
        self._queue.clear()
        self._upload = None
        if not (self._waiting and self in self._service.foreign.taken):  # else a job has the memory
            self._service.give_back(self)
        self._service.forget(self)
        with contextlib.suppress(OSError):  # a child of fork may have the socket, too
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    # -- questions of the loop ---------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether a request waits for something that is not the client's."""
        return self._waiting

    @property
    def sends_ended(self) -> bool:
        """Whether memory of an ended lease is being sent."""
        return any(holding is not None and not holding.alive for _, holding in self._queue)

    def sends(self, holding: Holding) -> bool:
        """Whether memory of a lease is being sent."""
        return any(each is holding for _, each in self._queue)

    def receives_into(self, holding: Holding) -> bool:
        """Whether a SET is on its way into a lease's memory."""
        return self._upload is not None and self._upload.holding is holding

    def drop(self, holding: Holding) -> None:
        """A lease has ended: receive nothing more into it."""
        assert self._upload is not None
        self._upload.drop(holding)

    # -- in ----------------------------------------------------------------------------------------------

    def _handle(self, buffer: memoryview, end: int) -> None:
        """Handle the requests in the buffer; what is incomplete or must wait is kept."""
        raise NotImplementedError

    def _complete(self, upload: Upload) -> None:
        """The last byte of a SET is here: answer."""
        raise NotImplementedError

    def _receive(self) -> None:
        upload = self._upload
        buffer = self._service.buffer
        if upload is not None:
            self._receive_payload(upload)
            return
        if len(self._rest) >= REQUEST_BYTES and self._handshake is None:
            self._again()  # what is here comes first
            return
        rest = self._rest
        kept = len(rest)
        if kept:
            buffer[:kept] = rest
            got = self.sock.recv_into(buffer[kept:])
            self._rest = b""
        else:
            got = self.sock.recv_into(buffer)
        if not got:
            self.close("it ended in the middle of a request" if kept else "")
            return
        self._service.bytes_in += got
        if self._handshake is not None:
            self._shake_hands(bytes(buffer[: kept + got]))
        elif not self._refused:
            self._handle(buffer, kept + got)

    def _receive_payload(self, upload: Upload) -> None:
        got = upload.receive(self.sock, self._service.buffer)
        if not got:
            self.close("it ended in the middle of a SET")
            return
        self.moved += got
        self._service.bytes_in += got
        if not upload.left:
            self._upload = None
            self._complete(upload)

    def _shake_hands(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            out = handshake.feed(data)
        except DSMError as error:
            if handshake.refusal:
                with contextlib.suppress(BlockingIOError):
                    self.sock.send(handshake.refusal)
            self.close(str(error))
            return
        if out:
            self.sock.send(out)  # a socket that has sent nothing takes 40 bytes
        if handshake.done:
            self._handshake = None
            self._service.admit(self)
            if handshake.leftover:
                self._rest = handshake.leftover
                self._again()

    def _again(self) -> None:
        """Handle what has arrived before, as far as it goes."""
        rest, self._rest = self._rest, b""
        buffer = self._service.buffer
        buffer[: len(rest)] = rest
        self._handle(buffer, len(rest))

    # -- out ---------------------------------------------------------------------------------------------

    def _send(self, parts: list[bytes]) -> None:
        """Send answers; what the socket does not take waits."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._queue:
            self._queue.append((memoryview(data), None))
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self._service.bytes_out += sent
        if sent < len(data):
            self._queue.append((memoryview(data)[sent:], None))
            self._watch()

    def _send_lent(self, parts: list[bytes]) -> None:
        """Send an answer of the cluster, which may lie in memory of the share for its leases."""
        self._lent = len(parts) > 1 and not self.closed
        if not self._lent:
            self._service.give_back(self)
        if not self.closed:
            self._queue += [(memoryview(part), None) for part in parts if part]
            self.turn(_OUT)

    def _drain(self) -> None:
        """Send what waits, as far as this turn goes; then go on with requests that wait behind it."""
        queue = self._queue
        service = self._service
        budget = self._turn_ends - service.bytes_out
        try:
            while queue and budget > 0:
                view, holding = queue[0]
                sent = self.sock.send(view[:budget])
                budget -= sent
                service.bytes_out += sent
                self.moved += sent
                if sent < len(view):
                    queue[0] = view[sent:], holding
                else:
                    queue.popleft()
                    if holding is not None:
                        service.book.let_go(holding)
        except BlockingIOError:
            pass
        if self._lent and not queue:
            self._lent = False
            service.give_back(self)
        self._watch()
        if not queue and not self._waiting and len(self._rest) >= REQUEST_BYTES and budget > 0:
            self._again()

    def _watch(self) -> None:
        """Ask the loop for what can be done now."""
        if self.closed:
            return
        stopped = self._queue or self._waiting
        interest = (0 if stopped else _IN) | (_OUT if self._queue else 0)
        if not stopped and len(self._rest) >= REQUEST_BYTES:
            self._service.later(self)  # its turn was over, not its requests
        if interest != self._interest:
            self._interest = interest
            self._service.watch(self.fd, interest)
