"""Leases of the cluster through a server, and the server's leases in the cluster.

Owns the threads that do what may wait for other nodes: the loop of the server never does.  A request for a
lease that is not the server's is asked of the cluster (`Node.open_lease`) and done here, under a pin,
because a fault would stop every thread of the interpreter.  A lease of the server that somebody in the
cluster wants to map becomes one of the cluster (`dsm.worker.leasing`): from then on the server is a worker
that opens it like any other.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dsm.errors import (
    ClosedError,
    DSMError,
    InternalError,
    LeaseExpiredError,
    LimitError,
    NotPermittedError,
    PageTimeoutError,
    TooLargeError,
    UnknownLeaseError,
    UsageError,
    status_of,
)
from dsm.limits import DEMAND_WAIT_S, LEASE_LINGER_S, MAX_FOREIGN_LEASES, MAX_FOREIGN_TRANSFER_BYTES
from dsm.log import logger
from dsm.memory.token import show_id
from dsm.server.book import MovingError, unknown_lease
from dsm.wire import leases as wire
from dsm.wire.leases import ID_BYTES, ROW, Op, Row
from dsm.worker.leasing import Demand, adopt, serve_demands

if TYPE_CHECKING:
    from dsm.memory.leases import LeaseRecord
    from dsm.server.book import Holding
    from dsm.server.channel import Channel
    from dsm.server.connection import Connection
    from dsm.server.service import Service
    from dsm.worker.lease import Lease
    from dsm.worker.leasebook import Held
    from dsm.worker.node import Node

T = TypeVar("T")
#: Threads that may wait for other nodes.
_THREADS = 4
#: Bytes that are copied before other threads get a turn.
_PIECE_BYTES = 4 * 1024 * 1024
#: Clients whose lists are kept for their next page; others get theirs made anew.
_MAX_LISTS = 8


class Cluster:
    """The cluster, as a server uses it.

    Parameters
    ----------
    node
        The server's node.
    service
        Its loop.
    """

    def __init__(self, node: Node, service: Service) -> None:
        self._node = node
        self._service = service
        #: Jobs of the threads, None ends one; and how many there are.  (Not `queue`: a program may have a
        #: queue.py beside it.)
        self._jobs: deque[Callable[[], None] | None] = deque()
        self._count = threading.Semaphore(0)
        self._threads = 0
        #: Leases of others by what was shown for them, oldest first; used by the threads.
        self._open: dict[bytes, Lease] = {}
        #: Those that nobody uses any more: neither `_open` nor a connection nor a job.
        self._unused: deque[Held] = deque()
        self._mutex = threading.Lock()
        #: Held while a lease of this server begins to move, or has moved.
        self._moves = threading.Condition()
        #: Rows that clients who list leases page by page are still to be shown, oldest first.
        self._listed: OrderedDict[Channel, bytes] = OrderedDict()
        self._stop = serve_demands(node, self._demanded)

    def close(self) -> None:
        """End the threads; who waits for one gets no answer."""
        self._stop()
        for _ in range(self._threads):
            self._give(None)
        with self._mutex:
            self._open.clear()
        self._give_up()

    # -- leases of others, asked for by clients ----------------------------------------------------------

    def find(self, connection: Connection, token: bytes) -> None:
        """Ask the cluster for a lease; the connection is told what was `found`."""

        def job() -> None:
            found = _tried(connection, "looking for a lease", lambda: self._opened(token))
            if isinstance(found, (NotPermittedError, UnknownLeaseError)):
                found = unknown_lease(token[:ID_BYTES])
            self._service.call(lambda: connection.found(token, found))

        self._put(job, lambda error: connection.found(token, error))

    def do(self, connection: Connection, lease: Lease, op: int, number: int, offset: int, count: int) -> None:
        """Do what a request asks of a lease of the cluster, and give the connection its answer."""
        self._put_request(connection, op, number, lambda: self._done(lease, op, number, offset, count))

    def rows(self, connection: Connection, number: int, skip: int, most: int) -> None:
        """Answer a client with the leases of this server and those of the cluster."""

        def act() -> list[bytes]:
            with self._mutex:
                kept = self._listed.pop(connection, None)
            rows = kept if skip and kept is not None else self._all_rows()
            first, last = skip * ROW.size, (skip + most) * ROW.size
            if last < len(rows):
                with self._mutex:
                    if not connection.closed:
                        self._listed[connection] = rows
                    while len(self._listed) > _MAX_LISTS:
                        self._listed.popitem(last=False)
            return [wire.reply(Op.LIST, number, rows[first:last], len(rows) // ROW.size)]

        self._put_request(connection, Op.LIST, number, act)

    def forget(self, connection: Channel) -> None:
        """The connection is being closed: it asks for no further page."""
        with self._mutex:
            self._listed.pop(connection, None)

    def _all_rows(self) -> bytes:
        """Return the row of every lease, soonest end first; the loop only copies its list."""
        service = self._service
        records, now = service.ask(lambda: (service.book.table.live(), service.now_ms()))
        # By id: one that becomes the cluster's just now is in both.
        rows = {record.id: service.book.row(record, now) for record in records if record.deadline_ms > now}
        for each in self._node.leases():
            left, age = round(each.expires_in * 1000), round(each.age * 1000)
            rows[each.id.bytes] = Row(each.id.bytes, each.nbytes, left, age, mapped=True)
        return b"".join(row.pack() for row in sorted(rows.values(), key=lambda row: row.remaining_ms))

    def store(self, connection: Connection, lease: Lease, offset: int, number: int, data: memoryview) -> None:
        """Write into a lease of the cluster, and answer."""

        def act() -> list[bytes]:
            self._use(lease, offset, len(data), True, lambda: lease.set(data, offset))
            return [wire.reply(Op.SET, number, b"", len(data), _left_ms(lease))]

        self._put_request(connection, Op.SET, number, act)

    def _put_request(
        self, connection: Connection, op: int, number: int, act: Callable[[], list[bytes]]
    ) -> None:
        """Let a thread answer a request."""

        def refuse(error: DSMError) -> None:
            connection.answered(op, True, [wire.error_reply(op, number, status_of(error), str(error))])

        def job() -> None:
            found = _tried(connection, Op(op).name, act)
            if isinstance(found, DSMError):
                self._service.call(lambda: refuse(found))
            else:
                self._service.call(lambda: connection.answered(op, False, found))

        self._put(job, refuse)

    def _done(self, lease: Lease, op: int, number: int, offset: int, count: int) -> list[bytes]:
        if op == Op.GET:
            data = self._use(lease, offset, count, False, lambda: lease.get(offset, count))
            return [wire.REPLY.pack(op, 0, 0, number, count, count, _left_ms(lease)), data]
        if op == Op.RENEW:
            lease.renew(offset / 1000)
            return [wire.reply(op, number, b"", lease.nbytes, offset)]
        if op == Op.RELEASE:
            lease.release()
            return [wire.reply(op, number, b"", lease.nbytes)]
        left = _left_ms(lease)
        if not left:
            raise LeaseExpiredError(f"lease {lease.id} has ended; lease anew, and renew in time")
        row = Row(lease.id.bytes, lease.nbytes, left, 0, lease.writable)
        return [wire.reply(op, number, row.pack(), lease.nbytes, left)]

    def _use(self, lease: Lease, offset: int, count: int, write: bool, act: Callable[[], T]) -> T:
        if not count:
            return act()
        with self._node.pin(lease.array(count, "u1", offset), write=write):
            return act()

    def _opened(self, token: bytes) -> Lease:
        with self._mutex:
            lease = self._open.get(token)
        if lease is None or lease.expires_in == 0:
            demands = self._node._demands  # of this process: another server may have it, this one has not
            others = demands is not None and len(demands) > 1
            lease = self._node._open_lease(token[:ID_BYTES], token[ID_BYTES:], others)
            weakref.finalize(lease, self._unused.append, lease._held).atexit = False
            with self._mutex:
                self._open.pop(token, None)
                self._open[token] = lease
                while len(self._open) > MAX_FOREIGN_LEASES:
                    del self._open[next(iter(self._open))]
        return lease

    def _put(self, job: Callable[[], None], refuse: Callable[[DSMError], None]) -> None:
        """Let a thread do a job; only the loop calls this.  `refuse` is told when there can be none."""
        if self._threads < _THREADS:
            try:
                threading.Thread(target=self._work, name="dsm-server-cluster", daemon=True).start()
            except RuntimeError as error:
                logger.warning("a lease server starts no thread: %s", error)
                if not self._threads:
                    failed = LimitError(f"the lease server can start no thread: {error}; ask again later")
                    self._service.call(lambda: refuse(failed))
                    return
            else:
                self._threads += 1
        self._give(job)

    def _give(self, job: Callable[[], None] | None) -> None:
        self._jobs.append(job)
        self._count.release()

    def _take(self) -> Callable[[], None] | None:
        self._count.acquire()
        return self._jobs.popleft()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            job()
            del job  # and the lease that it used
            self._give_up()

    def _give_up(self) -> None:
        """Close what nobody uses here: the regions of leases, and their descriptors, would only grow."""
        while self._unused:
            with contextlib.suppress(IndexError, DSMError):  # another thread took it; the node is gone
                self._node._leases.give_up(self._unused.popleft())

    # -- leases of this server, wanted by the cluster ----------------------------------------------------

    def _demanded(self, demand: Demand) -> bool:
        """Give a lease to the cluster; False: it is none of this server's."""
        service = self._service
        record = self._begin_move(demand)
        if record is None:
            return False
        holding: Holding = record.place
        moved = False
        try:
            self._wait_for_sets(holding)
            start = holding.address - service.memory.address
            source = service.memory.view[start : start + holding.nbytes]

            def fill(target: memoryview) -> None:
                # What was never written is zero there as here.
                for at in range(holding.low, holding.high, _PIECE_BYTES):
                    end = min(holding.high, at + _PIECE_BYTES)
                    target[at:end] = source[at:end]

            left = service.ask(lambda: record.remaining_ms(service.now_ms()))
            if not left:
                raise LeaseExpiredError(f"lease {show_id(record.id)} ran out; lease anew, and renew in time")
            adopt(self._node, record.id, record.write_digest, record.read_digest, record.nbytes, left, fill)
            moved = True
        finally:
            with self._moves:
                self._moves.notify_all()  # heard when the move has ended, or the loop
                service.ask(lambda: service.end_move(holding, moved))
        return True

    def _begin_move(self, demand: Demand) -> LeaseRecord | None:
        """Let a lease stand still; None: it is none of this server's, or the server has ended.

        One that moves already, for who has its other key, is waited for: it is the cluster's then, or stays.
        """
        service, book = self._service, self._service.book
        deadline = time.monotonic() + DEMAND_WAIT_S
        with self._moves:
            try:
                while service.ask(lambda: book.has(demand.id)):
                    try:
                        return service.ask(lambda: book.begin_move(demand.id + demand.key, service.now_ms()))
                    except MovingError:
                        if not self._moves.wait(deadline - time.monotonic()):
                            raise PageTimeoutError(
                                f"lease {show_id(demand.id)} is being given to the cluster, which has not "
                                f"ended within {DEMAND_WAIT_S:g} s: a node does not answer; try again"
                            ) from None
            except ClosedError:
                if not service.ended.is_set():  # the lease has ended, not the server
                    raise
        return None

    def _wait_for_sets(self, holding: Holding) -> None:
        """Wait until nothing is on its way into a lease; who does not go on is cut off."""
        deadline = time.monotonic() + LEASE_LINGER_S
        while self._service.ask(lambda: self._service.receives_into(holding, time.monotonic() > deadline)):
            time.sleep(0.002)


def _tried(connection: Connection, doing: str, act: Callable[[], T]) -> T | DSMError:
    """Return what `act` returns, or why it failed: a bug is told to the client, and costs no thread."""
    try:
        return act()
    except DSMError as error:
        return error
    except Exception as error:
        logger.exception("lease client %s: %s", connection.name, doing)
        return InternalError(f"the lease server failed in {doing}: {error!r}")


def check_foreign(lease: Lease, op: int, offset: int, count: int) -> int:
    """Judge a GET or SET of a lease of the cluster before its bytes are taken; return how many they are."""
    if count == wire.TO_THE_END and op == Op.GET and offset <= lease.nbytes:
        count = lease.nbytes - offset
    if offset + count > lease.nbytes:
        raise UsageError(
            f"{count} bytes at offset {offset} do not lie in lease {lease.id}, which has {lease.nbytes}"
        )
    if count > MAX_FOREIGN_TRANSFER_BYTES:
        raise TooLargeError(
            f"{count} bytes of a lease of the cluster were asked for; a server moves at most "
            f"{MAX_FOREIGN_TRANSFER_BYTES} of them at once: ask for a part at a time"
        )
    if op == Op.SET and not lease.writable:
        raise NotPermittedError(
            f"the key of lease {lease.id} allows to read only; writing needs its write key (Lease.token)"
        )
    return count


def _left_ms(lease: Lease) -> int:
    return round(lease.expires_in * 1000)
