"""What one client of a lease server asks.

Owns the requests of a connection: they are handled in order, one at a time.  One that must wait (`_waiting`)
stops the connection until `resume`, `found` or `answered`.  Sockets and turns are in `dsm.server.channel`,
what becomes of leases in `dsm.server.book`.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsm.errors import DSMError, UnknownLeaseError, UsageError, WireError, status_of
from dsm.limits import LEASE_COPY_BYTES, MAX_LEASE_UNREAD_BYTES
from dsm.log import logger
from dsm.memory.token import random_id, show_id
from dsm.server.book import CleaningError, MovingError
from dsm.server.channel import Channel
from dsm.server.cluster import check_foreign
from dsm.server.upload import Upload, ran_out
from dsm.wire import leases as wire
from dsm.wire.lease_handshake import Server as Handshake
from dsm.wire.leases import KEYS, REPLY, REQUEST, REQUEST_BYTES, Op

if TYPE_CHECKING:
    from dsm.server.book import Holding
    from dsm.server.service import Service
    from dsm.worker.lease import Lease

#: What a request that moves no bytes costs of a turn, in bytes of the same time.
_REQUEST_COST = 4096

_GET = int(Op.GET)
_SET = int(Op.SET)
#: What may change what is due next.
_CHANGES = (Op.LEASE, Op.RENEW, Op.RELEASE)
_unpack = REQUEST.unpack_from
_pack = REPLY.pack


@dataclass(slots=True)
class Request:
    """A request's header, as `REQUEST` unpacks it."""

    op: int
    flags: int
    zero: int
    number: int
    payload: int
    offset: int
    count: int
    token: bytes


class Connection(Channel):
    """A client, and what it has asked."""

    __slots__ = ("_asked",)

    def __init__(self, service: Service, sock: socket.socket, name: str, handshake: Handshake) -> None:
        super().__init__(service, sock, name, handshake)
        #: What came of asking the cluster for a lease: what was shown for it, and the lease or why not.
        self._asked: tuple[bytes, Lease | DSMError] | None = None

    # -- what the cluster says ---------------------------------------------------------------------------

    def found(self, token: bytes, found: Lease | DSMError) -> None:
        """The cluster has a lease, or says why not: handle its request again."""
        self._asked = token, found
        self.resume()

    def answered(self, op: int, failed: bool, parts: list[bytes]) -> None:
        """The request that waited has its answer; go on behind it."""
        self._waiting = False
        self._service.count(op, failed)
        self._send_lent(parts)

    # -- requests ----------------------------------------------------------------------------------------

    def _handle(self, buffer: memoryview, end: int) -> None:
        """Handle the requests in the buffer; what is incomplete or must wait is kept.

        Most are small GETs and SETs of leases that were found before: these are done here.
        """
        service = self._service
        book, memory, base = service.book, service.memory.view, service.memory.address
        readable, writable = book.readable, book.writable
        now = service.now_ms()
        out: list[bytes] = []
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
                self._send(out)
                out, size = [], 0
                if self._queue:
                    break
            service.gets += gets
            service.sets += sets
            gets = sets = 0
            taken = self._request(buffer, position, end, now)
            if self.closed or self._refused:
                return
            position += taken
            self._turn_ends -= _REQUEST_COST
            most = min(MAX_LEASE_UNREAD_BYTES, self._turn_ends - service.bytes_out)
            if not taken or self._waiting or self._upload is not None or self._queue or most <= 0:
                break
        service.gets += gets
        service.sets += sets
        if position < end:
            self._rest = bytes(buffer[position:end])
        if out:
            self._send(out)
        if not self.closed and (self._waiting or self._queue or len(self._rest) >= REQUEST_BYTES):
            self._watch()

    def _request(self, buffer: memoryview, position: int, end: int, now: int) -> int:
        """Handle any request; return the bytes taken, 0 when it must wait or the connection is closed."""
        asked = Request(*_unpack(buffer, position))
        here = buffer[position + REQUEST_BYTES : end]
        service = self._service
        op = asked.op
        try:
            wire.check_request(op, asked.flags, asked.zero, asked.payload, asked.offset, asked.count)
            if op == _SET:
                return self._set(asked, here, now)
            if op == _GET:
                self._get(asked, now)
            elif op == Op.LIST and service.cluster is not None:
                self._waiting = True
                service.cluster.rows(self, asked.number, asked.offset, asked.count)
            else:
                self._send([self._answer(asked, now)])
        except WireError as error:
            return self._refuse(asked, error)
        except CleaningError:
            self._waiting = True
            service.wait_for_room(self)
            return 0
        except MovingError:
            self._waiting = True
            service.wait_for_move(self)
            return 0
        except UnknownLeaseError as error:
            return self._elsewhere(asked, here, error)
        except DSMError as error:
            return self._reject(asked, here, error)
        return REQUEST_BYTES

    def _answer(self, asked: Request, now: int) -> bytes:
        """Return the reply to a request that moves no bytes of leases."""
        service, book = self._service, self._service.book
        op, number, token = asked.op, asked.number, asked.token
        if op in _CHANGES:
            service.look_soon()
        if op == Op.LEASE:
            keys = os.urandom(48)
            identity, write_key, read_key = random_id(keys[:16]), keys[16:32], keys[32:]
            if book.lease(now, asked.count, asked.offset, identity, write_key, read_key) is None:
                raise CleaningError
            keys = KEYS.pack(identity, write_key, read_key)
            return wire.reply(op, number, keys, asked.count, asked.offset)
        if op == Op.RENEW:
            return wire.reply(op, number, b"", book.renew(token, now, asked.offset).nbytes, asked.offset)
        if op == Op.RELEASE:
            holding = book.release(token, now)
            service.lease_ended(holding)
            return wire.reply(op, number, b"", holding.nbytes)
        if op == Op.INFO:
            holding = book.find(token, now)
            record = book.table.find(token[:16], token[16:], now)
            row = book.row(record, now, token in book.writable)
            return wire.reply(op, number, row.pack(), holding.nbytes, row.remaining_ms)
        if op == Op.FIGURES:
            return wire.reply(op, number, wire.pack_figures(service.figures()))
        return wire.reply(op, number, b"", wire.VERSION)

    def _get(self, asked: Request, now: int) -> None:
        """Send from the lease's memory."""
        service = self._service
        offset, count = asked.offset, asked.count
        holding = service.book.find(asked.token, now)
        if count == wire.TO_THE_END and offset <= holding.nbytes:
            count = holding.nbytes - offset
        _check_range(holding, offset, count)
        header = _pack(_GET, 0, 0, asked.number, count, count, holding.deadline_ms - now)
        start = holding.address - service.memory.address + offset
        view = service.memory.view[start : start + count]
        service.gets += 1
        if count <= LEASE_COPY_BYTES:
            self._send([header, bytes(view)])
            return
        service.book.hold(holding)
        self._queue.append((memoryview(header), None))
        self._queue.append((view, holding))
        self._drain()

    def _set(self, asked: Request, here: memoryview, now: int) -> int:
        """Begin to store into the lease's memory."""
        memory = self._service.memory
        holding = self._service.book.find(asked.token, now, write=True)
        _check_range(holding, asked.offset, asked.count)
        holding.written(asked.offset, asked.count)
        start = holding.address - memory.address + asked.offset
        place = memory.view[start : start + asked.count]
        return self._take(Upload(asked.number, asked.count, asked.payload, place, holding=holding), here)

    def _elsewhere(self, asked: Request, here: memoryview, unknown: UnknownLeaseError) -> int:
        """Ask the cluster about a lease that is not this server's; return the bytes taken."""
        service, cluster, count = self._service, self._service.cluster, asked.count
        if cluster is None or service.book.has(asked.token[: wire.ID_BYTES]):
            return self._reject(asked, here, unknown)
        known, self._asked = self._asked, None
        if known is None or known[0] != asked.token:
            self._waiting = True
            cluster.find(self, asked.token)
            return 0
        lease = known[1]
        if isinstance(lease, DSMError):
            return self._reject(asked, here, lease)
        if asked.op in (_GET, _SET):
            try:
                count = check_foreign(lease, asked.op, asked.offset, count)
            except DSMError as error:
                service.give_back(self)
                return self._reject(asked, here, error)
            if count > LEASE_COPY_BYTES and not service.lend(self, count):
                self._asked = known
                self._waiting = True
                return 0
        if asked.op == _SET:
            room: Any = np.empty(count, "u1")  # what has not come yet costs no memory
            foreign = lease, asked.offset
            return self._take(Upload(asked.number, count, count, memoryview(room), foreign=foreign), here)
        self._waiting = True
        cluster.do(self, lease, asked.op, asked.number, asked.offset, count)
        return REQUEST_BYTES

    # -- payloads and errors -----------------------------------------------------------------------------

    def _take(self, upload: Upload, here: memoryview) -> int:
        """Take a SET, and what is here of its payload; return the bytes taken."""
        taken = upload.put(here)
        if upload.left:
            self._upload = upload
            if upload.holding is not None:
                self._service.receiving.add(self)
        else:
            self._complete(upload)
        return REQUEST_BYTES + taken

    def _complete(self, upload: Upload) -> None:
        service = self._service
        if upload.foreign is not None:
            assert service.cluster is not None
            self._waiting = True
            service.cluster.store(self, *upload.foreign, upload.number, upload.gathered)
            self._watch()
            return
        service.receiving.discard(self)
        failure, holding = upload.failure, upload.holding
        if holding is not None:
            now = service.now_ms()
            if now < holding.deadline_ms:
                service.sets += 1
                self._send([_pack(_SET, 0, 0, upload.number, 0, upload.count, holding.deadline_ms - now)])
                return
            failure = ran_out(holding)
        assert failure is not None
        self._send_error(_SET, upload.number, failure)

    def _reject(self, asked: Request, here: memoryview, error: DSMError) -> int:
        """Answer with an error, once the payload is here, which is dropped; return the bytes taken."""
        if asked.payload > self._service.book.size:
            return self._refuse(asked, error)
        if asked.payload:
            return self._take(Upload(asked.number, asked.count, asked.payload, failure=error), here)
        self._send_error(asked.op, asked.number, error)
        return REQUEST_BYTES

    def _refuse(self, asked: Request, error: DSMError) -> int:
        """Answer with an error and end: what follows on this connection cannot be understood."""
        self._send_error(asked.op, asked.number, error)
        if self._queue or self.closed:
            self.close(str(error))
            return 0
        logger.info("lease client %s: %s", self.name, error)
        # What it still sends is dropped for a while: a close with unread bytes would destroy the answer.
        self._rest, self._refused = b"", True
        self.sock.shutdown(socket.SHUT_WR)
        self._service.dismiss(self)
        return 0

    def _send_error(self, op: int, number: int, error: DSMError) -> None:
        self._service.refused += 1
        self._send([wire.error_reply(op, number, status_of(error), str(error))])


def _check_range(holding: Holding, offset: int, count: int) -> None:
    """Refuse bytes that are not the lease's."""
    if offset + count > holding.nbytes:
        what = "all bytes" if count == wire.TO_THE_END else f"{count} bytes"
        raise UsageError(
            f"{what} at offset {offset} do not lie in lease {show_id(holding.id)}, which has {holding.nbytes}"
        )
