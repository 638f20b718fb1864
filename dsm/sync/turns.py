"""Whose turn it is at a lock: first come, first served among nodes, and the next of the same node preferred.

Owns the order of those who wait, and how often one node may be preferred.

Nodes with waiters form a queue, in the order in which each began to wait, and the waiters of a node another.
What is released goes to the next waiter of the *same* node, whose pages are there, but at most
`LOCAL_HANDOVERS` times in a row while other nodes wait; then the node goes to the end of the queue and the
first one is served.  In a cluster of n nodes, a thread at the head of its node's queue is overtaken by at
most ``(n - 1) * (LOCAL_HANDOVERS + 1)`` others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from dsm.sync.waiting import Waiter

#: Hand-overs within one node in a row while other nodes wait.
LOCAL_HANDOVERS = 16
#: A node that is none: nobody is preferred.
NO_NODE = -1


class Turns:
    """Who waits for one lock."""

    def __init__(self) -> None:
        #: Waiters by node.  Nodes stand in the order of their turns; none has an empty queue.
        self._queues: dict[int, deque[Waiter]] = {}
        #: Hand-overs within the holder's node since the lock came there.
        self._local = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Waiter]:
        """Who waits, node by node, in the order of the nodes' turns."""
        return (waiter for queue in self._queues.values() for waiter in queue)

    def begin(self) -> None:
        """Note that a free lock was taken by who came: no node has been preferred yet."""
        self._local = 0

    def add(self, waiter: Waiter) -> None:
        """Let a thread wait."""
        queue = self._queues.get(waiter.node)
        if queue is None:
            self._queues[waiter.node] = deque((waiter,))
        else:
            queue.append(waiter)

    def waits_elsewhere(self, node: int) -> bool:
        """Whether a thread of another node than `node` waits."""
        return len(self._queues) > (node in self._queues)

    def take(self, node: int) -> Waiter:
        """Return whose turn it is, who waits no more; somebody waits.

        `node` is that of the last holder, or `NO_NODE`.
        """
        queues = self._queues
        queue = queues.get(node)
        if queue is not None and (self._local < LOCAL_HANDOVERS or len(queues) == 1):
            self._local += 1
        else:
            if queue is not None:
                # This node had its share: its turn comes after all others.
                queues[node] = queues.pop(node)
            node, queue = next(iter(queues.items()))
            self._local = 0
        waiter = queue.popleft()
        if not queue:
            del queues[node]
        return waiter

    def remove(self, node: int, predicate: Callable[[Waiter], bool]) -> list[Waiter]:
        """Return the waiters of `node` for which `predicate` is true; they wait no more."""
        queue = self._queues.get(node)
        if queue is None:
            return []
        removed = [waiter for waiter in queue if predicate(waiter)]
        if len(removed) == len(queue):
            del self._queues[node]
        elif removed:
            self._queues[node] = deque(waiter for waiter in queue if not predicate(waiter))
        return removed

    def clear(self) -> list[Waiter]:
        """Return all; nobody waits any more."""
        waiters = list(self)
        self._queues = {}
        return waiters
