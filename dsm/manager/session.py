"""The local socket of a node: workers that attach, and what they ask besides pages.

Owns the connections of this node's workers, their boards, and which regions each has mapped.  A
worker is known by its connection and its pidfd; when either ends, everything of it is released.
Requests that only the coordinator can answer go to it; the worker's answer follows when it has come.

A process that does not read its answers is asked for no more requests until it does: nothing is
dropped, and what waits is bounded by `MAX_UNANSWERED`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from dsm._native import Board, worker_board_bytes
from dsm.errors import DSMError, InternalError, LimitError, Status, status_of
from dsm.limits import (
    FAIR_SHARE,
    MAX_CONTROL_BYTES,
    MAX_UNANSWERED,
    MAX_UNATTACHED,
    MAX_WORKERS_PER_NODE,
)
from dsm.log import logger
from dsm.manager.loop import IN, OUT, Loop
from dsm.manager.notices import Notices
from dsm.wire import control

_HANGUP = select.EPOLLHUP | select.EPOLLERR
_CREDENTIALS = struct.Struct("3i")
#: What a process may ask that is no worker.
_BEFORE_ATTACH = (control.Attach, control.GetStatus, control.GetPages)


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
        #: Requests that were read and not answered yet, and answers that the socket did not take.
        self.asked = 0
        self.unsent: deque[tuple[bytes, list[int]]] = deque()
        #: What the loop waits for.
        self.events = IN
        #: Called when one of them has changed.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def is_behind(self) -> bool:
        """Whether its process is to read answers before it is asked for more requests."""
        return bool(self.unsent) or self.asked >= MAX_UNANSWERED

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
        self.asked -= 1
        data = control.encode(control.Answer(number, body))
        if self.unsent or not self._send(data, fds):
            # The descriptors are the caller's: what waits has its own.
            try:
                self.unsent.append((data, _duplicates(fds)))
            except OSError as error:
                refusal = control.Answer(number, control.Failed(Status.LIMIT, lack(error)))
                self.unsent.append((control.encode(refusal), []))
        self.on_change()

    def _send(self, data: bytes, fds: Sequence[int]) -> bool:
        """Send one datagram; False when the socket is full."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], ancillary)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def drain(self) -> None:
        """Send what waits, as far as the socket takes it."""
        while self.unsent and self._send(*self.unsent[0]):
            _close_all(self.unsent.popleft()[1])
        self.on_change()

    def forget(self) -> None:
        """Drop what waits."""
        while self.unsent:
            _close_all(self.unsent.popleft()[1])

    def fail(self, number: int, status: int, message: str) -> None:
        """Refuse request `number`."""
        self.answer(number, control.Failed(status, message))


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    made: list[int] = []
    try:
        for descriptor in descriptors:
            made.append(os.dup(descriptor))
    except OSError:
        _close_all(made)
        raise
    return made


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


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
        self._notices = Notices(log, loop.after)
        self.workers: dict[int, Session] = {}
        self._open: set[Session] = set()
        #: Those that have not attached, oldest first.
        self._strangers: dict[Session, None] = {}
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
            self._notices.say(
                "workers that could not be accepted",
                f"cannot accept a worker: {error.strerror}; trying again in a second",
            )

    def _begin(self, sock: socket.socket) -> None:
        size = _CREDENTIALS.size
        pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid != os.geteuid():
            self._notices.say(
                "refused processes",
                f"refused process {pid}: it runs as user {uid}, this node as {os.geteuid()}",
            )
            sock.close()
            return
        if len(self._strangers) >= MAX_UNATTACHED:
            oldest = next(iter(self._strangers))
            self._notices.say(
                "refused processes",
                f"refused process {oldest.pid}: more than {MAX_UNATTACHED} connections have not attached",
            )
            self.close_session(oldest)
        session = Session(sock, pid)
        session.on_change = lambda: self._watch(session)
        self._open.add(session)
        self._strangers[session] = None
        self._loop.watch(sock.fileno(), lambda events: self._ready(session, events))

    def _watch(self, session: Session) -> None:
        """Wait for what is next: room for answers, answers, or requests."""
        events = OUT if session.unsent else 0 if session.is_behind else IN
        if events != session.events and not session.closed:
            session.events = events
            self._loop.change(session.sock.fileno(), events)

    def _ready(self, session: Session, events: int) -> None:
        if events & OUT:
            session.drain()
        if events & _HANGUP and session.is_behind:
            session.forget()  # nobody reads answers any more, but what it said last counts
            session.asked = 0
        if events & (IN | _HANGUP) and not session.is_behind:
            self._receive(session)

    def _receive(self, session: Session) -> None:
        for _ in range(FAIR_SHARE):
            if session.closed or session.is_behind:
                return
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
                self._notices.say(
                    "requests that are none", f"process {session.pid} sent a request that is none: {error}"
                )
                session.asked += 1
                number = control.number_of(data)
                if number is None:
                    session.asked -= 1
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
            session.asked += 1
            try:
                if session.worker < 0 and not isinstance(call.body, _BEFORE_ATTACH):
                    session.fail(call.number, Status.USAGE, "the first request of a worker is Attach")
                else:
                    self._handle(session, call.number, call.body)
            except DSMError as error:
                if isinstance(error, InternalError):
                    logger.error(
                        "request %s of process %d", type(call.body).__name__, session.pid, exc_info=True
                    )
                session.fail(call.number, status_of(error), str(error))
            except (OSError, MemoryError) as error:  # no descriptors or no memory
                session.fail(call.number, Status.LIMIT, lack(error))

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
                f"this node has {MAX_WORKERS_PER_NODE} workers, as many as it can have; "
                "start fewer processes a node, or another node"
            )
        with contextlib.ExitStack() as undo:
            board_fd = os.memfd_create(f"dsm-board-{session.pid}", os.MFD_CLOEXEC)
            undo.callback(os.close, board_fd)
            os.ftruncate(board_fd, worker_board_bytes())
            nudge_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, nudge_fd)
            self._board.add(free, board_fd, nudge_fd)
            undo.pop_all()
        session.board_fd, session.nudge_fd = board_fd, nudge_fd
        session.worker = free
        self._strangers.pop(session, None)
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
        self._strangers.pop(session, None)
        self._loop.forget(session.sock.fileno())
        session.forget()
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
            session.forget()
            session.sock.close()
        self._listener.close()


def lack(error: OSError | MemoryError) -> str:
    """Say what the manager's process has too little of, and what to change."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"the manager of this node: {error.strerror}; it may have {limit} descriptors, of which each "
            "region takes three and each worker four: use fewer, or start it under a higher `ulimit -n`"
        )
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return f"the manager of this node: {error}"
    bounds = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    shown = ["unlimited" if bound == resource.RLIM_INFINITY else f"{bound} bytes" for bound in bounds]
    return (
        f"the manager of this node: {os.strerror(errno.ENOMEM)}; it has RLIMIT_AS {shown[0]}, RLIMIT_DATA "
        f"{shown[1]}: make regions smaller, or start it under a higher `ulimit -v` or `-d`"
    )
