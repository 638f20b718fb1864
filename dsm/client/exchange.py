"""Several GETs and SETs in one round trip.

Owns their way over a connected socket: neither side waits for the other with a full one.  What is done when
it breaks is in `dsm.client.connection`.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Any, Final

from dsm.client.calls import Buffer
from dsm.errors import WireError
from dsm.limits import MAX_LEASE_ERROR_BYTES
from dsm.wire import leases as wire
from dsm.wire.leases import REPLY, REPLY_BYTES, REQUEST, Op

#: So much fits into a socket whose other end does not read.
_SURE_BYTES: Final = 8 * 1024

_GET: Final = int(Op.GET)
_SET: Final = int(Op.SET)
_pack = REQUEST.pack
_unpack = REPLY.unpack_from

#: Op, token, offset, count and data of a request.
Asked = tuple[int, bytes, int, int, Buffer]


class Answers:
    """The replies to several GETs and SETs, as they arrive.

    Parameters
    ----------
    asked
        The requests.
    first
        Number of the first.
    nbytes
        Bytes of all replies when all goes well.
    """

    def __init__(self, asked: Sequence[Asked], first: int, nbytes: int) -> None:
        self._asked = asked
        self._first = first
        self._buffer = memoryview(bytearray(nbytes + MAX_LEASE_ERROR_BYTES))
        self._filled = 0
        #: What each brought: bytes, None, or its error.
        self.found: list[Any] = []

    @property
    def complete(self) -> bool:
        """Whether every request has its answer."""
        return len(self.found) == len(self._asked)

    @property
    def room(self) -> memoryview:
        """Where the next bytes go."""
        return self._buffer[self._filled :]

    def take(self, got: int) -> None:
        """Cut replies out of what has arrived."""
        end = self._filled + got
        buffer, found, asked = self._buffer, self.found, self._asked
        position = 0
        while end - position >= REPLY_BYTES and len(found) < len(asked):
            op, status, zero, number, payload, _, _ = _unpack(buffer, position)
            sent, _, _, count, _ = asked[len(found)]
            most = count if sent == _GET else 0
            if op != sent or status or zero or payload != most:
                wire.check_reply((sent, number), op, status, zero, number, payload, most)
            if number != (self._first + len(found)) & 0xFFFFFFFF:
                raise WireError("the server's replies do not come in the order of the requests")
            after = position + REPLY_BYTES + payload
            if after > end:
                break
            if status:
                found.append(wire.error_of(status, bytes(buffer[position + REPLY_BYTES : after])))
            else:
                found.append(bytes(buffer[position + REPLY_BYTES : after]) if sent == _GET else None)
            position = after
        if position:
            buffer[: end - position] = bytes(buffer[position:end])
        self._filled = end - position


def exchange(sock: socket.socket, asked: Sequence[Asked], first: int, timeout: float | None) -> list[Any]:
    """Send several GETs and SETs at once, numbered from `first`.

    Returns
    -------
    list
        What each brings: bytes, None, or its error.
    """
    parts: list[Buffer] = []
    back = 0
    for number, (op, token, offset, count, data) in enumerate(asked, first):
        back += REPLY_BYTES
        if op == _SET:
            parts.append(_pack(op, 0, 0, number & 0xFFFFFFFF, count, offset, count, token))
            parts.append(data)
        else:
            parts.append(_pack(op, 0, 0, number & 0xFFFFFFFF, 0, offset, count, token))
            back += count
    out = b"".join(parts)
    answers = Answers(asked, first, back)
    if min(len(out), back) <= _SURE_BYTES:
        sock.sendall(out)
    else:
        _send_and_receive(sock, memoryview(out), answers, timeout)
    while not answers.complete:
        got = sock.recv_into(answers.room)
        if not got:
            raise ConnectionResetError("the server closed the connection")
        answers.take(got)
    return answers.found


def _send_and_receive(sock: socket.socket, out: memoryview, answers: Answers, timeout: float | None) -> None:
    """Send while replies come: neither side may wait for the other with a full socket."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    wait = None if timeout is None else timeout * 1000
    while out:
        ready = poll.poll(wait)
        if not ready:
            raise BlockingIOError("no reply and no room")
        events = ready[0][1]
        if events & ~select.POLLOUT:
            got = sock.recv_into(answers.room)
            if not got:
                raise ConnectionResetError("the server closed the connection")
            answers.take(got)
            if answers.complete:  # at once: perhaps it says and takes nothing more
                raise WireError("the server answered what it was not asked yet; the connection is closed")
        if events & select.POLLOUT:
            out = out[sock.send(out, socket.MSG_DONTWAIT) :]
