"""The heaps that this process has open.

Owns which of them has a cache here, and renews them in a child of fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsm.errors import ClosedError, UsageError
from dsm.types import HeapOptions
from dsm.wire import heaps
from dsm.worker import awaited
from dsm.worker.heap import Heap

if TYPE_CHECKING:
    from dsm.worker.node import Node


class HeapTable:
    """The heaps that this process has open, by number."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[int, Heap] = {}
        #: Held while one asks the manager about heaps and their memory.
        self.slow = awaited.Lock()

    def open(self, options: HeapOptions, given: tuple[str, ...]) -> Heap:
        """Create a heap, or open the one of that name."""
        with self.slow:  # what it says of its caches is so until the answer
            return self._ask(heaps.OpenHeap(options, given, tuple(self._open)))

    def find(self, number: int) -> Heap:
        """Return a heap that exists."""
        found = self._open.get(number)
        if found is not None:
            return found
        with self.slow:
            return self._ask(heaps.FindHeap(number, tuple(self._open)))

    def _ask(self, body: Any) -> Heap:
        opened, received = self._node._connection.session.call(body, heaps.HeapOpened)
        number = opened.heap.number
        heap = self._open.get(number)
        if heap is None:
            heap = self._open[number] = Heap(self._node, opened, received)
        return heap

    def forget(self, heap: Heap) -> None:
        """A heap was destroyed."""
        self._open.pop(heap._record.number, None)

    def renew(self) -> None:
        """In a child of fork, attached anew: open every heap again."""
        self.slow = awaited.Lock()
        for number, heap in list(self._open.items()):
            try:
                heap._renew(*self._node._connection.session.call(heaps.FindHeap(number), heaps.HeapOpened))
            except (ClosedError, UsageError):  # destroyed meanwhile
                heap._close()

    def clear(self) -> None:
        """The node is closed."""
        for heap in list(self._open.values()):
            heap._close()
