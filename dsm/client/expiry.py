"""Who wants to know when a lease ends is told by a thread of the client.

Owns that thread and its own connection: before anybody is told (`dsm.callbacks`) it asks the server, because
others may have renewed the lease.  Both are there only while somebody waits.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from typing import TYPE_CHECKING

from dsm.callbacks import Callback, Callbacks
from dsm.errors import ClosedError, DSMError, UnknownLeaseError
from dsm.wire.leases import ROW, Op

if TYPE_CHECKING:
    from dsm.client.connection import Connection
    from dsm.client.lease import RemoteLease

#: A server that does not answer is asked again, about any lease, after this time.
_AGAIN_S = 1.0
#: How long `close` waits for the thread.
_CLOSE_S = 1.0


def _after(lease: RemoteLease) -> float:
    """Return when a lease has run out, as far as is known."""
    return lease._deadline + 0.001  # servers count whole milliseconds


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
        self._silent_until = -math.inf
        self._closed = False
        #: The thread, while somebody waits.
        self._thread: threading.Thread | None = None
        self._callbacks = Callbacks("lease-client-callbacks")  # no "dsm-": users' code runs in it

    def add(self, lease: RemoteLease, callback: Callback) -> None:
        """Call `callback` when `lease` has ended."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="dsm-expiry", daemon=True)
                thread.start()
                self._thread = thread
            self._push(lease, callback)
            self._changed.notify()

    def lasts_until(self, lease: RemoteLease, deadline: float) -> None:
        """A lease was renewed or released by its handle: what the server said before is news no more."""
        with self._changed:
            lease._deadline = deadline
            if any(entry[2] is lease for entry in self._queue):
                self._queue = [
                    (_after(lease), *entry[1:]) if entry[2] is lease else entry for entry in self._queue
                ]
                heapq.heapify(self._queue)
                self._changed.notify()

    def close(self) -> None:
        """End the thread; nobody is called any more.  A callback that runs is not waited for.

        A thread that connects is not, either: it ends when that has come to its end.
        """
        with self._changed:
            self._closed = True
            self._queue.clear()
            thread = self._thread
            self._changed.notify()
        self._callbacks.close()
        self._connection.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_S)

    def forget(self) -> None:
        """In a child of fork: thread and socket are the parent's."""
        self._connection.forget()

    def _push(self, lease: RemoteLease, callback: Callback) -> None:
        self._count += 1
        heapq.heappush(self._queue, (_after(lease), self._count, lease, callback))

    def _run(self) -> None:
        while (due := self._next()) is not None:
            lease, callback = due
            if self._has_ended(lease):
                self._callbacks.call(callback, lease)
            else:
                with self._changed:
                    if not self._closed:
                        self._push(lease, callback)
            del due, lease, callback

    def _next(self) -> tuple[RemoteLease, Callback] | None:
        """Wait for a lease that has run out, as far as is known; None: nobody waits, the thread is to end."""
        with self._changed:
            while self._queue:
                when = self._queue[0][0]
                if when != -math.inf:  # the server has to be asked
                    when = max(when, self._silent_until)
                left = when - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._queue)[2:]
                self._changed.wait(left)
            self._thread = None
            with self._connection.lock:
                self._connection.drop()
            return None

    def _has_ended(self, lease: RemoteLease) -> bool:
        if lease._deadline == -math.inf:  # released by its handle
            return True
        if lease.expires_in > 0:  # renewed by its handle
            return False
        known, asked = lease._deadline, time.monotonic()
        try:
            _, _, remaining = self._connection.ask(Op.INFO, token=lease._shown, most=ROW.size)
        except (ClosedError, UnknownLeaseError):
            return True
        except DSMError:
            self._silent_until = time.monotonic() + _AGAIN_S
            return False
        with self._changed:
            if lease._deadline == known:
                lease._lasts(remaining, asked)
        return False
