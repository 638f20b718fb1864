"""`Node`: the user's handle of the node that this process is attached to.

Owns the public operations and their documentation, a file for each sort; each is a few lines that hand the
work to the module that owns it.  It does not know how a process finds its node (`dsm.worker.attach`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from dsm.errors import DSMError, LimitError
from dsm.wire import control
from dsm.worker import calls, lacking, ranges
from dsm.worker.connection import Connection
from dsm.worker.heaptable import HeapTable
from dsm.worker.leasebook import LeaseBook
from dsm.worker.leasing import Demands
from dsm.worker.node.arrays import Arrays
from dsm.worker.node.leases import Leases
from dsm.worker.node.memory import Memory
from dsm.worker.regions import RegionTable
from dsm.worker.statistics import Statistics, statistics_of
from dsm.worker.synchronization.objects import ObjectTable
from dsm.worker.synchronization.owners import HeldLocks


class Node(Leases, Memory, Arrays):
    """The node of this process; made by `dsm.attach`, closed by `close` or at the end of a ``with`` block.

    Arrays are plain `numpy.ndarray`s over memory that all workers of the cluster share.  An access that
    cannot be served raises in the thread that made it, at its next call or loop iteration:
    `ClosedError`, `NodeLostError`, `PageLostError`, `PageTimeoutError`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: Who closes it puts itself in, by which it is closed: one does, also when a signal handler comes in
        #: between.
        self._closer: dict[str, object] = {}
        self._regions = RegionTable(self, connection.session)
        self._pins = ranges.PinTable()
        self._held = HeldLocks()
        self._objects = ObjectTable(connection.session)
        self._leases = LeaseBook(connection.session, self._regions)
        self._demands = Demands(connection.session)
        self._heaps = HeapTable(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._closer)

    @property
    def lost(self) -> bool:
        """Whether the manager of this node has gone; `dsm.attach` then gives a new node."""
        return not self._closer and self._connection.lost

    def statistics(self) -> Statistics:
        """Return what this node has counted, frozen."""
        reply, _ = self._connection.session.call(control.GetStatistics(), control.Statistics)
        return statistics_of(reply.values, reply.latency_ns_log2)

    def check(self) -> None:
        """Raise the error of this thread's memory accesses that has not been raised yet, if there is one."""
        self._connection.raiser.check()

    def close(self) -> None:
        """Leave the node; its arrays raise `ClosedError` from now on.  Closing twice is allowed."""
        self._close()

    def _close(self, failed: bool = False) -> None:
        """Leave the node; `failed`: because of an error, which is the worker's death to the others."""
        if self._closer.setdefault("thread", me := object()) is not me:
            return
        self._connection.close(failed)
        self._heaps.clear()
        self._regions.clear()
        self._pins.clear()
        self._held.clear()
        self._leases.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None and not issubclass(kind, SystemExit))

    def __repr__(self) -> str:
        state = "closed" if self._closer else "lost" if self.lost else f"rank {self.rank} of {self.size}"
        return f"<dsm.Node {self.node_id} at {self._connection.address}: {state}>"

    # ---- a child of fork ------------------------------------------------------------------------------

    def _renew(self, raiser: Any) -> None:
        """In a child of fork: attach as a worker of its own and map every region where it was."""
        old = self._connection
        old.forget()
        calls.forget()
        self._pins.clear()
        self._held.clear()
        self._closer["thread"] = None
        try:
            self._connection = Connection(old.address, old.asked_rank, raiser, forked=True)
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, DSMError) or not lacking.is_lack(error):
                raise
            raise LimitError(f"{error!r}: {lacking.reason(error)}") from None
        self._closer = {}
        self._regions.remap(self._connection.session)
        self._heaps.renew()
        self._objects = ObjectTable(self._connection.session)
        self._leases.renew(self._connection.session)
        self._demands = Demands(self._connection.session)
