"""An authenticated connection to another manager.

Owns one non-blocking TCP socket: cutting what arrives into messages, and sending in order.  Small
messages gather until `flush`; pages go out of the frames with `sendmsg`, without a copy.  Knows
nothing of what messages mean.

A peer that does not read makes a queue grow.  Frames in it cost nothing (they lie where they are), but
messages do: beyond `MAX_UNREAD_BYTES` of them the peer is lost.  What a peer that is merely stopped can
have asked for, or be told, stays far below: every thread of the cluster waits for one answer at a time.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable

from dsm.errors import WireError
from dsm.limits import MAX_UNREAD_BYTES, PEER_SILENCE_S
from dsm.manager.loop import IN, OUT, Loop
from dsm.wire.address import show_address
from dsm.wire.framing import MESSAGE, SINK, FrameReader
from dsm.wire.header import Fields

#: Rounds of `recv` before other descriptors get a turn.
_ROUNDS = 16
#: Of struct tcp_info: tcpi_last_ack_recv (milliseconds ago).
_TCP_INFO = struct.Struct("<56xI")
_TCP_INFO_BYTES = 104
#: Memory of an entry of the queue, its objects included.
_ENTRY_BYTES = 300
_HANGUP = select.EPOLLHUP | select.EPOLLERR


class Traffic:
    """Messages of every kind to and from other nodes, and the bytes of them on the wire."""

    __slots__ = ("bytes_in", "bytes_out", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0

    def add(self, other: Traffic) -> None:
        """Count what `other` has counted, too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Link:
    """One peer.

    Parameters
    ----------
    loop
        The manager's loop.
    sock
        Connected and authenticated.
    on_message
        Called as ``on_message(link, fields, payload)`` with every message that arrived as a whole.
    on_pages
        Called as ``on_pages(link, fields)`` when the header of a longer page message arrived: it calls
        ``link.reader.sink``.
    on_received
        Called as ``on_received(link, fields)`` when the payload of such a message is complete.
    on_lost
        Called once as ``on_lost(link, reason)`` when the connection is over.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Link, Fields, memoryview], None],
        on_pages: Callable[[Link, Fields], None],
        on_received: Callable[[Link, Fields], None],
        on_lost: Callable[[Link, str], None],
    ) -> None:
        self.loop = loop
        self.sock = sock
        #: The peer's node number; -1 until membership has told.
        self.node = -1
        #: Who it is, for messages.
        self.name = "a peer"
        self.reader = FrameReader()
        self.traffic = Traffic()
        self._on_message = on_message
        self._on_pages = on_pages
        self._on_received = on_received
        self._on_lost = on_lost
        #: Headers and payloads that wait for `flush`, and headers that may leave after them.
        self._gathered: list[bytes | memoryview] = []
        self._later: list[bytes] = []
        #: Whether the loop is to flush this link at the end of its round.
        self._is_dirty = False
        #: What the socket did not take, in order.
        self._queue: deque[memoryview] = deque()
        #: Memory that the queue costs.
        self._unread = 0
        self.closed = False
        #: The peer has said that it ends on purpose.
        self.leaving = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_silence(sock)
        loop.watch(sock.fileno(), self._ready)

    # -- out ---------------------------------------------------------------------------------------------

    @property
    def sending(self) -> bool:
        """Whether bytes wait for the socket: frames among them are frozen."""
        return bool(self._queue)

    @property
    def peer(self) -> str:
        """The other end's ``host:port``; a question mark when the connection is over."""
        try:
            return show_address(*self.sock.getpeername()[:2])
        except OSError:
            return "?"

    def send(self, header: bytes, payload: bytes | memoryview | None = None) -> None:
        """Send a message; it leaves at the end of the loop's round at the latest."""
        if not self._is_dirty:
            self._is_dirty = True
            self.loop.dirty.append(self)
        self.traffic.messages_out += 1
        self._gathered.append(header)
        if payload is not None:
            self._gathered.append(payload)

    def send_later(self, header: bytes) -> None:
        """Send a message that nobody waits for: behind the next one, or a few microseconds later.

        Only for a message whose order with later ones does not matter.
        """
        if not self._later and not self._is_dirty:
            self.loop.lazy.append(self)
        self.traffic.messages_out += 1
        self._later.append(header)

    def flush(self) -> None:
        """Hand to the kernel what was gathered, as far as it takes it."""
        gathered = self._gathered
        self._is_dirty = False
        if self._later:
            gathered += self._later
            self._later = []
        if not gathered or self.closed:
            return
        self._gathered = []
        if self._queue:
            for part in gathered:
                self._enqueue(memoryview(part))
            return
        try:
            if len(gathered) == 1:
                sent = self.sock.send(gathered[0])
                self.traffic.bytes_out += sent
                if sent == len(gathered[0]):
                    return
            else:
                sent = self.sock.sendmsg(gathered[:512])
                self.traffic.bytes_out += sent
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # From the loop: we may be in the middle of an engine's effects, and a loss ends whole regions.
            reason = f"sending failed: {error.strerror}"
            self.loop.after(0.0, lambda: self._broken(reason))
            return
        for part in gathered:
            size = len(part)
            if sent >= size:
                sent -= size
            else:
                self._enqueue(memoryview(part)[sent:])
                sent = 0
        if self._queue:
            self.loop.change(self.sock.fileno(), IN | OUT)

    def _enqueue(self, part: memoryview) -> None:
        """Keep what the socket does not take."""
        self._queue.append(part)
        before = self._unread
        self._unread += _cost(part)
        if before <= MAX_UNREAD_BYTES < self._unread:
            reason = (
                f"it does not read: {len(self._queue)} messages wait for it, more than "
                f"{MAX_UNREAD_BYTES} bytes of memory"
            )
            self.loop.after(0.0, lambda: self.lose(reason))

    def _drain(self) -> None:
        queue = self._queue
        while queue:
            parts = [queue[i] for i in range(min(len(queue), 64))]
            try:
                sent = self.sock.sendmsg(parts)
            except BlockingIOError:
                return
            except OSError as error:
                self._broken(f"sending failed: {error.strerror}")
                return
            self.traffic.bytes_out += sent
            while sent:
                size = len(queue[0])
                self._unread -= _cost(queue[0])
                if sent >= size:
                    sent -= size
                    queue.popleft()
                else:
                    queue[0] = queue[0][sent:]
                    self._unread += _cost(queue[0])
                    sent = 0
        self.loop.change(self.sock.fileno(), IN)

    # -- in ----------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._drain()
        if events & (IN | _HANGUP) and not self.closed:
            self._receive()

    def _receive(self) -> None:
        reader = self.reader
        recv_into = self.sock.recv_into
        for _ in range(_ROUNDS):
            space = reader.space()
            try:
                count = recv_into(space)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(f"receiving failed: {error.strerror}")
                return
            if not count:
                self.lose("the peer closed" if reader.idle else "the peer broke off in a message")
                return
            self.traffic.bytes_in += count
            reader.fill(count)
            if not self.read() or count < len(space):
                return

    def read(self) -> bool:
        """Handle every message that is complete; False when the link is closed."""
        reader = self.reader
        traffic = self.traffic
        try:
            while event := reader.next():
                if event == MESSAGE:
                    traffic.messages_in += 1
                    self._on_message(self, reader.fields, reader.payload)
                elif event == SINK:
                    self._on_pages(self, reader.fields)
                else:
                    traffic.messages_in += 1
                    self._on_received(self, reader.fields)
                if self.closed:
                    return False
        except WireError as error:
            self.lose(str(error))
            return False
        return True

    def take(self, fields: Fields, payload: bytes) -> None:
        """Handle a message that somebody has read before."""
        if not self.closed:
            try:
                self._on_message(self, fields, memoryview(payload))
            except WireError as error:
                self.lose(str(error))

    def check_silence(self) -> None:
        """Lose a peer whose host has acknowledged nothing of what we sent for `PEER_SILENCE_S`.

        Not TCP_USER_TIMEOUT: that ends connections to a peer that is merely stopped, whose host still
        answers the probes of a closed window.
        """
        queued = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ: not sent, or not acknowledged
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (silent_ms,) = _TCP_INFO.unpack_from(info)
        if any(queued) and silent_ms > PEER_SILENCE_S * 1000:
            self.lose(f"its host has not answered for {silent_ms / 1000:.0f} s")

    def _broken(self, reason: str) -> None:
        """Lose a peer to which nothing can be sent; what it said before counts, above all that it leaves."""
        if not self.closed:
            self._receive()
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """Close the connection and say why."""
        if not self.closed:
            self.close()
            self._on_lost(self, reason)

    def close(self) -> None:
        """Close without telling anybody."""
        if not self.closed:
            self.closed = True
            self.loop.forget(self.sock.fileno())
            self.sock.close()
            self._queue.clear()
            self._gathered.clear()


def _cost(part: memoryview) -> int:
    """Return the memory that a part of the queue keeps: frames are there anyway."""
    return _ENTRY_BYTES + (len(part) if isinstance(part.obj, bytes) else 0)


def _notice_silence(sock: socket.socket) -> None:
    """Let the kernel end an idle connection when the peer's host does not answer for `PEER_SILENCE_S`."""
    probes = 3
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_SILENCE_S // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PEER_SILENCE_S * 2 // 3 // probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
