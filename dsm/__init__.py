"""Distributed shared memory for Python: numpy arrays that processes on many hosts read and write in place.

The way in is one line::

    node = dsm.attach()
    a = node.array("grid", (4096, 4096), "f8")   # the same memory in every worker of the job

Everything else is a method of `Node`.  The package is built in floors; a file imports only from
floors below its own:

=====  =========================================================================================
floor  what lives there
=====  =========================================================================================
5      ``cli``, ``launch``, ``server``, ``bench``, ``testing``: the doors (``dsm run``, ``dsm serve``, ...)
4      ``worker``: what this module shows: `attach`, `Node`, arrays, locks, references, errors;
       ``client``: leases over the network, without a node
3      ``manager``: the process of a node: event loop, sessions, transport, metadata
2      ``_native``: the C shim that catches faults, and its one typed Python wrapper
1      ``wire``, ``coherence``, ``sync``, ``memory``: the protocol, pure
0      ``errors``, ``limits``, ``types``, ``config``, ``vector_time``, ``manager_process``: the vocabulary
=====  =========================================================================================

Importing dsm loads the errors only; numpy and the shim come with the first use of the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dsm.errors import (
    AddressRangeError,
    AuthenticationError,
    BrokenBarrierError,
    ClosedError,
    DSMError,
    FullError,
    HeapCorruptionError,
    InternalError,
    LeaseExpiredError,
    LimitError,
    NodeLostError,
    NotOwnerError,
    NotPermittedError,
    OwnerDiedError,
    PageLostError,
    PageTimeoutError,
    PeerError,
    TooLargeError,
    UnknownLeaseError,
    UnknownNameError,
    UsageError,
    WaitTimeoutError,
    WireError,
)

if TYPE_CHECKING:
    from dsm.client import (
        AsyncLeaseClient,
        AsyncRemoteLease,
        LeaseClient,
        RemoteLease,
        connect,
        connect_async,
    )
    from dsm.server import Server
    from dsm.worker.attach import attach
    from dsm.worker.block import Block, BlockRef
    from dsm.worker.heap import Heap
    from dsm.worker.heapstatistics import HeapStatistics, PoolStatistics
    from dsm.worker.layouts import ArrayInfo
    from dsm.worker.lease import Lease
    from dsm.worker.leaseref import LeaseInfo, LeaseRef
    from dsm.worker.node import Node
    from dsm.worker.ranges import Pin
    from dsm.worker.reference import ArrayRef, ref
    from dsm.worker.regions import Region
    from dsm.worker.statistics import Statistics
    from dsm.worker.synchronization import Atomic, Condition, Event, Lock, RWLock, Semaphore

__version__ = "0.1.0"

_HOMES = {
    "AsyncLeaseClient": "dsm.client",
    "AsyncRemoteLease": "dsm.client",
    "LeaseClient": "dsm.client",
    "RemoteLease": "dsm.client",
    "connect": "dsm.client",
    "connect_async": "dsm.client",
    "Server": "dsm.server",
    "attach": "dsm.worker.attach",
    "ArrayInfo": "dsm.worker.layouts",
    "Lease": "dsm.worker.lease",
    "LeaseInfo": "dsm.worker.leaseref",
    "LeaseRef": "dsm.worker.leaseref",
    "Block": "dsm.worker.block",
    "BlockRef": "dsm.worker.block",
    "Heap": "dsm.worker.heap",
    "HeapStatistics": "dsm.worker.heapstatistics",
    "PoolStatistics": "dsm.worker.heapstatistics",
    "Node": "dsm.worker.node",
    "Pin": "dsm.worker.ranges",
    "ArrayRef": "dsm.worker.reference",
    "ref": "dsm.worker.reference",
    "Region": "dsm.worker.regions",
    "Statistics": "dsm.worker.statistics",
    "Atomic": "dsm.worker.synchronization",
    "Condition": "dsm.worker.synchronization",
    "Event": "dsm.worker.synchronization",
    "Lock": "dsm.worker.synchronization",
    "RWLock": "dsm.worker.synchronization",
    "Semaphore": "dsm.worker.synchronization",
}

__all__ = [
    "AddressRangeError",
    "ArrayInfo",
    "ArrayRef",
    "AsyncLeaseClient",
    "AsyncRemoteLease",
    "Atomic",
    "AuthenticationError",
    "Block",
    "BlockRef",
    "BrokenBarrierError",
    "ClosedError",
    "Condition",
    "DSMError",
    "Event",
    "FullError",
    "Heap",
    "HeapCorruptionError",
    "HeapStatistics",
    "InternalError",
    "Lease",
    "LeaseClient",
    "LeaseExpiredError",
    "LeaseInfo",
    "LeaseRef",
    "LimitError",
    "Lock",
    "Node",
    "NodeLostError",
    "NotOwnerError",
    "NotPermittedError",
    "OwnerDiedError",
    "PageLostError",
    "PageTimeoutError",
    "PeerError",
    "Pin",
    "PoolStatistics",
    "RWLock",
    "Region",
    "RemoteLease",
    "Semaphore",
    "Server",
    "Statistics",
    "TooLargeError",
    "UnknownLeaseError",
    "UnknownNameError",
    "UsageError",
    "WaitTimeoutError",
    "WireError",
    "__version__",
    "attach",
    "connect",
    "connect_async",
    "ref",
]


def __getattr__(name: str) -> Any:
    """Import what needs numpy and the shim when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dsm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
