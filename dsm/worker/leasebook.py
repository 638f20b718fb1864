"""What this process knows of the leases that it has mapped: how long they last, and that they have ended.

Owns two daemon threads.  One keeps a request open at the manager, which answers when leases end, by whomever:
their regions are closed here then.  The other runs callbacks, so that a slow one holds up nothing else.
Neither keeps the interpreter from ending.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dsm.errors import DSMError
from dsm.log import logger
from dsm.wire import leasing
from dsm.worker.regions import RegionTable
from dsm.worker.session import Session
from dsm.worker.watcher import leave_signals

#: What to call, and with what.
_Callback = tuple[Callable[[Any], object], Any]


class Held:
    """A lease that is, or was, mapped here; all handles of it in this process share it."""

    def __init__(self, number: int, lease: str) -> None:
        #: Its region, and its id as messages show it.
        self.number = number
        self.lease = lease
        #: It lasts at least until then (`time.monotonic_ns`), by what was told last, and when that was asked.
        self.deadline_ns = 0
        self.asked_ns = -1
        self.ended = False
        #: The keys that this process has used.
        self.write_key: bytes | None = None
        self.read_key: bytes | None = None
        self.callbacks: list[_Callback] = []

    def told(self, remaining_ns: int, asked_ns: int) -> None:
        """The coordinator has said what is left, some time after it was asked."""
        if asked_ns >= self.asked_ns:
            self.asked_ns, self.deadline_ns = asked_ns, asked_ns + remaining_ns

    @property
    def remaining_ns(self) -> int:
        """What is left at least; 0 or less: ask."""
        return self.deadline_ns - time.monotonic_ns()


class LeaseBook:
    """The leases of this process.

    Parameters
    ----------
    session, regions
        Of its node.
    """

    def __init__(self, session: Session, regions: RegionTable) -> None:
        self._session = session
        self._regions = regions
        self._mutex = threading.Lock()
        #: By the number of the region; those that have not ended.
        self._held: dict[int, Held] = {}
        self._listening = False
        #: Callbacks whose leases have ended, and whether a thread runs them: it ends when there are none.
        self._due: deque[_Callback] = deque()
        self._running = False

    def begin(self) -> None:
        """Listen for ends of leases from now on."""
        with self._mutex:
            if self._listening:
                return
            arguments = (self._session,)
            threading.Thread(target=self._listen, args=arguments, name="dsm-leases", daemon=True).start()
            self._listening = True

    def held(self, number: int) -> Held | None:
        """Return the lease that a region is."""
        return self._held.get(number)

    def mapped(self, number: int, lease: str) -> Held:
        """A lease is mapped; it may be already."""
        with self._mutex:
            return self._held.setdefault(number, Held(number, lease))

    def ended(self, number: int) -> None:
        """A lease has ended: close its region here, and call who wanted to know."""
        with self._mutex:
            held = self._held.pop(number, None)
            callbacks: list[_Callback] = []
            if held is not None:
                held.ended = True
                callbacks, held.callbacks = held.callbacks, []
        try:
            self._regions.drop(number)
        finally:
            for each in callbacks:
                self._call(each)

    def give_up(self, held: Held) -> None:
        """A handle is used no more, and nobody wants to know its end; the last one closes the region here."""
        self._regions.give_up(held.number, held.lease, lambda: self._held.pop(held.number, None))

    def on_end(self, held: Held, callback: Callable[[Any], object], lease: Any) -> None:
        """Call ``callback(lease)`` when the lease has ended, perhaps now."""
        with self._mutex:
            if not held.ended:
                held.callbacks.append((callback, lease))
                return
        self._call((callback, lease))

    # -- threads -----------------------------------------------------------------------------------------

    def _listen(self, session: Session) -> None:
        leave_signals()
        while True:
            try:
                told, _ = session.call(leasing.AwaitEnds(), leasing.LeasesEnded)
            except DSMError:  # this process has left its node, or lost it
                return
            for number in told.regions:
                try:
                    self.ended(number)
                except Exception:  # no memory for a map: the memory is gone all the same
                    logger.exception("lease in region %d has ended, but could not be closed here", number)

    def _call(self, callback: _Callback) -> None:
        with self._mutex:
            self._due.append(callback)
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="lease-callbacks", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._mutex:
                if not self._due:
                    self._running = False
                    return
                callback, lease = self._due.popleft()
            try:
                callback(lease)
            except BaseException:
                logger.exception("a callback of %r raised; it is called once", lease)
            del callback, lease

    # -- the end of it -----------------------------------------------------------------------------------

    def close(self) -> None:
        """This process leaves its node: nobody is told of any end any more."""
        with self._mutex:
            self._due.clear()
            self._held.clear()

    def renew(self, session: Session) -> None:
        """In a child of fork: the parent's threads and callbacks are not its own."""
        held, self._held = self._held, {}
        self._session, self._mutex = session, threading.Lock()
        self._listening, self._running, self._due = False, False, deque()
        for number, each in held.items():
            each.callbacks = []
            if self._regions.get(number) is None:
                each.ended = True
            else:
                self._held[number] = each
        if self._held:
            self.begin()
