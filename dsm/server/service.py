"""The loop of a lease server: one thread, one epoll, and the clock.

Owns connections as a set, who waits for what, and when something is due: a turn, the end of a lease,
cleaning.  What one client asks is in `dsm.server.connection`, what becomes of leases in `dsm.server.book`.

The loop polls, yielding the processor, for a short time after the last event before it sleeps: waking up
costs more than answering.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dsm.errors import ClosedError, NodeLostError
from dsm.limits import MAX_FOREIGN_BYTES, SPIN_NS
from dsm.server.acceptor import Acceptor
from dsm.server.book import Book, Holding
from dsm.server.channel import Channel
from dsm.server.cleaner import Cleaner
from dsm.server.connection import Connection
from dsm.server.memory import Memory
from dsm.server.share import Share
from dsm.server.stragglers import Stragglers
from dsm.wire.lease_handshake import NONCE_BYTES
from dsm.wire.lease_handshake import Server as Handshake
from dsm.wire.leases import Op

if TYPE_CHECKING:
    from dsm.server.cluster import Cluster

T = TypeVar("T")
#: How long leases are ended in one round.
_END_NS = 2_000_000
#: Bytes that are received at once.
_BUFFER_BYTES = 512 * 1024
#: The longest sleep: so late it is noticed that the node has ended.
_SLEEP_MAX_S = 1.0


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
        self._epoll = select.epoll()
        #: What wakes the loop; -1 when it has ended.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = threading.Lock()
        self._connections: dict[int, Channel] = {}
        self._acceptor = Acceptor(listeners, self._epoll, self._connections, self.begin)
        #: Connections in the middle of a SET into a lease.
        self.receiving: set[Channel] = set()
        #: Connections with requests that are here and had no turn, in order.
        self._later: dict[Channel, None] = {}
        #: Connections that wait for memory to be cleaned.
        self._waiting: list[Channel] = []
        self._cleaner = Cleaner(self.book, memory)
        #: Connections that wait for a lease to be given to the cluster, or not.
        self._waiting_for_move: list[Channel] = []
        #: Memory for bytes of the cluster's leases.
        self.foreign: Share[Channel] = Share(MAX_FOREIGN_BYTES)
        self._stragglers = Stragglers()
        #: What knows leases that are not this server's; None: nothing does.
        self.cluster: Cluster | None = None
        #: Set when the loop has ended.
        self.ended = threading.Event()
        #: What other threads want done, in order.
        self._calls: deque[Callable[[], None]] = deque()
        self._running = True
        self._epoll.register(self._wake, select.EPOLLIN)

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
        self._acceptor.forget(connection)

    def dismiss(self, connection: Channel) -> None:
        """Close a connection soon: its last answer is on its way."""
        self._acceptor.expect(connection)
        self._due = 0.0

    def look_soon(self) -> None:
        """Look in this round what is due."""
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
        self._stragglers.watch(self.foreign.taken)
        self._due = 0.0
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
        self._acceptor.forget(connection)
        self._stragglers.forget(connection)
        self.receiving.discard(connection)
        if self.cluster is not None:
            self.cluster.forget(connection)

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
            self.lease_ended(holding)
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
        for each in (self._acceptor.due, self._stragglers.due):
            if each is not None:
                due = min(due, each)
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
        self._acceptor.on_time(now)
        if self._stragglers.due is not None and now >= self._stragglers.due:
            self._stragglers.look(now, self.foreign)

    def _end_due(self) -> None:
        """End leases that have run out, as long as a turn may last: the rest in the next round."""
        now, table = self.now_ms(), self.book.table
        until = time.monotonic_ns() + _END_NS
        while (deadline := table.next_deadline) is not None and deadline <= now:
            for holding in self.book.due(deadline):
                self.lease_ended(holding)
            if time.monotonic_ns() > until:
                return

    def _other(self, fd: int) -> None:
        """A listener, or another thread, has something."""
        if fd != self._wake:
            self._acceptor.accept(fd)
            self._due = 0.0  # it may wait for something now
            return
        os.eventfd_read(self._wake)
        while self._calls:
            self._calls.popleft()()

    def begin(self, sock: socket.socket, name: str) -> Connection:
        """Take a client in."""
        sock.setblocking(False)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        connection = Connection(self, sock, name, Handshake(self._secret, os.urandom(NONCE_BYTES)))
        self._connections[connection.fd] = connection
        self._acceptor.expect(connection)
        self._due = 0.0
        return connection

    # -- the end of leases -------------------------------------------------------------------------------

    def lease_ended(self, holding: Holding) -> None:
        """A lease has ended: nothing goes on into its memory, and what is sent from it must move on."""
        for connection in [each for each in self.receiving if each.receives_into(holding)]:
            self.receiving.discard(connection)
            connection.drop(holding)
        if not holding.transfers:
            return
        self._stragglers.watch(each for each in self._connections.values() if each.sends(holding))
        self._due = 0.0

    def _clean(self) -> None:
        """Zero ended leases; who waits for that goes on."""
        if self._cleaner.clean():
            waiting, self._waiting = self._waiting, []
            for connection in waiting:
                connection.resume()

    def close(self) -> None:
        """Close every connection and the listeners."""
        for connection in list(self._connections.values()):
            connection.close("")
        self._acceptor.end()
        self._release()

    def abandon(self) -> None:
        """In a child of fork: the connections are the parent's."""
        for connection in self._connections.values():
            connection.sock.close()
        self._waking = threading.Lock()
        self._release()

    def _release(self) -> None:
        self._epoll.close()
        with self._waking:
            wake, self._wake = self._wake, -1
        if wake >= 0:  # else a child of fork inherits one whose loop has ended
            os.close(wake)
        self._acceptor.close()
