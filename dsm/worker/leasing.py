"""A lease server's side of the cluster: it is asked for its leases by those who want to map them.

Owns the thread that waits for such demands, and the way a server's lease becomes one of the cluster.  It does
not know how a server keeps its leases.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.errors import (
    ClosedError,
    DSMError,
    LeaseExpiredError,
    Status,
    UnknownNameError,
    UsageError,
    status_of,
)
from dsm.log import logger
from dsm.memory.token import show_id
from dsm.wire import control, leasing
from dsm.wire.leasing import Demand
from dsm.worker.session import Session
from dsm.worker.watcher import leave_signals

if TYPE_CHECKING:
    from dsm.worker.node import Node

__all__ = ["Demand", "adopt", "serve_demands"]

#: Takes a demand: True when the lease is the cluster's now, False when it is none of ours.
Handler = Callable[[Demand], bool]
#: Demands that are handled at the same time.
_AT_ONCE = 8


class Demands:
    """The lease servers of this process."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: In the order in which they came.
        self._handlers: dict[object, Handler] = {}
        self._room = threading.Semaphore(_AT_ONCE)
        #: The thread that listens puts itself in.
        self._listener: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, handler: Handler) -> Callable[[], None]:
        """Ask this one, too; returns what ends that."""
        if not self._listener:
            self._session.call(leasing.ServeLeases(), control.Done)
            threading.Thread(target=self._listen, name="dsm-demands", daemon=True).start()
        key = object()
        self._handlers[key] = handler

        def stop() -> None:
            self._handlers.pop(key, None)

        return stop

    def _listen(self) -> None:
        leave_signals()
        if self._listener.setdefault("thread", me := object()) is not me:
            return  # two began at the same time
        while True:
            try:
                demand, _ = self._session.call(leasing.AwaitDemand(), Demand)
            except DSMError:  # this process has left its node, or lost it
                return
            self._room.acquire()
            try:
                threading.Thread(target=self._answer, args=(demand,), name="dsm-demand", daemon=True).start()
            except RuntimeError as error:
                self._room.release()
                message = f"its lease server can start no thread: {error}; ask again later"
                self._say(demand, Status.LIMIT, message)

    def _answer(self, demand: Demand) -> None:
        leave_signals()
        status, message = Status.UNKNOWN_LEASE, ""
        try:
            for handler in list(self._handlers.values()):
                if handler(demand):
                    status = Status.OK
                    break
        except DSMError as error:
            status, message = status_of(error), str(error)
        except Exception as error:
            logger.exception("a lease server could not give lease %s to the cluster", show_id(demand.id))
            status, message = Status.INTERNAL, f"its lease server failed: {error!r}"
        finally:
            self._room.release()
        self._say(demand, status, message)

    def _say(self, demand: Demand, status: Status, message: str) -> None:
        try:
            self._session.call(leasing.DemandDone(demand.number, status, message), control.Done)
        except DSMError as error:
            if not self._session.lost:
                logger.error("demand %d could not be answered: %s", demand.number, error)


def serve_demands(node: Node, handler: Handler) -> Callable[[], None]:
    """Make this process a lease server of its cluster.

    Parameters
    ----------
    node
        Its node.
    handler
        Called with each `Demand` (`id` and `key`, 16 bytes each), in a thread of its own, at most 8 at the
        same time.  It returns False when the lease is not its own, and True once `adopt` has made it the
        cluster's.  Every `DSMError` that it raises is raised where the lease is opened.

    Returns
    -------
    callable
        Ends it: the handler is not called any more.
    """
    return node._demands.add(handler)


def adopt(
    node: Node,
    identity: bytes,
    write_digest: bytes,
    read_digest: bytes,
    nbytes: int,
    remaining_ms: int,
    fill: Callable[[memoryview], None],
) -> None:
    """Make a server's lease one of the cluster: mapped, with the same id and keys.

    Nobody can open it before `fill` has returned.  If that raises, or this process ends, it never was.

    Parameters
    ----------
    node
        The server's node, which keeps the lease.
    identity, write_digest, read_digest, nbytes
        As the server's `LeaseRecord` has them.
    remaining_ms
        The time that it has left.
    fill
        Writes the contents into the memoryview that it is given, which is pinned on this node and zero.

    Raises
    ------
    FullError, TooLargeError
        The cluster has no room for it.
    UsageError
        It is the cluster's already.
    LeaseExpiredError
        It ran out meanwhile.
    """
    request = leasing.CreateLease(identity, nbytes, remaining_ms, write_digest, read_digest, ready=False)
    session, regions = node._connection.session, node._regions
    region = regions.make_unfilled(request)
    number = region.number
    try:
        with node.pin(region):
            fill(region.buffer)
        node.check()
        regions.leave(number)  # who opens it in this process maps it anew, as a lease
        session.call(control.RegionReady(number), control.Done)
    except BaseException as error:
        with contextlib.suppress(UsageError, ClosedError):  # it ran out meanwhile
            session.call(control.DestroyRegion(number), control.Done)
            raise
        if isinstance(error, (UnknownNameError, ClosedError)) and not node.closed:
            over = f"lease {show_id(identity)} ran out while it was given to the cluster; lease anew"
            raise LeaseExpiredError(over) from None
        raise
    finally:
        if region is regions.get(number):
            regions.leave(number)
