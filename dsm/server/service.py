"""The loop of a lease server: one thread, one epoll, and the clock.

Owns connections as a set: taking them in, their turns, their limits; when leases end; when memory is cleaned.
What one client asks is in `dsm.server.connection`, what becomes of leases in `dsm.server.book`.

The loop polls, yielding the processor, for a short time after the last event before it sleeps: waking up
costs more than answering.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dsm.errors import ClosedError, NodeLostError
from dsm.limits import (
    FAIR_SHARE,
    HANDSHAKE_TIMEOUT_S,
    LEASE_CLEAN_BYTES,
    LEASE_LINGER_S,
    MAX_FOREIGN_BYTES,
    MAX_HALF_OPEN,
    MAX_LEASE_CONNECTIONS,
    SPIN_NS,
)
from dsm.log import logger
from dsm.memory.token import random_id
from dsm.server.book import Book, CleaningError, Holding
from dsm.server.channel import Channel
from dsm.server.connection import Connection
from dsm.server.memory import GIVE_BACK_BYTES, Memory
from dsm.server.share import Share
from dsm.wire import leases as wire
from dsm.wire.lease_handshake import NONCE_BYTES, TOO_MANY, refusal
from dsm.wire.lease_handshake import Server as Handshake
from dsm.wire.leases import KEYS, Op

if TYPE_CHECKING:
    from dsm.server.cluster import Cluster

T = TypeVar("T")
#: How long leases are ended in one round.
_END_NS = 2_000_000
#: What cleaning a lease costs at least, in bytes of the same time.
_CLEAN_LEAST_BYTES = 16 * 1024
#: Bytes that are received at once.
_BUFFER_BYTES = 512 * 1024
#: The longest sleep: so late it is noticed that the node has ended.
_SLEEP_MAX_S = 1.0
#: An idle client whose host does not answer is given up after about two minutes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
#: An answer from the memory of an ended lease must go on with this many bytes a second.
_LINGER_BYTES = 256 * 1024


class Service:
    """Answers clients until `stop`.

    Parameters
    ----------
    listeners
        Bound and listening.
    memory
        What is leased.
    secret
        What clients must know; None: nothing.
    """

    def __init__(self, listeners: list[socket.socket], memory: Memory, secret: bytes | None) -> None:
        self.memory = memory
        self.book = Book(memory.address, memory.nbytes)
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        #: Counted by connections.
        self.gets = self.sets = self.bytes_in = self.bytes_out = self.refused = 0
        #: When something is to be done though no client says anything; 0: look.
        self._due = 0.0
        self._secret = secret
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._epoll = select.epoll()
        #: What wakes the loop; -1 when it has ended.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = threading.Lock()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._connections: dict[int, Channel] = {}
        #: Those that have not proven themselves, oldest first, and until when.
        self._half_open: OrderedDict[Channel, float] = OrderedDict()
        #: Connections in the middle of a SET into a lease.
        self.receiving: set[Channel] = set()
        #: Connections with requests that are here and had no turn, in order.
        self._later: dict[Channel, None] = {}
        #: Connections that wait for memory to be cleaned.
        self._waiting: list[Channel] = []
        #: Connections that are being sent memory of an ended lease: how far they were at the last look.
        self._lingering: dict[Channel, int] = {}
        self._linger_due = 0.0
        #: Offset up to which the first ended lease is cleaned.
        self._clean_at = 0
        #: Connections that wait for a lease to be given to the cluster, or not.
        self._waiting_for_move: list[Channel] = []
        #: Memory for bytes of the cluster's leases.
        self.foreign: Share[Channel] = Share(MAX_FOREIGN_BYTES)
        #: What knows leases that are not this server's; None: nothing does.
        self.cluster: Cluster | None = None
        #: Set when the loop has ended.
        self.ended = threading.Event()
        #: What other threads want done, in order.
        self._calls: deque[Callable[[], None]] = deque()
        self._running = True
        for fd in (*self._listeners, self._wake):
            self._epoll.register(fd, select.EPOLLIN)

    # -- used by connections -----------------------------------------------------------------------------

    @staticmethod
    def now_ms() -> int:
        """Return the time of leases."""
        return time.monotonic_ns() // 1_000_000

    def watch(self, fd: int, events: int) -> None:
        """Watch a connection for other events."""
        self._epoll.modify(fd, events)

    def later(self, connection: Channel) -> None:
        """Give a connection a turn in the next round."""
        self._later[connection] = None
        self._due = 0.0

    def admit(self, connection: Channel) -> None:
        """The client has proven itself."""
        self._half_open.pop(connection, None)

    def dismiss(self, connection: Channel) -> None:
        """Close a connection soon: its last answer is on its way."""
        self._half_open[connection] = time.monotonic() + HANDSHAKE_TIMEOUT_S
        self._due = 0.0

    def wait_for_room(self, connection: Channel) -> None:
        """Resume a connection when memory has been cleaned."""
        self._waiting.append(connection)

    def wait_for_move(self, connection: Channel) -> None:
        """Resume a connection when a lease has been given to the cluster, or not."""
        self._waiting_for_move.append(connection)

    def lend(self, connection: Channel, nbytes: int) -> bool:
        """Let a connection have memory for a lease of the cluster; False: it is `granted` some later.

        Others that have some and do not move on are closed then.
        """
        if connection in self.foreign.taken or self.foreign.take(connection, nbytes):
            return True
        self._watch_borrowers()
        return False

    def give_back(self, connection: Channel) -> None:
        """A connection needs that memory no more, or does not wait for it any more."""
        for each in self.foreign.give(connection):
            each.granted()

    def count(self, op: int, failed: bool) -> None:
        """A request has its answer."""
        if failed:
            self.refused += 1
        elif op == Op.GET:
            self.gets += 1
        elif op == Op.SET:
            self.sets += 1

    def forget(self, connection: Channel) -> None:
        """The connection is being closed."""
        self._epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        self._half_open.pop(connection, None)
        self._lingering.pop(connection, None)
        self.receiving.discard(connection)

    def answer(self, op: int, number: int, offset: int, count: int, token: bytes, now: int) -> bytes:
        """Return the reply to a request that moves no bytes of leases.

        Raises
        ------
        CleaningError, MovingError
            It cannot be answered yet.
        DSMError
            It cannot be done.
        """
        book = self.book
        self._due = 0.0
        if op == Op.LEASE:
            keys = os.urandom(48)
            identity, write_key, read_key = random_id(keys[:16]), keys[16:32], keys[32:]
            leased = book.lease(now, count, offset, identity, write_key, read_key)
            if leased is None:
                raise CleaningError
            return wire.reply(op, number, KEYS.pack(identity, write_key, read_key), count, offset)
        if op == Op.RENEW:
            return wire.reply(op, number, b"", book.renew(token, now, offset).nbytes, offset)
        if op == Op.RELEASE:
            holding = book.release(token, now)
            self._ended(holding)
            return wire.reply(op, number, b"", holding.nbytes)
        if op == Op.INFO:
            holding = book.find(token, now)
            record = book.table.find(token[:16], token[16:], now)
            row = book.row(record, now, token in book.writable)
            return wire.reply(op, number, row.pack(), holding.nbytes, row.remaining_ms)
        if op == Op.FIGURES:
            return wire.reply(op, number, wire.pack_figures(self.figures()))
        return wire.reply(op, number, b"", wire.VERSION)

    def figures(self) -> dict[str, int]:
        """Return what `dsm.wire.leases.FIGURES` names."""
        return self.book.figures() | {
            "connections": len(self._connections),
            "refused": self.refused,
            "gets": self.gets,
            "sets": self.sets,
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
        }

    # -- used by other threads ---------------------------------------------------------------------------

    def call(self, function: Callable[[], None]) -> None:
        """Let the loop's thread call a function soon, which raises nothing."""
        self._calls.append(function)
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def ask(self, function: Callable[[], T]) -> T:
        """Return what a function returns, or raise what it raises, in the loop's thread.

        Raises
        ------
        ClosedError
            The loop has ended.
        """
        done: list[T] = []
        failed: list[BaseException] = []
        ready = threading.Event()

        def run() -> None:
            try:
                done.append(function())
            except BaseException as error:
                failed.append(error)
            ready.set()

        self.call(run)
        while not ready.wait(0.1):
            if self.ended.is_set() and not ready.is_set():
                raise ClosedError("the lease server was closed")
        if failed:
            raise failed[0]
        return done[0]

    def receives_into(self, holding: Holding, cut: bool) -> bool:
        """Whether a SET is on its way into a lease; `cut`: not any more."""
        receiving = [each for each in self.receiving if each.receives_into(holding)]
        if cut:
            for connection in receiving:
                connection.close("its lease was wanted by the cluster in the middle of a SET")
        return bool(receiving) and not cut

    def end_move(self, holding: Holding, moved: bool) -> None:
        """A lease is the cluster's now, or stays; who has waited for that goes on."""
        self.book.end_move(holding, moved)
        if moved:
            self._ended(holding)
        self._due = 0.0
        waiting, self._waiting_for_move = self._waiting_for_move, []
        for connection in waiting:
            connection.resume()

    def stop(self) -> None:
        """End `run`."""
        self._running = False
        self.call(lambda: None)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`.

        Raises
        ------
        NodeLostError
            The node has ended, and the memory with it.
        """
        poll, connections = self._epoll.poll, self._connections
        monotonic_ns = time.monotonic_ns
        spin_until = 0
        while self._running:
            ready = poll(0)
            if not ready:
                now_ns = monotonic_ns()
                if now_ns < spin_until and now_ns < self._due * 1e9:
                    os.sched_yield()
                    continue
                self._due = self._next_due()
                ready = poll(max(0.0, self._due - now_ns / 1e9))
            if ready:
                spin_until = monotonic_ns() + SPIN_NS
            for fd, events in ready:
                connection = connections.get(fd)
                if connection is None:
                    self._other(fd)
                    continue
                connection.turn(events)
            if monotonic_ns() >= self._due * 1e9:
                self._on_time()
                self._due = self._next_due()

    def _next_due(self) -> float:
        """Return when something is to be done though no client says anything."""
        now = time.monotonic()
        if self._later or self.book.cleaning:
            return now
        due = now + _SLEEP_MAX_S
        deadline = self.book.table.next_deadline
        if deadline is not None:
            due = min(due, deadline / 1000)
        if self._half_open:
            due = min(due, next(iter(self._half_open.values())))
        if self._lingering:
            due = min(due, self._linger_due)
        return due

    def _on_time(self) -> None:
        if self.memory.lost:
            raise NodeLostError("the manager of its node has ended, and the leased memory with it")
        later, self._later = self._later, {}
        for connection in later:
            connection.turn()
        self._end_due()
        if self.book.cleaning:
            self._clean()
        now = time.monotonic()
        while self._half_open:
            connection, until = next(iter(self._half_open.items()))
            if until > now:
                break
            connection.close("its handshake took too long")
        if self._lingering and now >= self._linger_due:
            self._look_at_lingering(now)

    def _end_due(self) -> None:
        """End leases that have run out, as long as a turn may last: the rest in the next round."""
        now, table = self.now_ms(), self.book.table
        until = time.monotonic_ns() + _END_NS
        while (deadline := table.next_deadline) is not None and deadline <= now:
            for holding in self.book.due(deadline):
                self._ended(holding)
            if time.monotonic_ns() > until:
                return

    def _other(self, fd: int) -> None:
        """A listener, or another thread, has something."""
        if fd in self._listeners:
            self._accept(self._listeners[fd])
        elif fd == self._wake:
            os.eventfd_read(self._wake)
            while self._calls:
                self._calls.popleft()()

    def _accept(self, listener: socket.socket) -> None:
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
                self._turn_away(sock)
                continue
            if len(self._half_open) >= MAX_HALF_OPEN:
                next(iter(self._half_open)).close("a newer one took its place before it had proven itself")
            try:
                _tune(sock)
                self.begin(sock, f"{address[0]}:{address[1]}")
            except OSError as error:  # it is gone again, or the system watches no more descriptors
                logger.warning("a lease client cannot be taken: %s", error.strerror)
                sock.close()

    def begin(self, sock: socket.socket, name: str) -> Connection:
        """Take a client in."""
        sock.setblocking(False)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        connection = Connection(self, sock, name, Handshake(self._secret, os.urandom(NONCE_BYTES)))
        self._connections[connection.fd] = connection
        self._half_open[connection] = time.monotonic() + HANDSHAKE_TIMEOUT_S
        self._due = 0.0
        return connection

    def _turn_away(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(refusal(TOO_MANY))
        sock.close()

    def _accept_without_descriptors(self, listener: socket.socket, error: OSError) -> None:
        """Tell one client that there is no descriptor for it: with the one in reserve."""
        logger.warning("a lease client cannot be taken: %s", error.strerror)
        os.close(self._spare)
        try:
            with contextlib.suppress(OSError):
                self._turn_away(listener.accept()[0])
        finally:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    # -- the end of leases -------------------------------------------------------------------------------

    def _ended(self, holding: Holding) -> None:
        """A lease has ended: nothing goes on into its memory, and what is sent from it must move on."""
        for connection in [each for each in self.receiving if each.receives_into(holding)]:
            self.receiving.discard(connection)
            connection.drop(holding)
        if not holding.transfers:
            return
        for connection in self._connections.values():
            if connection.sends(holding):
                self._must_move_on(connection)

    def _watch_borrowers(self) -> None:
        """Somebody waits for memory that others have."""
        for connection in self.foreign.taken:
            self._must_move_on(connection)

    def _must_move_on(self, connection: Channel) -> None:
        """Somebody waits for what a connection has: it is closed when it stands still."""
        if not self._lingering:
            self._linger_due = time.monotonic() + LEASE_LINGER_S
            self._due = 0.0
        # A whole second is its own, whenever the next look is.
        self._lingering.setdefault(connection, connection.moved - _LINGER_BYTES)

    def _look_at_lingering(self, now: float) -> None:
        self._linger_due = now + LEASE_LINGER_S
        foreign = self.foreign
        for connection, moved in list(self._lingering.items()):
            if not (connection.sends_ended or (foreign.waiting and connection in foreign.taken)):
                del self._lingering[connection]
            elif connection.waits:  # not for its client
                self._lingering[connection] = connection.moved - _LINGER_BYTES
            elif connection.moved - moved >= _LINGER_BYTES:
                self._lingering[connection] = connection.moved
            else:
                connection.close("it does not move on with a transfer that others wait for")
        if foreign.waiting:
            self._watch_borrowers()

    def _clean(self) -> None:
        """Zero one round's worth of ended leases."""
        budget = LEASE_CLEAN_BYTES
        book, memory = self.book, self.memory
        done = False
        while budget > 0 and (holding := book.next_to_clean()) is not None:
            low = max(holding.low, self._clean_at)
            part = min(max(0, holding.high - low), budget)
            if part:
                give_back = holding.high - holding.low > GIVE_BACK_BYTES
                memory.zero(holding.address - memory.address + low, part, give_back)
            budget -= max(part, _CLEAN_LEAST_BYTES)
            if low + part >= holding.high:
                self._clean_at = 0
                book.cleaned(holding)
                done = True
            else:
                self._clean_at = low + part
        if done and self._waiting:
            waiting, self._waiting = self._waiting, []
            for connection in waiting:
                connection.resume()

    def close(self) -> None:
        """Close every connection and the listeners."""
        for connection in list(self._connections.values()):
            connection.close("")
        for listener in self._listeners.values():
            listener.close()
        self._release()

    def abandon(self) -> None:
        """In a child of fork: the connections are the parent's."""
        for connection in self._connections.values():
            connection.sock.close()
        for listener in self._listeners.values():
            listener.close()
        self._waking = threading.Lock()
        self._release()

    def _release(self) -> None:
        self._epoll.close()
        with self._waking:
            os.close(self._wake)
            self._wake = -1
        os.close(self._spare)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
