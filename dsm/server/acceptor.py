"""Taking clients of a lease server in, until they have proven themselves.

Owns the listeners, when they are watched, who is not through the handshake and until when, and what is said
to those for whom there is no room.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING

from dsm.limits import FAIR_SHARE, HANDSHAKE_TIMEOUT_S, MAX_HALF_OPEN, MAX_LEASE_CONNECTIONS
from dsm.log import logger
from dsm.reserve import PAUSE_S, Reserve
from dsm.wire.address import show_address
from dsm.wire.lease_handshake import TOO_MANY, refusal

if TYPE_CHECKING:
    from dsm.server.channel import Channel

#: An idle client whose host does not answer is given up after about two minutes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Acceptor:
    """Takes clients in.

    Parameters
    ----------
    listeners
        Bound and listening.
    epoll
        What watches them.
    connections
        All there are.
    begin
        Makes a connection of a socket and a name.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        epoll: select.epoll,
        connections: Sized,
        begin: Callable[[socket.socket, str], object],
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._epoll = epoll
        self._connections = connections
        self._begin = begin
        self._reserve = Reserve()
        #: Listeners that are not watched, because there are no descriptors; and until when.
        self._paused: OrderedDict[int, float] = OrderedDict()
        #: Who has not proven himself, or is to be closed, soonest first; and until when.
        self._until: OrderedDict[Channel, float] = OrderedDict()
        for fd in self._listeners:
            epoll.register(fd, select.EPOLLIN)

    def accept(self, fd: int) -> None:
        """Take in who waits at a listener."""
        listener = self._listeners[fd]
        self._reserve.hold()
        for _ in range(FAIR_SHARE):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._accept_without_descriptors(fd, error)
                return
            if len(self._connections) >= MAX_LEASE_CONNECTIONS:
                _turn_away(sock)
                continue
            if len(self._until) >= MAX_HALF_OPEN:
                next(iter(self._until)).close("a newer one took its place before it had proven itself")
            try:
                _tune(sock)
                self._begin(sock, show_address(*address[:2]))
            except OSError as error:  # it is gone again, or the system watches no more descriptors
                logger.warning("a lease client cannot be taken: %s", error.strerror)
                sock.close()

    def _accept_without_descriptors(self, fd: int, error: OSError) -> None:
        """Tell one client that there is no descriptor for it: with the one in reserve.  Without: wait."""
        logger.warning("a lease client cannot be taken: %s", error.strerror)
        if not self._reserve.spend():
            self._epoll.unregister(fd)
            self._paused[fd] = time.monotonic() + PAUSE_S
            return
        with contextlib.suppress(OSError):
            _turn_away(self._listeners[fd].accept()[0])
        self._reserve.hold()

    # -- time --------------------------------------------------------------------------------------------

    def expect(self, client: Channel) -> None:
        """A client has to prove itself, or to close, in time."""
        self._until[client] = time.monotonic() + HANDSHAKE_TIMEOUT_S

    def forget(self, client: Channel) -> None:
        """It has, or is being closed."""
        self._until.pop(client, None)

    @property
    def due(self) -> float | None:
        """When somebody's time is over, or a pause."""
        soonest = (next(iter(each.values()), None) for each in (self._until, self._paused))
        return min((due for due in soonest if due is not None), default=None)

    def on_time(self, now: float) -> None:
        """Close those whose time is over; watch listeners again whose pause is."""
        while self._until and next(iter(self._until.values())) <= now:
            next(iter(self._until)).close("its handshake took too long")
        while self._paused and next(iter(self._paused.values())) <= now:
            self._epoll.register(self._paused.popitem(last=False)[0], select.EPOLLIN)

    # -- the end -----------------------------------------------------------------------------------------

    def end(self) -> None:
        """Nobody can connect any more, though a child of fork may still have the listeners, too."""
        for listener in self._listeners.values():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the listeners of this process."""
        for listener in self._listeners.values():
            listener.close()
        self._reserve.spend()


def _turn_away(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(refusal(TOO_MANY))
    sock.close()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
