"""Taking clients of a lease server in, until they have proven themselves.

Owns the listeners, who is not through the handshake and until when, and what is said to those for whom there
is no room.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING

from dsm.limits import FAIR_SHARE, HANDSHAKE_TIMEOUT_S, MAX_HALF_OPEN, MAX_LEASE_CONNECTIONS
from dsm.log import logger
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
    connections
        All there are.
    begin
        Makes a connection of a socket and a name.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        connections: Sized,
        begin: Callable[[socket.socket, str], object],
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connections = connections
        self._begin = begin
        #: A descriptor in reserve; -1 while none can be had.
        self._spare = -1
        self._hold_spare()
        #: Who has not proven himself, or is to be closed, soonest first; and until when.
        self._until: OrderedDict[Channel, float] = OrderedDict()

    @property
    def fds(self) -> list[int]:
        """Descriptors of the listeners."""
        return list(self._listeners)

    def accept(self, fd: int) -> None:
        """Take in who waits at a listener."""
        listener = self._listeners[fd]
        self._hold_spare()
        for _ in range(FAIR_SHARE):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._accept_without_descriptors(listener, error)
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

    def _accept_without_descriptors(self, listener: socket.socket, error: OSError) -> None:
        """Tell one client that there is no descriptor for it: with the one in reserve."""
        logger.warning("a lease client cannot be taken: %s", error.strerror)
        self._drop_spare()
        with contextlib.suppress(OSError):
            _turn_away(listener.accept()[0])
        self._hold_spare()

    def _hold_spare(self) -> None:
        if self._spare < 0:
            with contextlib.suppress(OSError):  # the next time, then
                self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    # -- time --------------------------------------------------------------------------------------------

    def expect(self, client: Channel) -> None:
        """A client has to prove itself, or to close, in time."""
        self._until[client] = time.monotonic() + HANDSHAKE_TIMEOUT_S

    def forget(self, client: Channel) -> None:
        """It has, or is being closed."""
        self._until.pop(client, None)

    @property
    def due(self) -> float | None:
        """When somebody's time is over."""
        return next(iter(self._until.values()), None)

    def close_late(self, now: float) -> None:
        """Close those whose time is over."""
        while (due := self.due) is not None and due <= now:
            next(iter(self._until)).close("its handshake took too long")

    # -- the end -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the listeners."""
        for listener in self._listeners.values():
            listener.close()
        self._drop_spare()


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
