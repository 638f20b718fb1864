"""Who wants to know when a lease ends is told by a thread of the client.

Owns that thread and its own connection: before it tells anybody it asks the server, because others may have
renewed the lease.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.errors import ClosedError, DSMError, UnknownLeaseError
from dsm.log import logger
from dsm.wire.leases import ROW, Op

if TYPE_CHECKING:
    from dsm.client.connection import Connection
    from dsm.client.lease import RemoteLease

    Callback = Callable[[RemoteLease], object]

#: A server that does not answer is asked again after this time.
_AGAIN_S = 1.0


class Watcher:
    """Calls back when leases have ended.

    Parameters
    ----------
    connection
        Its own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        #: When to look, a number that no other entry has, the lease, whom to call.
        self._queue: list[tuple[float, int, RemoteLease, Callback]] = []
        self._count = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, lease: RemoteLease, callback: Callback) -> None:
        """Call `callback` when `lease` has ended."""
        with self._changed:
            self._push(lease._deadline, lease, callback)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dsm-expiry", daemon=True)
                self._thread.start()
            self._changed.notify()

    def look_at(self, lease: RemoteLease) -> None:
        """Look at a lease now: it was released."""
        with self._changed:
            self._queue = [(0.0, *entry[1:]) if entry[2] is lease else entry for entry in self._queue]
            heapq.heapify(self._queue)
            self._changed.notify()

    def close(self) -> None:
        """Call nobody any more; the thread ends when what it calls now has returned."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._connection.close()

    def _push(self, when: float, lease: RemoteLease, callback: Callback) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, lease, callback))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (
                    not self._queue or (left := self._queue[0][0] - time.monotonic()) > 0
                ):
                    self._changed.wait(left if self._queue else None)
                if self._closed:
                    return
                _, _, lease, callback = heapq.heappop(self._queue)
            again = self._look(lease)
            if again is None:
                self._tell(lease, callback)
            else:
                with self._changed:
                    self._push(again, lease, callback)

    def _look(self, lease: RemoteLease) -> float | None:
        """Return when to look again; None: the lease has ended."""
        if lease._deadline == -math.inf:  # released by its handle
            return None
        if lease.expires_in > 0:  # renewed by its handle
            return lease._deadline
        asked = time.monotonic()
        try:
            _, _, remaining = self._connection.ask(Op.INFO, token=lease._shown, most=ROW.size)
        except (ClosedError, UnknownLeaseError):
            return None
        except DSMError:
            return asked + _AGAIN_S
        lease._lasts(remaining, asked)
        return lease._deadline + 0.001

    def _tell(self, lease: RemoteLease, callback: Callback) -> None:
        with self._changed:
            if self._closed:
                return
        try:
            callback(lease)
        except Exception:
            logger.exception("what was to be called at the end of %r failed", lease)
