"""One client of a lease server.

Owns a socket without blocking: its handshake, cutting what arrives into requests, and what is to be sent.
Small answers are copied; large ones are sent from the lease's memory and large SETs received into it, so
that a connection needs no memory of its own for them.

Requests are handled in order, one at a time.  A request that must wait (`wait`) stops the connection: it is
not read from until `resume`; likewise while answers wait for a client that does not read.  In one turn a
connection moves at most `LEASE_TURN_BYTES` each way, whatever its requests, then others get theirs.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from dsm.errors import (
    DSMError,
    LeaseExpiredError,
    UnknownLeaseError,
    UsageError,
    WireError,
    status_of,
)
from dsm.limits import (
    LEASE_COPY_BYTES,
    LEASE_TURN_BYTES,
    MAX_LEASE_TRANSFER_BYTES,
    MAX_LEASE_UNREAD_BYTES,
)
from dsm.log import logger
from dsm.memory.leases import show_id
from dsm.server.book import MovingError
from dsm.server.cluster import check_foreign
from dsm.wire import leases as wire
from dsm.wire.lease_handshake import Server as Handshake
from dsm.wire.leases import REPLY, REQUEST, REQUEST_BYTES, Op

if TYPE_CHECKING:
    from dsm.server.book import Holding
    from dsm.server.service import Service
    from dsm.worker.lease import Lease

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR

#: Bytes that are dropped until the client closes.
_WITHOUT_END = 1 << 80

#: What a request that moves no bytes costs of a turn, in bytes of the same time.
_REQUEST_COST = 4096

_GET = int(Op.GET)
_SET = int(Op.SET)
_unpack = REQUEST.unpack_from
_pack = REPLY.pack


class Connection:
    """A client, as the server sees it."""

    __slots__ = (
        "_asked", "_at", "_ended", "_failure", "_gathered", "_handshake", "_interest", "_into", "_left",
        "_lent", "_queue", "_rest", "_service", "_set", "_turn_ends", "_waiting", "closed", "fd", "moved",
        "name", "sock",
    )  # fmt: skip

    def __init__(self, service: Service, sock: socket.socket, name: str, handshake: Handshake) -> None:
        self._service = service
        self.sock = sock
        self.fd = sock.fileno()
        self.name = name
        self._handshake: Handshake | None = handshake
        #: Bytes that arrived and are not handled yet.
        self._rest = b""
        #: What the socket did not take: bytes, and the lease that they lie in, if any.
        self._queue: deque[tuple[memoryview, Holding | None]] = deque()
        #: Bytes of a SET that are still to come, and where they go; without a place they are dropped.
        self._left = 0
        self._into: tuple[Holding, int] | None = None
        #: Number and count of that SET, and what is to be answered to it instead.
        self._set = (0, 0)
        self._failure: DSMError | None = None
        #: A request waits for something; nothing is read meanwhile.
        self._waiting = False
        #: Bytes of a SET into a lease of the cluster, and that lease.
        self._gathered: tuple[Lease, memoryview] | None = None
        #: What is being sent is memory of the share for leases of the cluster.
        self._lent = False
        #: What came of asking the cluster for a lease: the token, and the lease or why not.
        self._asked: tuple[bytes, Lease | DSMError] | None = None
        #: Offset of that SET.
        self._at = 0
        #: The client sends no more; what it asked for is still answered.
        self._ended = False
        self._interest = _IN
        #: `Service.bytes_out` at which this turn is over.
        self._turn_ends = 0
        #: Bytes of large transfers: a client with whom that stands still makes no progress.
        self.moved = 0
        self.closed = False

    # -- events ------------------------------------------------------------------------------------------

    def turn(self, events: int = 0) -> None:
        """Do what the socket is ready for; without events: handle requests that are here.

        What fails costs this connection only, unless the memory is gone: then it is raised.
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

    def found(self, token: bytes, found: Lease | DSMError) -> None:
        """The cluster has a lease, or says why not: handle its request again."""
        self._asked = token, found
        self.resume()

    def answered(self, op: int, failed: bool, parts: list[bytes]) -> None:
        """The request that waited has its answer; go on behind it."""
        self._waiting = False
        self._service.count(op, failed)
        self._lent = len(parts) > 1 and not self.closed
        if not self._lent:
            self._service.give_back(self)
        if not self.closed:
            self._queue += [(memoryview(part), None) for part in parts if part]
            self.turn(_OUT)

    def granted(self) -> None:
        """There is room now for the bytes of the request that waits: it has a turn in the next round."""
        self._waiting = False
        self._service.later(self)

    @property
    def waits(self) -> bool:
        """Whether a request waits for something that is not the client's."""
        return self._waiting

    @property
    def sends_ended(self) -> bool:
        """Whether memory of an ended lease is being sent."""
        return any(holding is not None and not holding.alive for _, holding in self._queue)

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
        self._into = self._gathered = None
        if not (self._waiting and self in self._service.foreign.taken):  # else the job has the memory
            self._service.give_back(self)
        self._service.forget(self)
        self.sock.close()

    def receives_into(self, holding: Holding) -> bool:
        """Whether a SET is on its way into a lease's memory."""
        return self._into is not None and self._into[0] is holding

    def drop(self, holding: Holding) -> None:
        """A lease has ended: receive nothing more into it."""
        self._into = None
        self._failure = _ran_out(holding)

    def sends(self, holding: Holding) -> bool:
        """Whether memory of a lease is being sent."""
        return any(each is holding for _, each in self._queue)

    # -- in ----------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._left:
            self._receive_payload()
            return
        if len(self._rest) >= REQUEST_BYTES and self._handshake is None:
            self._again()  # what is here comes first
            return
        buffer = self._service.buffer
        rest = self._rest
        kept = len(rest)
        if kept:
            buffer[:kept] = rest
            got = self.sock.recv_into(buffer[kept:])
            self._rest = b""
        else:
            got = self.sock.recv_into(buffer)
        if not got:
            self._end(kept)
            return
        self._service.bytes_in += got
        if self._handshake is not None:
            self._shake_hands(bytes(buffer[: kept + got]))
        else:
            self._handle(buffer, kept + got)

    def _end(self, kept: int) -> None:
        """The client has shut its side down."""
        if kept:
            self.close("it ended in the middle of a request")
        elif not self._queue:
            self.close("")
        else:
            self._ended = True
            self._watch()

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

    def _handle(self, buffer: memoryview, end: int) -> None:
        """Handle the requests in the buffer; what is incomplete or must wait is kept."""
        service = self._service
        book, memory, base = service.book, service.memory.view, service.memory.address
        readable, writable = book.readable, book.writable
        now = service.now_ms()
        out: list[bytes | memoryview] = []
        size = 0
        gets = sets = 0
        position = 0
        most = min(MAX_LEASE_UNREAD_BYTES, self._turn_ends - service.bytes_out)
        while end - position >= REQUEST_BYTES:
            op, flags, zero, number, payload, offset, count, token = _unpack(buffer, position)
            if op == _GET:
                holding = readable.get(token)
                if (
                    holding is not None
                    and count <= LEASE_COPY_BYTES
                    and offset + count <= holding.nbytes
                    and now < holding.deadline_ms
                    and not (payload or flags or zero)
                ):
                    start = holding.address - base + offset
                    out.append(_pack(_GET, 0, 0, number, count, count, holding.deadline_ms - now))
                    out.append(bytes(memory[start : start + count]))
                    position += REQUEST_BYTES
                    gets += 1
                    size += count + 32
                    if size > most:
                        break
                    continue
            elif op == _SET:
                holding = writable.get(token)
                first = position + REQUEST_BYTES
                if (
                    holding is not None
                    and payload == count <= end - first
                    and offset + count <= holding.nbytes
                    and now < holding.deadline_ms
                    and not (flags or zero)
                ):
                    start = holding.address - base + offset
                    position = first + count
                    memory[start : start + count] = buffer[first:position]
                    if offset < holding.low:
                        holding.low = offset
                    if offset + count > holding.high:
                        holding.high = offset + count
                    out.append(_pack(_SET, 0, 0, number, 0, count, holding.deadline_ms - now))
                    sets += 1
                    size += 32
                    continue
            if out:
                self._send(out, size)
                out, size = [], 0
                if self._queue:
                    break
            service.gets += gets
            service.sets += sets
            gets = sets = 0
            taken = self._request(buffer, position, end, now)
            if self.closed or self._left == _WITHOUT_END:
                return
            position += taken
            self._turn_ends -= _REQUEST_COST
            most = min(MAX_LEASE_UNREAD_BYTES, self._turn_ends - service.bytes_out)
            if not taken or self._waiting or self._left or self._queue or most <= 0:
                break
        service.gets += gets
        service.sets += sets
        if position < end:
            self._rest = bytes(buffer[position:end])
        if out:
            self._send(out, size)
        if not self.closed and (self._waiting or self._queue or len(self._rest) >= REQUEST_BYTES):
            self._watch()

    def _request(self, buffer: memoryview, position: int, end: int, now: int) -> int:
        """Handle any request; return the bytes taken, 0 when it must wait or the connection is closed."""
        op, flags, zero, number, payload, offset, count, token = _unpack(buffer, position)
        try:
            wire.check_request(op, flags, zero, payload, offset, count)
        except WireError as error:
            self._refuse(op, number, error)
            return 0
        except DSMError as error:
            return self._take(buffer, position, end, payload, (number, count), error)
        try:
            if op == _SET:
                return self._begin_set(buffer, position, end, now)
            if op == _GET:
                self._get(number, offset, count, token, now)
            elif op == Op.LIST and self._service.cluster is not None:
                self._waiting = True
                self._service.cluster.rows(self, number, offset, count)
            else:
                answer = self._service.answer(op, number, offset, count, token, now)
                self._send([answer], len(answer))
        except Waits as waits:
            self._waiting = True
            waits.begin(self)
            return 0
        except MovingError:
            self._waiting = True
            self._service.wait_for_move(self)
            return 0
        except UnknownLeaseError as error:
            return self._elsewhere(buffer, position, end, error)
        except DSMError as error:
            self._service.refused += 1
            answer = _error(op, number, error)
            self._send([answer], len(answer))
        return REQUEST_BYTES

    def _get(self, number: int, offset: int, count: int, token: bytes, now: int) -> None:
        """Send from the lease's memory."""
        service = self._service
        holding = service.book.find(token, now)
        if count == wire.TO_THE_END and offset <= holding.nbytes:
            count = holding.nbytes - offset
        check_range(holding, offset, count)
        header = _pack(_GET, 0, 0, number, count, count, holding.deadline_ms - now)
        start = holding.address - service.memory.address + offset
        view = service.memory.view[start : start + count]
        service.gets += 1
        if count <= LEASE_COPY_BYTES:
            self._send([header, bytes(view)], count + len(header))
            return
        service.book.hold(holding)
        self._queue.append((memoryview(header), None))
        self._queue.append((view, holding))
        self._drain()

    def _begin_set(self, buffer: memoryview, position: int, end: int, now: int) -> int:
        _, _, _, number, payload, offset, count, token = _unpack(buffer, position)
        service = self._service
        try:
            holding = service.book.find(token, now, write=True)
            check_range(holding, offset, count)
        except UnknownLeaseError:
            raise
        except DSMError as error:
            return self._take(buffer, position, end, payload, (number, count), error)
        holding.written(offset, count)
        self._into = holding, holding.address - service.memory.address + offset
        return self._take(buffer, position, end, payload, (number, count), None)

    def _elsewhere(self, buffer: memoryview, position: int, end: int, unknown: UnknownLeaseError) -> int:
        """Ask the cluster about a lease that is not this server's; return the bytes taken."""
        op, _, _, number, payload, offset, count, token = _unpack(buffer, position)
        cluster = self._service.cluster
        found: Lease | DSMError = unknown
        if cluster is not None and not self._service.book.has(token[: wire.ID_BYTES]):
            asked, self._asked = self._asked, None
            if asked is None or asked[0] != token:
                self._waiting = True
                cluster.find(self, token)
                return 0
            found = asked[1]
        if not isinstance(found, DSMError) and op in (_GET, _SET):
            try:
                count = check_foreign(found, op, offset, count)
            except DSMError as error:
                found = error
                self._service.give_back(self)
            else:
                if count > LEASE_COPY_BYTES and not self._service.lend(self, count):
                    self._asked = token, found
                    self._waiting = True
                    return 0
        if not isinstance(found, DSMError):
            if op == _SET:
                room: Any = np.empty(payload, "u1")  # what has not come yet costs no memory
                self._gathered = found, memoryview(room)
                self._at = offset
                return self._take(buffer, position, end, payload, (number, count), None)
            assert cluster is not None
            self._waiting = True
            cluster.do(self, found, op, number, offset, count)
            return REQUEST_BYTES
        if op == _SET:
            return self._take(buffer, position, end, payload, (number, count), found)
        self._service.refused += 1
        answer = _error(op, number, found)
        self._send([answer], len(answer))
        return REQUEST_BYTES

    def _take(
        self, buffer: memoryview, position: int, end: int, payload: int, about: tuple[int, int],
        failure: DSMError | None,
    ) -> int:  # fmt: skip
        """Take a request whose payload is stored or, after an error, dropped; return the bytes taken."""
        first = position + REQUEST_BYTES
        here = min(payload, end - first)
        self._left, self._set, self._failure = payload, about, failure
        if failure is not None and payload > self._service.book.size:
            self._refuse(_SET, about[0], failure)
            return 0
        if self._into is not None:
            holding, start = self._into
            self._service.memory.view[start : start + here] = buffer[first : first + here]
            self._into = holding, start + here
        elif self._gathered is not None:
            self._gathered[1][:here] = buffer[first : first + here]
        self._left -= here
        if self._left and self._into is not None:
            self._service.receiving.add(self)
        if not self._left:
            self._complete(buffer[position] if failure is not None else _SET)
        return REQUEST_BYTES + here

    def _receive_payload(self) -> None:
        """Receive what a SET still brings, straight into the lease's memory."""
        room = min(self._left, LEASE_TURN_BYTES)
        if self._gathered is not None:
            data = self._gathered[1]
            got = self.sock.recv_into(data[len(data) - self._left :], room)
        elif self._into is None:
            got = self.sock.recv_into(self._service.buffer, min(room, len(self._service.buffer)))
        else:
            holding, start = self._into
            got = self.sock.recv_into(self._service.memory.view[start : start + room])
            self._into = holding, start + got
        if not got:
            self.close("" if self._left > MAX_LEASE_TRANSFER_BYTES else "it ended in the middle of a SET")
            return
        self._left -= got
        self.moved += got
        self._service.bytes_in += got
        if not self._left:
            self._complete(_SET)

    def _complete(self, op: int) -> None:
        """The last byte of a request's payload is here: answer."""
        number, count = self._set
        service = self._service
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            assert service.cluster is not None
            self._waiting = True
            service.cluster.store(self, gathered[0], number, self._at, gathered[1])
            self._watch()
            return
        into, self._into = self._into, None
        service.receiving.discard(self)
        failure, self._failure = self._failure, None
        if failure is None and into is not None:
            now = service.now_ms()
            if now < into[0].deadline_ms:
                service.sets += 1
                self._send([_pack(_SET, 0, 0, number, 0, count, into[0].deadline_ms - now)], 32)
                return
            failure = _ran_out(into[0])
        assert failure is not None
        service.refused += 1
        answer = _error(op, number, failure)
        self._send([answer], len(answer))

    def _refuse(self, op: int, number: int, error: DSMError) -> None:
        """Answer with an error and end: what follows on this connection cannot be understood."""
        self._service.refused += 1
        answer = _error(op, number, error)
        self._send([answer], len(answer))
        if self._queue or self.closed:
            self.close(str(error))
            return
        logger.info("lease client %s: %s", self.name, error)
        # What it still sends is dropped for a while: a close with unread bytes would destroy the answer.
        self._rest, self._left, self._into, self._failure = b"", _WITHOUT_END, None, error
        self._service.receiving.discard(self)
        self.sock.shutdown(socket.SHUT_WR)
        self._service.dismiss(self)

    # -- out ---------------------------------------------------------------------------------------------

    def _send(self, parts: list[bytes | memoryview], size: int) -> None:
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
        if sent < size:
            self._queue.append((memoryview(data)[sent:], None))
            self._watch()

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
        if not queue and not self._waiting:
            if self._ended:
                self.close("")
            elif len(self._rest) >= REQUEST_BYTES and budget > 0:
                self._again()

    def _watch(self) -> None:
        """Ask the loop for what can be done now."""
        if self.closed:
            return
        stopped = self._queue or self._waiting or self._ended
        interest = (0 if stopped else _IN) | (_OUT if self._queue else 0)
        if not stopped and len(self._rest) >= REQUEST_BYTES:
            self._service.later(self)  # its turn was over, not its requests
        if interest != self._interest:
            self._interest = interest
            self._service.watch(self.fd, interest)


class Waits(Exception):
    """A request cannot be answered yet; `begin` is given the connection, whose `resume` tries again."""

    def begin(self, connection: Connection) -> None:
        """Arrange for `resume`."""
        raise NotImplementedError


def check_range(holding: Holding, offset: int, count: int) -> None:
    """Refuse bytes that are not the lease's."""
    if offset + count > holding.nbytes:
        what = "all bytes" if count == wire.TO_THE_END else f"{count} bytes"
        raise UsageError(
            f"{what} at offset {offset} do not lie in lease {show_id(holding.id)}, which has {holding.nbytes}"
        )


def _ran_out(holding: Holding) -> LeaseExpiredError:
    return LeaseExpiredError(
        f"lease {show_id(holding.id)} ended before the last byte had come; its memory is gone: lease anew"
    )


def _error(op: int, number: int, error: DSMError) -> bytes:
    return wire.error_reply(op, number, status_of(error), str(error))
