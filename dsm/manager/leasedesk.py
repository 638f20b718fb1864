"""Leases at a node: what its workers ask about them, and are told of their ends.

Owns which of this node's workers wait to hear that leases end.  Who has which lease until when is the
coordinator's to know (`dsm.manager.leases`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dsm.errors import Status
from dsm.manager.session import Session
from dsm.wire import control, leasing
from dsm.wire import membership as meta

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

#: Ends of leases in one answer.
MOST_TOLD: Final = 4096
#: Ends of leases that are kept for a worker that does not ask.  A process has no more maps
#: (vm.max_map_count is 65530 unless somebody changed it): older ones it has closed itself.
MOST_UNTOLD: Final = 65536


class LeaseDesk:
    """Leases of one node's workers.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        #: By worker: where it wants to be told (None: nowhere yet), and what it was not told yet.
        self._waiting: dict[int, tuple[Session, int]] = {}
        self._ended: dict[int, deque[int]] = {}

    def handle(self, session: Session, number: int, body: leasing.Request) -> None:
        """Answer one request, now or later."""
        if isinstance(body, leasing.AwaitEnds):
            self._wait(session, number)
            return
        self._manager.requests.ask(session.worker, body, lambda reply: self._answer(session, number, reply))

    def _answer(self, session: Session, number: int, reply: meta.Reply) -> None:
        requests = self._manager.requests
        if isinstance(reply, leasing.LeaseOpened):
            if not requests.give_region(session, number, reply.region, reply):
                message = "the lease ended while it was opened; its memory is gone: lease anew"
                session.fail(number, Status.LEASE_EXPIRED, message)
        elif isinstance(reply, meta.Finished):
            session.answer(number, control.Done())
        elif isinstance(reply, leasing.Told):
            session.answer(number, reply)
        else:
            requests.refused(session, number, reply)

    # -- ends --------------------------------------------------------------------------------------------

    def _wait(self, session: Session, number: int) -> None:
        before = self._waiting.pop(session.worker, None)
        if before is not None:
            before[0].fail(before[1], Status.USAGE, "this worker asked for ends of leases again")
        self._waiting[session.worker] = session, number
        self._tell(session.worker)

    def region_ends(self, number: int) -> None:
        """A region is about to be taken from this node's workers."""
        manager = self._manager
        frames = manager.coherence.frames.get(number)
        if frames is None or frames.region.options.use != "lease":
            return
        for worker in manager.sessions.workers:
            if manager.coherence.pager.is_mapped(number, worker):
                self._ended.setdefault(worker, deque(maxlen=MOST_UNTOLD)).append(number)
                self._tell(worker)

    def _tell(self, worker: int) -> None:
        ended = self._ended.get(worker)
        if ended and worker in self._waiting:
            session, number = self._waiting.pop(worker)
            told = [ended.popleft() for _ in range(min(MOST_TOLD, len(ended)))]
            session.answer(number, leasing.LeasesEnded(told))

    def worker_gone(self, worker: int) -> None:
        """Its number will be another's."""
        self._waiting.pop(worker, None)
        self._ended.pop(worker, None)
