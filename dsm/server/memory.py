"""The memory that a server leases: one region of its node, there for good.

Owns the region.  System calls go straight into and out of it, so its pages are pinned for writing as long as
the server lives; nobody else opens it.  Pages are as large as they can be: the figure that counts is the
number of them.  The system backs only what has been touched.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dsm.errors import InternalError
from dsm.limits import MAX_PAGE_BYTES, OS_PAGE_BYTES
from dsm.types import RegionOptions

if TYPE_CHECKING:
    from dsm.worker.node import Node

#: Longer pieces are not written with zeros but given back to the system, which zeroes them when touched.
GIVE_BACK_BYTES = 64 * 1024 * 1024

_MADV_REMOVE = 9
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Memory:
    """Bytes at an address, writable by system calls.

    Parameters
    ----------
    node
        The node of this process.
    nbytes
        How many.
    """

    def __init__(self, node: Node, nbytes: int) -> None:
        self.nbytes = nbytes
        self._node = node
        options = RegionOptions(nbytes, page_size=MAX_PAGE_BYTES, home=node.node_id, use="extent")
        self._region = node._regions.create(options)[0]
        try:
            self._pin = node.pin(self._region, write=True)
            self._pin.__enter__()
        except BaseException:
            node.destroy(self._region)
            raise
        self.address = self._region.address
        everything: Any = np.asarray(self._region)
        self.view = memoryview(everything)

    @property
    def lost(self) -> bool:
        """Whether the node has ended."""
        return self._node.lost or self._node.closed

    def zero(self, offset: int, nbytes: int, give_back: bool) -> None:
        """Make bytes zero."""
        address = self.address + offset
        if not give_back:
            ctypes.memset(address, 0, nbytes)
            return
        first = -(-address // OS_PAGE_BYTES) * OS_PAGE_BYTES
        last = (address + nbytes) // OS_PAGE_BYTES * OS_PAGE_BYTES
        if first >= last:
            ctypes.memset(address, 0, nbytes)
            return
        ctypes.memset(address, 0, first - address)
        ctypes.memset(last, 0, address + nbytes - last)
        if _libc.madvise(first, last - first, _MADV_REMOVE):
            raise InternalError(f"madvise of leased memory: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Give the memory back."""
        self.view.release()
        if self.lost:
            return
        self._pin.__exit__(None, None, None)
        self._node.destroy(self._region)
