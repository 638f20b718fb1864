"""Driver of the synchronization machines: calls of workers and of other nodes, to their homes.

Owns the tickets of calls under way.  A call is decided by its object's home: this node's own machine,
at once, or another node, in one message and one answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dsm.errors import Status, WireError
from dsm.manager.link import Link
from dsm.sync.reply import Reply
from dsm.sync.service import SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, Cause, Op, SyncKind, cause_word
from dsm.wire.header import Family, Fields, pack

#: Ticket of what nobody waits for; it is not answered.
NO_TICKET = 0

_SYNC = int(Family.SYNC)
_CANCEL, _REPLY, _WORKER_GONE = int(Op.CANCEL), int(SyncKind.REPLY), int(SyncKind.WORKER_GONE)
_BARRIER_OPS = (Op.BARRIER_WAIT, Op.BARRIER_RESET, Op.BARRIER_ABORT)


class Sync:
    """Locks, barriers and atomics of one node.

    Parameters
    ----------
    node
        This node's number.
    links
        Live links by node number; the membership keeps it.
    wake
        Ends the wait of a slot: ``wake(waiter, status, result)``.
    """

    def __init__(self, node: int, links: dict[int, Link], wake: Callable[[int, int, int], None]) -> None:
        self.node = node
        self.home = SyncHome()
        self.epoch = 0
        self._links = links
        self._wake = wake
        #: Home of each object that a worker of this node has opened, dead or alive.
        self._homes: dict[int, int] = {}
        self._tickets = 0
        #: ticket -> (waiter, object, worker, operation).
        self._waiting: dict[int, tuple[int, int, int, int]] = {}

    def create(self, described: SyncObject) -> None:
        """Let this node decide about an object; nothing happens when it does so already."""
        self.home.create(described)

    def opened(self, described: SyncObject) -> None:
        """A worker of this node will use the object."""
        self._homes[described.object] = described.home

    def call(self, op: int, number: int, a: int, b: int, waiter: int, worker: int) -> None:
        """A worker's thread asks; ends with `wake`."""
        home = self._homes.get(number)
        if home is None:
            self._wake(waiter, Status.UNKNOWN_NAME, 0)
            return
        self._tickets = ticket = self._tickets % 0xFFFFFFFF + 1
        self._waiting[ticket] = (waiter, number, worker, op)
        self._ask(home, op, number, ticket, worker, a, b)

    def tell(self, op: int, number: int, a: int, b: int, worker: int) -> None:
        """A worker's thread has done something and waits for no answer."""
        home = self._homes.get(number)
        if home is not None:
            self._ask(home, op, number, NO_TICKET, worker, a, b)

    def cancel(self, waiter: int) -> bool:
        """A thread does not want to wait any more; False when it does not wait here."""
        for ticket, (waiting, number, worker, _) in self._waiting.items():
            if waiting == waiter:
                self._ask(self._homes[number], _CANCEL, number, ticket, worker, ticket, 0)
                return True
        return False

    def worker_gone(self, worker: int, rank: int, died: bool) -> None:
        """A worker of this node died, or left on its own: every home forgets it.  `rank` -1: it had none."""
        self._waiting = {t: w for t, w in self._waiting.items() if w[2] != worker}
        rank &= NO_RANK
        now = time.monotonic_ns()
        self._deliver(self.home.worker_gone(self.node, worker, now, died=died, rank=rank))
        for home in set(self._homes.values()) - {self.node}:
            link = self._links.get(home)
            if link is not None:
                link.send(pack(_SYNC, _WORKER_GONE, 0, self.node, self.epoch, 0, 0, worker, 0, rank, died))

    def node_gone(self, node: int) -> None:
        """Another node is lost: its threads wait and hold no more, its objects are gone."""
        self._deliver(self.home.node_gone(node, time.monotonic_ns()))
        for ticket, (_, number, _, _) in list(self._waiting.items()):
            if self._homes[number] == node:
                self._lost(ticket, node)

    def ranks_missing(self, missing: Mapping[int, int]) -> None:
        """Which ranks of the job have no process, and the node where each was."""
        self._deliver(self.home.ranks_missing(missing))

    def message(self, link: Link, fields: Fields) -> None:
        """A message of the sync family arrived."""
        _, _, _, kind, _, _, _, _, number, count, ticket, a, b = fields
        if kind == _REPLY:
            waiting = self._waiting.pop(ticket, None)
            if waiting is not None:
                self._wake(waiting[0], count, b)
        elif kind == _WORKER_GONE:
            now = time.monotonic_ns()
            self._deliver(self.home.worker_gone(link.node, count, now, died=b != 0, rank=a & NO_RANK))
        elif kind >= Op.LOCK_ACQUIRE:
            owner = (count, a)
            now = time.monotonic_ns()
            self._deliver(self.home.request(kind, number, link.node, ticket, owner, a, b, now))
        else:
            raise WireError(f"a synchronization message of unknown kind {kind}")

    def _ask(self, home: int, op: int, number: int, ticket: int, worker: int, a: int, b: int) -> None:
        if home == self.node:
            now = time.monotonic_ns()
            self._deliver(self.home.request(op, number, home, ticket, (worker, a), a, b, now))
            return
        link = self._links.get(home)
        if link is None:
            self._lost(ticket, home)
            return
        link.send(pack(_SYNC, op, 0, self.node, self.epoch, 0, number, worker, ticket, a, b))

    def _lost(self, ticket: int, home: int) -> None:
        """End a call whose object died with its home."""
        waiting = self._waiting.pop(ticket, None)
        if waiting is not None:
            status = Status.BROKEN if waiting[3] in _BARRIER_OPS else Status.PAGE_LOST
            self._wake(waiting[0], status, cause_word(Cause.HOME_DIED, home))

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.ticket == NO_TICKET:
                continue
            if reply.node == self.node:
                waiting = self._waiting.pop(reply.ticket, None)
                if waiting is not None:
                    self._wake(waiting[0], reply.status, reply.result)
            else:
                link = self._links.get(reply.node)
                if link is not None:
                    link.send(
                        pack(
                            _SYNC, _REPLY, 0, reply.node, self.epoch, 0, 0, reply.status, reply.ticket, 0,
                            reply.result,
                        )
                    )  # fmt: skip
