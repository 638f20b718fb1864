"""How calls of synchronization objects carry consistency between nodes.

Owns the vector times of the objects whose home is this node, what is known of the other nodes' knowledge,
and the order of a worker's calls: one that releases waits until its node has done so, and later calls of
the same worker stay behind it.  A call's message carries the time of its node, a reply that of its object,
and both the write notices that the receiver may lack.  Nothing is carried, and nothing waits, before the
first region of the node's cluster is written under `release`.

A payload is: u16 count, that many u32 (the time), then intervals (`dsm.coherence.release.intervals`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from dsm.coherence.release import intervals
from dsm.coherence.release.fence import Fence
from dsm.errors import WireError
from dsm.limits import MAX_NODES, MAX_NOTICE_BYTES
from dsm.manager.release import ReleaseDriver
from dsm.sync.times import ObjectTimes
from dsm.vector_time import Time, covers, join

_COUNT = struct.Struct("<H")


class Ordering:
    """Times and notices along the synchronization of one node.

    Parameters
    ----------
    fence
        The order of this node's releases and acquires.
    driver
        Performs them.
    """

    def __init__(self, fence: Fence, driver: ReleaseDriver) -> None:
        self._fence = fence
        self._driver = driver
        self.times = ObjectTimes()
        #: node -> what it has said to have acquired, and up to where it was sent, or sent, notices.
        self._told: dict[int, Time] = {}
        self._sent: dict[int, Time] = {}
        #: worker -> what it asked behind a release that is under way.
        self._behind: dict[int, deque[Callable[[], None]]] = {}

    @property
    def time(self) -> Time:
        """What has happened before whatever this node does now."""
        return self._fence.time

    # -- in order ----------------------------------------------------------------------------------------

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to bring to homes."""
        return bool(self._fence.regions)

    def release(
        self, worker: int, then: Callable[[], None], is_owed: Callable[[], bool] = lambda: False
    ) -> None:
        """`then()` when what this node has written is at its homes, behind earlier calls of the worker.

        `is_owed()`, asked when its turn has come: that is done later (`owed`), and `then()` comes at once.
        """
        if not self._fence.regions and worker not in self._behind:
            then()
            return

        def turn() -> None:
            if is_owed():
                self._next(worker, then)
            else:
                self._driver.release(lambda _: self._next(worker, then))

        if worker in self._behind:
            self._behind[worker].append(turn)
        else:
            self._behind[worker] = deque()
            turn()

    def owed(self, then: Callable[[], None]) -> None:
        """`then()` when what this node has written is at its homes, whatever its workers ask meanwhile."""
        if self._fence.regions:
            self._driver.release(lambda _: then())
        else:
            then()

    def in_order(self, worker: int, then: Callable[[], None]) -> None:
        """`then()`, at once unless earlier calls of the worker wait for a release."""
        behind = self._behind.get(worker)
        if behind is None:
            then()
        else:
            behind.append(lambda: self._next(worker, then))

    def _next(self, worker: int, then: Callable[[], None]) -> None:
        behind = self._behind[worker]
        if not behind:
            del self._behind[worker]
        then()
        if behind:
            behind.popleft()()

    def acquire(self, target: Time, then: Callable[[], None]) -> None:
        """`then()` when no worker of this node can see what was before `target`."""
        if covers(self._fence.time, target) and self._fence.is_idle:
            then()
        else:
            self._driver.acquire(target, then)

    # -- between nodes -----------------------------------------------------------------------------------

    def for_call(self, node: int) -> bytes:
        """Return what goes with a call to another node: the time here, and what is new to the home."""
        return self._pack(node, self._fence.time)

    def for_reply(self, node: int, number: int) -> bytes:
        """Return what goes with a reply about an object; nothing when the node has acquired that."""
        time = self.times.of(number)
        return b"" if covers(self._told.get(node, ()), time) else self._pack(node, time)

    def of_call(self, node: int, payload: memoryview) -> Time:
        """Return the time of a node that calls, and remember it.

        Raises
        ------
        WireError
            The payload is malformed.
        """
        time = self._unpack(node, payload)
        self._told[node] = join(self._told.get(node, ()), time)
        return time

    def of_reply(self, node: int, payload: memoryview) -> Time:
        """Return the time of an object, as its home says; `WireError` when that is malformed."""
        return self._unpack(node, payload)

    def node_gone(self, node: int) -> None:
        """Nothing is sent there any more."""
        self._told.pop(node, None)
        self._sent.pop(node, None)

    def _pack(self, node: int, time: Time) -> bytes:
        if not time:
            return b""
        have = join(self._told.get(node, ()), self._sent.get(node, ()))
        notices = intervals.encode(self._fence.log.since(have, time))
        head = _COUNT.pack(len(time)) + struct.pack(f"<{len(time)}I", *time)
        if len(head) + len(notices) > MAX_NOTICE_BYTES:  # who acquires this gives all its copies up
            return head
        self._sent[node] = join(self._sent.get(node, ()), time)
        return head + notices

    def _unpack(self, node: int, payload: memoryview) -> Time:
        if not len(payload):
            return ()
        count = _COUNT.unpack_from(payload)[0] if len(payload) >= _COUNT.size else -1
        end = _COUNT.size + 4 * count
        if not 0 < count <= MAX_NODES or len(payload) < end:
            raise WireError(f"a time of {count} nodes in {len(payload)} bytes")
        time: Time = struct.unpack_from(f"<{count}I", payload, _COUNT.size)
        learnt = intervals.decode(payload[end:])
        self._fence.log.learn(learnt)
        if learnt:
            self._sent[node] = join(self._sent.get(node, ()), time)
        return time
