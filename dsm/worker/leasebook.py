"""What this process knows of the leases that it has mapped: how long they last, and that they have ended.

Owns a daemon thread, which keeps a request open at the manager.  That answers when leases end, by whomever:
their regions are closed here then, and callbacks called (`dsm.callbacks`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from dsm import _native
from dsm.callbacks import Callback, Callbacks
from dsm.errors import DSMError
from dsm.log import logger
from dsm.wire import leasing
from dsm.worker.regions import RegionTable
from dsm.worker.session import Session
from dsm.worker.watcher import leave_signals

#: What to call, and with what.
_Callback = tuple[Callback, Any]


class Held:
    """A lease that is, or was, mapped here; all handles of it in this process share it."""

    def __init__(self, number: int, lease: str, address: int) -> None:
        #: Its region, its id as messages show it, and where it is mapped.
        self.number = number
        self.lease = lease
        self.address = address
        #: It lasts at least until then (`time.monotonic_ns`), by what was told last, and when that was asked.
        self.deadline_ns = 0
        self.asked_ns = -1
        #: `_native.region_mark` of that time.
        self._mark = -1
        self.ended = False
        #: The keys that this process has used.
        self.write_key: bytes | None = None
        self.read_key: bytes | None = None
        self.callbacks: deque[_Callback] = deque()

    @property
    def mark(self) -> int:
        """What changes when a page of it is poisoned: `_native.region_mark`."""
        return _native.region_mark(self.address)

    def told(self, remaining_ns: int, asked_ns: int, mark: int) -> None:
        """The coordinator has said what is left, some time after it was asked; the mark was this then."""
        if asked_ns >= self.asked_ns:
            self.asked_ns, self.deadline_ns, self._mark = asked_ns, asked_ns + remaining_ns, mark

    @property
    def sure(self) -> bool:
        """Whether it has not ended, for all that is known here; if not: ask.

        A thread that was told of the end got poison before this process knew anything else of it.
        """
        return self.remaining_ns > 0 and 0 <= self._mark == self.mark

    @property
    def remaining_ns(self) -> int:
        """What is left at least, by what was told last."""
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
        #: By the number of the region; those that have not ended.
        self._held: dict[int, Held] = {}
        #: The thread that listens puts itself in.
        self._listener: dict[str, object] = {}
        self._callbacks = Callbacks("lease-callbacks")

    def begin(self) -> None:
        """Listen for ends of leases from now on."""
        if not self._listener:
            arguments = (self._session, self._listener)
            threading.Thread(target=self._listen, args=arguments, name="dsm-leases", daemon=True).start()

    def held(self, number: int) -> Held | None:
        """Return the lease that a region is."""
        return self._held.get(number)

    def mapped(self, number: int, lease: str, address: int) -> Held:
        """A lease is mapped; it may be already."""
        return self._held.setdefault(number, Held(number, lease, address))

    def ended(self, number: int) -> None:
        """A lease has ended: close its region here, and call who wanted to know."""
        held = self._held.pop(number, None)
        try:
            self._regions.drop(number)
        finally:
            if held is not None:  # nobody is told before the memory is gone
                held.ended = True
                self._call(held)

    def _call(self, held: Held) -> None:
        """Have each callback of a lease that has ended called once."""
        while True:
            try:
                callback = held.callbacks.popleft()
            except IndexError:
                return
            self._callbacks.call(*callback)

    def give_up(self, held: Held) -> None:
        """A handle is used no more, and nobody wants to know its end; the last one closes the region here."""
        self._regions.give_up(held.number, lambda: self._held.pop(held.number, None))

    def on_end(self, held: Held, callback: Callback, lease: Any) -> None:
        """Call ``callback(lease)`` when the lease has ended, perhaps now."""
        held.callbacks.append((callback, lease))
        if held.ended:  # perhaps since it was looked there
            self._call(held)

    # -- threads -----------------------------------------------------------------------------------------

    def _listen(self, session: Session, listener: dict[str, object]) -> None:
        leave_signals()
        if listener.setdefault("thread", me := object()) is not me:
            return  # two began at the same time
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

    # -- the end of it -----------------------------------------------------------------------------------

    def close(self) -> None:
        """This process leaves its node: nobody is told of any end any more."""
        self._callbacks.close()
        self._held.clear()

    def renew(self, session: Session) -> None:
        """In a child of fork: the parent's threads and callbacks are not its own."""
        held, self._held = self._held, {}
        self._session = session
        self._listener, self._callbacks = {}, Callbacks("lease-callbacks")
        for number, each in held.items():
            each.callbacks = deque()
            if self._regions.get(number) is None:
                each.ended = True
            else:
                self._held[number] = each
        if self._held:
            self.begin()
