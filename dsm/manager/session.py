"""The local socket of a node: workers that attach, and what they ask besides pages.

Owns the connections of this node's workers, their boards, and which regions each has mapped.  A
worker is known by its connection and its pidfd; when either ends, everything of it is released.
Requests that only the coordinator can answer go to it; the worker's answer follows when it has come.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable

import msgspec

from dsm._native import Board, worker_board_bytes
from dsm.errors import DSMError, InternalError, LimitError, Status, status_of
from dsm.limits import MAX_CONTROL_BYTES, MAX_WORKERS_PER_NODE
from dsm.log import logger
from dsm.manager.loop import Loop
from dsm.wire import control

_CREDENTIALS = struct.Struct("3i")


class Session:
    """One connection on the local socket; `worker` is -1 until it has attached."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.pidfd = -1
        self.worker = -1
        self.rank = -1
        #: It has said that it ends, on its own.
        self.left = False
        self.board_fd = -1
        #: Wakes the worker's service thread.
        self.nudge_fd = -1
        #: Pins it holds: (region, page, count, write); and since when, for status.
        self.pins: list[tuple[int, int, int, int]] = []
        self.pinned_ns: list[int] = []
        #: Requests that are not answered yet, by number, and since when, for status.
        self.asking: dict[int, tuple[control.Request, int]] = {}
        self.closed = False

    def pinned(self, pin: tuple[int, int, int, int]) -> None:
        """It was granted a pin."""
        self.pins.append(pin)
        self.pinned_ns.append(time.monotonic_ns())

    def unpinned(self, pin: tuple[int, int, int, int]) -> bool:
        """It gives a pin back; False when it has none like that."""
        if pin not in self.pins:
            return False
        at = self.pins.index(pin)
        del self.pins[at], self.pinned_ns[at]
        return True

    def answer(self, number: int, body: control.Reply, fds: tuple[int, ...] = ()) -> None:
        """Send the answer to request `number`; a worker that is gone does not matter."""
        if self.closed:
            return
        self.asking.pop(number, None)
        data = control.encode(control.Answer(number, body))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self.sock.sendmsg([data], ancillary)

    def fail(self, number: int, status: int, message: str) -> None:
        """Refuse request `number`."""
        self.answer(number, control.Failed(status, message))


class Sessions:
    """Workers of this node.

    Parameters
    ----------
    loop, board
        The manager's.
    handle
        Called with every request but `Attach`'s board set-up: ``handle(session, number, body)``.
    gone
        Called once with every session that had attached, when it is over.
    """

    def __init__(
        self,
        loop: Loop,
        board: Board,
        name: str,
        handle: Callable[[Session, int, control.Request], None],
        gone: Callable[[Session], None],
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._board = board
        self._handle = handle
        self._gone = gone
        self._log = log
        self.workers: dict[int, Session] = {}
        self._open: set[Session] = set()
        self.name = name
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        # The abstract namespace: no file that could be left behind; who connects is checked by uid.
        self._listener.bind("\0" + name.removeprefix("@"))
        self._listener.listen(128)

    def accept_workers(self) -> None:
        """Begin to answer."""
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        try:
            for sock in self._loop.accept(self._listener, self._accept):
                self._begin(sock)
        except OSError as error:
            self._log(f"cannot accept a worker: {error.strerror}; trying again in a second")

    def _begin(self, sock: socket.socket) -> None:
        size = _CREDENTIALS.size
        pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid != os.geteuid():
            self._log(f"refused process {pid}: it runs as user {uid}, this node as {os.geteuid()}")
            sock.close()
            return
        session = Session(sock, pid)
        self._open.add(session)
        self._loop.watch(sock.fileno(), lambda _: self._receive(session))

    def _receive(self, session: Session) -> None:
        while not session.closed:
            try:
                data = session.sock.recv(MAX_CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close_session(session)
                return
            try:
                call = control.decode_call(data)
            except msgspec.MsgspecError as error:
                self._log(f"process {session.pid} sent a request that is none: {error}")
                number = control.number_of(data)
                if number is None:
                    if session.worker >= 0:
                        # A datagram more or less is no reason to drop a worker: its threads may be in faults.
                        continue
                    self.close_session(session)
                    return
                session.fail(number, Status.USAGE, f"the manager cannot understand the request: {error}")
                continue
            if isinstance(call.body, control.Leave):
                session.left = True
                continue
            session.asking[call.number] = (call.body, time.monotonic_ns())
            try:
                if session.worker < 0 and not isinstance(call.body, (control.Attach, control.GetStatus)):
                    session.fail(call.number, Status.USAGE, "the first request of a worker is Attach")
                else:
                    self._handle(session, call.number, call.body)
            except DSMError as error:
                if isinstance(error, InternalError):
                    logger.error(
                        "request %s of process %d", type(call.body).__name__, session.pid, exc_info=True
                    )
                session.fail(call.number, status_of(error), str(error))
            except OSError as error:  # no descriptors or no memory
                session.fail(call.number, Status.LIMIT, f"the manager of this node: {error.strerror}")

    def admit(self, session: Session) -> None:
        """Give a session a worker number and a board.

        Raises
        ------
        LimitError
            The node has as many workers as it can have.
        """
        if session.worker >= 0:
            return
        free = next((n for n in range(MAX_WORKERS_PER_NODE) if n not in self.workers), None)
        if free is None:
            raise LimitError(
                f"this node has {MAX_WORKERS_PER_NODE} workers, as many as it can; start another node"
            )
        session.board_fd = os.memfd_create(f"dsm-board-{session.pid}", os.MFD_CLOEXEC)
        os.ftruncate(session.board_fd, worker_board_bytes())
        session.nudge_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._board.add(free, session.board_fd, session.nudge_fd)
        session.worker = free
        self.workers[free] = session
        with contextlib.suppress(OSError):
            # The connection may outlive the process in a child that inherited it.
            session.pidfd = os.pidfd_open(session.pid)
            self._loop.watch(session.pidfd, lambda _: self.close_session(session))

    def close_session(self, session: Session) -> None:
        """The worker left, or died."""
        if session.closed:
            return
        session.closed = True
        self._open.discard(session)
        self._loop.forget(session.sock.fileno())
        if session.pidfd >= 0:
            self._loop.forget(session.pidfd)
            os.close(session.pidfd)
        session.sock.close()
        if session.worker >= 0:
            self._loop.collect()  # what it said last still counts
            del self.workers[session.worker]
            self._gone(session)
            self._board.remove(session.worker)
            os.close(session.board_fd)
            os.close(session.nudge_fd)

    def close(self) -> None:
        """Close every connection and the listener."""
        for session in list(self._open):
            session.closed = True
            self._loop.forget(session.sock.fileno())
            session.sock.close()
        self._listener.close()
