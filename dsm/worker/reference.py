"""References to arrays in regions: small, picklable, the same memory in any attached worker.

Owns `ArrayRef` and the reducer by which multiprocessing (queues, pools, pipes) sends an array whose
memory lies in a region.  Plain `pickle` knows nothing of it and copies values, as a file must.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from dsm.errors import UsageError
from dsm.worker.block import Block, BlockRef
from dsm.worker.lease import Lease
from dsm.worker.leasebook import Held
from dsm.worker.leaseref import LeaseRef
from dsm.worker.node import Node
from dsm.worker.ranges import expired, region_of


@dataclass(frozen=True)
class ArrayRef:
    """Where an array lies in the cluster's memory; made by `ref`.

    Attributes
    ----------
    cluster
        Identity of the cluster; region numbers have no meaning in another one.
    region
        Number of its region.
    offset
        Byte of the region where the first element (index 0 of every axis) is.
    shape, strides, dtype, writeable
        As the array has them.
    lease
        The lease that it lies in, or None.
    """

    cluster: str
    region: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    writeable: bool = True
    lease: LeaseRef | None = None

    def array(self) -> np.ndarray[Any, Any]:
        """Return the array in this process, which attaches if it has not yet.

        Raises
        ------
        UsageError
            When this process is attached to another cluster.
        UnknownNameError
            When the region was destroyed.
        LeaseExpiredError
            When it lies in a lease that has ended.
        """
        from dsm.worker.attach import attach_to

        node = attach_to(self.cluster, "the reference is to an array")
        if self.lease is not None:
            memory = self.lease.lease()._memory
        else:
            memory = np.asarray(node._regions.get(self.region) or node._regions.open(self.region))
        array: np.ndarray[Any, Any] = np.ndarray(
            self.shape, self.dtype, buffer=memory, offset=self.offset, strides=self.strides
        )
        array.flags.writeable = self.writeable and memory.flags.writeable
        return array


@overload
def ref(what: Lease) -> LeaseRef: ...
@overload
def ref(what: Block) -> BlockRef: ...
@overload
def ref(what: np.ndarray[Any, Any]) -> ArrayRef: ...
def ref(what: np.ndarray[Any, Any] | Lease | Block) -> ArrayRef | LeaseRef | BlockRef:
    """Return a small picklable reference to an array of a region, a view of one, a lease or a block.

    Parameters
    ----------
    what
        An array whose memory lies in an open region of this process's node, a lease, or a block.

    Returns
    -------
    ArrayRef, LeaseRef or BlockRef
        ``.array()`` gives the same memory, shape and strides in any attached worker; ``.lease()`` the lease,
        opened with the key that this one was opened with; ``.block()`` the block.

    Raises
    ------
    UsageError
        When it is no array, or lies elsewhere.

    Examples
    --------
    >>> pool.map(work, [dsm.ref(block) for block in blocks])  # doctest: +SKIP
    """
    if isinstance(what, Lease):
        return what._reference()
    if isinstance(what, Block):
        return what.ref()
    array = what
    if not isinstance(array, np.ndarray):
        raise UsageError(
            f"{type(array).__name__} is not an array; pass an array of a dsm region or a view of it"
        )
    found = _reference(array)
    if found is None:
        over = expired(array)
        if over is not None:
            raise over
        raise UsageError(
            f"the array of shape {array.shape} and dtype {array.dtype} does not lie in an open dsm region; "
            "make it with node.array() or node.from_array()"
        )
    return found


def _reference(array: np.ndarray[Any, Any]) -> ArrayRef | None:
    from dsm.worker.attach import current_node

    node: Node | None = current_node()
    found = region_of(array, node._regions) if node is not None else None
    if node is None or found is None:
        return None
    region, _ = found
    held = node._leases.held(region.number)
    lease = None if held is None else _lease_of(node, held, array.flags.writeable)
    offset = array.__array_interface__["data"][0] - region.address
    return ArrayRef(
        node.cluster,
        region.number,
        offset,
        array.shape,
        array.strides,
        array.dtype,
        array.flags.writeable,
        lease,
    )


def _lease_of(node: Node, held: Held, write: bool) -> LeaseRef:
    """Return what opens the lease of an array elsewhere; with no more than the array allows, if we can."""
    key = held.write_key if write or held.read_key is None else held.read_key
    assert key is not None
    return LeaseRef(node.cluster, uuid.UUID(held.lease), key)


def install() -> None:
    """Make multiprocessing's pickler send arrays of regions as references."""
    from multiprocessing.reduction import ForkingPickler

    for cls in (np.ndarray, np.recarray, np.matrix):
        ForkingPickler.register(cls, _reduce)


def _reduce(array: np.ndarray[Any, Any]) -> Any:
    found = None if array.dtype.hasobject else _reference(array)
    if found is None:
        return array.__reduce_ex__(4)  # without out-of-band buffers: this pickler may be of any protocol
    return _rebuild, (found, type(array))


def _rebuild(reference: ArrayRef, cls: type[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    array = reference.array()
    return array if cls is np.ndarray else array.view(cls)
