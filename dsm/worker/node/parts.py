"""What the parts of a node's API share: who and where this process is, and what it has open.

`dsm.worker.node` makes and renews these attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.wire import control
from dsm.worker import ranges
from dsm.worker.connection import Connection
from dsm.worker.leasebook import LeaseBook
from dsm.worker.leasing import Demands
from dsm.worker.regions import RegionTable
from dsm.worker.synchronization.objects import ObjectTable
from dsm.worker.synchronization.owners import HeldLocks

if TYPE_CHECKING:
    from dsm.worker.heaptable import HeapTable


class Part:
    """A part of `Node`."""

    _connection: Connection
    _regions: RegionTable
    _pins: ranges.PinTable
    _held: HeldLocks
    _objects: ObjectTable
    _leases: LeaseBook
    #: Of this process's lease servers, if it has some.
    _demands: Demands
    _heaps: HeapTable

    @property
    def rank(self) -> int:
        """Number of this worker among the job's, from 0; without a launcher in order of attach."""
        return self._connection.attached.rank

    @property
    def size(self) -> int:
        """Workers of the job; without a launcher those that had attached when this one did."""
        return self._connection.attached.size

    @property
    def node_id(self) -> int:
        """Number of this node in the cluster."""
        return self._connection.attached.node

    @property
    def nodes(self) -> tuple[int, ...]:
        """Numbers of the nodes that are alive."""
        reply, _ = self._connection.session.call(control.ListNodes(), control.NodeList)
        return tuple(reply.nodes)

    @property
    def cluster(self) -> str:
        """Identity of the cluster."""
        return self._connection.attached.cluster
