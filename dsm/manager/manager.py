"""The manager of a node: joins loop, links, workers, coherence, synchronization and metadata.

Owns the process.  Everything it joins is in a file of its own; here is only what goes from one to
the other.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable

import msgspec

from dsm import log
from dsm._native import (
    EVENT_WORDS,
    OP_DONE,
    OP_FAULT_READ,
    OP_FAULT_WRITE,
    OP_NO_REPLY,
    OP_TOUCHED,
    Board,
    node_board_bytes,
)
from dsm.config import address_range, lease_bytes, page_timeout
from dsm.errors import LimitError, Status, WireError
from dsm.limits import ADDRESS_ALIGNMENT, PAGE_TIMEOUT_PARTS, PEER_SILENCE_S
from dsm.manager import border
from dsm.manager.coherence import Coherence
from dsm.manager.coordinator import Coordinator, LocalNode
from dsm.manager.heaps import HeapDesk
from dsm.manager.leasedesk import LeaseDesk
from dsm.manager.link import Link
from dsm.manager.loop import Loop
from dsm.manager.membership import Membership
from dsm.manager.metadata.embedded import EmbeddedStore
from dsm.manager.ordering import Ordering
from dsm.manager.pager import SLOT_BITS
from dsm.manager.pages import PagesDesk
from dsm.manager.requests import Requests
from dsm.manager.session import Session, Sessions
from dsm.manager.status import StatusDesk
from dsm.manager.sync import Sync
from dsm.manager.tracing import trace
from dsm.memory.addresses import largest_region
from dsm.types import Region, SyncObject
from dsm.wire import membership as meta
from dsm.wire.calls import Op
from dsm.wire.header import Family, Fields
from dsm.wire.heaps import AskHeap, HeapTold
from dsm.wire.membership import MetaKind
from dsm.wire.status import NodeStatus

_COHERENCE, _SYNC = int(Family.COHERENCE), int(Family.SYNC)
_REHOME = int(Op.REHOME)
_PREFETCH, _PIN, _UNPIN, _CANCEL = int(Op.PREFETCH), int(Op.PIN), int(Op.UNPIN), int(Op.CANCEL)


class Manager:
    """One node.

    Parameters
    ----------
    name
        Name of the local socket, ``@dsm-…``.
    secret
        The cluster's secret; None for a node that no other can join.
    ranks
        Ranks of the job; 0 without a launcher.
    """

    def __init__(self, name: str, secret: bytes | None, ranks: int) -> None:
        self.node_fd = os.memfd_create("dsm-node", os.MFD_CLOEXEC)
        os.ftruncate(self.node_fd, node_board_bytes())
        self.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.board = Board(self.node_fd, self.bell_fd)
        self.loop = Loop(self.board)
        self.ranks = ranks
        self.members = Membership(self.loop, secret or os.urandom(32), self._make_link, self.log)
        self.sessions = Sessions(self.loop, self.board, name, self._handle, self._worker_gone, self.log)
        self.coordinator: Coordinator | None = None
        self.coherence: Coherence
        self.sync: Sync
        self.requests: Requests
        self.status = StatusDesk(self)
        self.pages = PagesDesk(self)
        self.leases = LeaseDesk(self)
        self.heaps = HeapDesk(self)
        #: Seconds that a thread waits for a page; 0 without end.
        self._page_timeout = page_timeout(os.environ)
        #: Called when the last worker has gone.
        self.on_empty: Callable[[], None] = lambda: None
        self.loop.on_posted = self._posted

    def log(self, line: str) -> None:
        """Say something to whoever runs this node."""
        log.logger.warning("%s", line)

    # -- start and end -----------------------------------------------------------------------------------

    def start(self, listen: str | None, join: str | None) -> None:
        """Become a member of the cluster at `join`, or the coordinator of a new one."""
        if listen:
            self.members.listen(listen)
        welcome = self.members.join(join) if join else None
        node = self.members.node
        log.identify(f"node {node}")
        patience = PAGE_TIMEOUT_PARTS + 1 if self._page_timeout else 0
        self.coherence = Coherence(node, self.board, self.members.links, patience)
        if log.logger.isEnabledFor(logging.DEBUG):
            trace(self.coherence)
        self.coherence.on_pinned = lambda worker, pin: self.sessions.workers[worker].pinned(pin)
        self.loop.on_round = self.coherence.tick
        ordering = Ordering(self.coherence.engine.fence, self.coherence.release)
        self.sync = Sync(
            node, self.members.links, self.coherence.pager.wake, self.loop.after, ordering, patience
        )
        self._take_epoch()
        if welcome is None:
            low, high = _addresses()
            store = EmbeddedStore(self.ranks, low, high)
            store.add_member(self.members.address)
            local = LocalNode()
            local.add_region = self.coherence.add_region
            local.drop_region = self._drop_region
            local.drop_heap = self.heaps.drop
            local.create_sync = self.sync.create
            local.members_changed = self._take_epoch
            local.ranks_missing = self.sync.ranks_missing
            local.after = self.loop.after
            local.lease_bytes, local.lease_space = lease_bytes(os.environ), largest_region(low, high)
            self.coordinator = Coordinator(store, self.members, local, self.ranks)
        else:
            self.ranks = welcome.ranks
            for dead in set(range(node)) - set(self.members.nodes):
                self.coherence.node_lost(dead)
            for region in welcome.regions:
                self.coherence.add_region(region)
        self.requests = Requests(self)
        self.members.accept_peers()
        self.sessions.accept_workers()
        self.loop.after(PEER_SILENCE_S / 3, self._look_for_silence)
        if self._page_timeout:
            self._age()
        log.logger.info(
            "serves %s, listens on %s; cluster %s, epoch %d, nodes %s",
            self.sessions.name,
            self.members.address or "nothing",
            self.members.cluster.hex(),
            self.members.epoch,
            self.members.nodes,
        )

    def run(self) -> None:
        """Serve until `stop`."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        for ignored in (signal.SIGINT, signal.SIGHUP):  # the terminal's; whoever started us decides
            signal.signal(ignored, signal.SIG_IGN)
        self.members.replay()
        for link in list(self.members.links.values()):
            link.read()
        try:
            self.loop.run()
        finally:
            for link in list(self.members.links.values()):
                link.send(self.members.header(MetaKind.LEAVE, 0))
                link.flush()
            self.members.close()
            self.sessions.close()
            if self.coordinator is not None:
                self.coordinator.close()
            log.logger.info("ended")

    def stop(self) -> None:
        """End `run`; workers of this node get `NodeLostError`."""
        self.loop.stop()

    def _take_epoch(self) -> None:
        self.coherence.epoch = self.sync.epoch = self.members.epoch

    # -- the workers' board ------------------------------------------------------------------------------

    def _posted(self, words: list[int]) -> None:
        if len(words) > EVENT_WORDS:
            words = _told_first(words)
        for at in range(0, len(words), EVENT_WORDS):
            worker, slot, op, number, a, b, c, ip = words[at : at + EVENT_WORDS]
            waiter = worker << SLOT_BITS | slot
            if op & OP_NO_REPLY:
                self.sync.tell(op & ~OP_NO_REPLY, number, a, b, worker)
            elif op in (OP_FAULT_READ, OP_FAULT_WRITE):
                self.coherence.fault(number, a, op == OP_FAULT_WRITE, waiter, worker, ip)
            elif op == OP_DONE:
                self.coherence.pager.acknowledged(worker, a)
            elif op == OP_TOUCHED:
                self.coherence.touched(number, a, worker)
            elif op > _REHOME and op != _CANCEL:
                self.sync.call(op, number, a, b, waiter, worker, c)
            else:
                self._call(op, number, a, b, c, waiter, worker)

    def _call(self, op: int, number: int, a: int, b: int, c: int, waiter: int, worker: int) -> None:
        session = self.sessions.workers.get(worker)
        if session is None:
            return
        if op == _CANCEL:
            target = worker << SLOT_BITS | a
            if not self.sync.cancel(target):
                self.coherence.cancel(target)
            self.coherence.pager.wake(waiter, Status.OK)
        elif op == _UNPIN:
            pin = (number, a, b, c)
            if session.unpinned(pin):
                self.coherence.unpin(*pin)
            self.coherence.pager.wake(waiter, Status.OK)
        elif op == _REHOME:
            status = self.coherence.rehome(number, a, b, waiter)
            if status != Status.OK:
                self.coherence.pager.wake(waiter, status)
        elif op in (_PIN, _PREFETCH):
            status = self.coherence.bulk(number, a, b, bool(c), waiter, op == _PIN)
            if status != Status.OK:
                self.coherence.pager.wake(waiter, status)
        else:
            self.coherence.pager.wake(waiter, Status.USAGE)

    # -- workers -----------------------------------------------------------------------------------------

    def _handle(self, session: Session, number: int, body: object) -> None:
        self.requests.handle(session, number, body)

    def _worker_gone(self, session: Session) -> None:
        log.logger.info("worker %d (rank %d, process %d) left", session.worker, session.rank, session.pid)
        self.requests.worker_gone(session)
        self.leases.worker_gone(session.worker)
        self.coherence.worker_gone(session.worker, session.pins)
        self.sync.worker_gone(session.worker, session.rank, died=not session.left)
        if not self.sessions.workers:
            self.on_empty()

    # -- other nodes -------------------------------------------------------------------------------------

    def _make_link(self, sock: socket.socket) -> Link:
        return Link(self.loop, sock, self._message, self._pages, self._received, self._lost)

    def _received(self, link: Link, fields: Fields) -> None:
        self.coherence.received(link, fields)

    def _pages(self, link: Link, fields: Fields) -> None:
        self._check_joined(link)
        self.coherence.pages(link, fields)

    def _check_joined(self, link: Link) -> None:
        """Refuse pages and calls of a node without a number (a member may be heard before MEMBERS)."""
        if link.node < 0:
            raise WireError("pages or calls from a node that has not joined")

    def _message(self, link: Link, fields: Fields, payload: memoryview) -> None:
        family = fields[2]
        if family == _COHERENCE:
            self._check_joined(link)
            self.coherence.message(link, fields, payload)
        elif family == _SYNC:
            self._check_joined(link)
            self.sync.message(link, fields, payload)
        else:
            try:
                body = meta.decode(fields[3], payload)
            except msgspec.MsgspecError as error:
                raise WireError(f"a metadata message of kind {fields[3]} is malformed: {error}") from None
            self._metadata(link, fields, body)

    def _metadata(self, link: Link, fields: Fields, body: object) -> None:
        kind, number, request = fields[3], fields[8], fields[10]
        coordinator = self.coordinator
        if kind == MetaKind.LEAVE:
            link.leaving = True
            return
        if kind == MetaKind.ASK_STATUS:
            self._check_joined(link)
            self.status.asked(link, request)
            return
        if isinstance(body, NodeStatus):
            self.status.told(link.node, request, body)
            return
        if isinstance(body, (meta.AskPages, meta.PagesTold)):
            self._check_joined(link)
            if isinstance(body, meta.AskPages):
                self.pages.asked(link, request, body)
            else:
                self.pages.told(link.node, request, body.rows)
            return
        if isinstance(body, (AskHeap, HeapTold)):
            self._check_joined(link)
            if isinstance(body, AskHeap):
                self.heaps.asked(link, request, body)
            else:
                self.heaps.told(link.node, request, body)
            return
        if coordinator is not None:
            if isinstance(body, meta.Join):
                coordinator.join(link, body)
                return
            self._check_joined(link)
            if kind == MetaKind.READY:
                coordinator.ready(link)
                log.logger.info("node %d joined from %s", link.node, link.peer)
            elif kind == MetaKind.ACKNOWLEDGE:
                coordinator.acknowledged(link.node, request)
            elif kind == MetaKind.LOST:
                if number in (0, link.node) or number > self.members.highest:
                    raise WireError(f"node {link.node} says that it cannot reach node {number}")
                other = self.members.links.get(number)
                if other is not None:
                    other.lose(f"node {link.node} cannot reach it")
            elif isinstance(body, meta.Ask):
                border.question(body)
                coordinator.ask(link.node, body, lambda reply: self._reply(link, request, reply))
            else:
                raise WireError(f"the coordinator got a metadata message of kind {kind}")
            return
        if link.node != 0:
            raise WireError(f"{link.name} is not the coordinator, but sent metadata of kind {kind}")
        border.metadata(body, self.members.node)
        if isinstance(body, meta.Told):
            self.requests.told(request, body.body)
        elif isinstance(body, meta.Members):
            self._members_changed(body)
        elif isinstance(body, Region):
            try:
                self.coherence.add_region(body)
            except LimitError as error:  # others count on every member to keep its part
                self.log(f"this node ends: {error}")
                self.stop()
                return
            self._acknowledge(link, request)
        elif isinstance(body, SyncObject):
            self.sync.told(body)
            self._acknowledge(link, request)
        elif isinstance(body, meta.Ranks):
            self.sync.ranks_missing(body.missing)
            self._acknowledge(link, request)
        elif kind == MetaKind.HEAP_DROP:
            self.heaps.drop(number)
            self._acknowledge(link, request)
        elif kind == MetaKind.REGION_DROP:
            self._drop_region(number, lambda: self._acknowledge(link, request))
        else:
            raise WireError(f"a node got a metadata message of kind {kind}")

    def _drop_region(self, number: int, done: Callable[[], None]) -> None:
        self.leases.region_ends(number)
        self.coherence.drop_region(number, done)

    def _acknowledge(self, link: Link, request: int) -> None:
        link.send(self.members.header(MetaKind.ACKNOWLEDGE, 0, request))

    def _reply(self, link: Link, request: int, reply: meta.Reply) -> None:
        if not link.closed:
            payload = meta.encode(meta.Told(reply))
            link.send(self.members.header(MetaKind.REPLY, len(payload), request), payload)

    def _members_changed(self, members: meta.Members) -> None:
        """The coordinator says who lives: the only word on which anybody counts as dead."""
        dead = sorted(set(self.members.nodes) - set(members.nodes))
        joined = set(members.nodes) - set(self.members.nodes)
        if joined:
            log.logger.info("joined: nodes %s", sorted(joined))
        self.members.epoch = members.epoch
        self.members.nodes = sorted(members.nodes)
        self._take_epoch()
        for node in dead:
            link = self.members.links.get(node)
            if link is not None:
                link.lose("the coordinator declared it dead")
            self._node_lost(node)
        for link in self.members.decide(members.decided):
            reason = "the coordinator gave it up before it had joined"
            self.members.outsider_lost(link, reason)
            link.lose(reason)
        for node in self.members.unreachable():
            self._report_lost(node)

    def _report_lost(self, node: int) -> None:
        """Tell the coordinator that a member is out of our reach; it decides that the node does not live."""
        link = self.members.links.get(0)
        if link is not None:
            link.send(self.members.header(MetaKind.LOST, 0, region=node))

    def _lost(self, link: Link, reason: str) -> None:
        """A connection is over.  That its node is dead is the coordinator's to say, to all in one order.

        A node that acted on its own would believe dead whom others still hear: both could then be right about
        different pages, and two nodes write one.
        """
        self.coherence.link_lost(link)
        node = link.node
        self.members.remove(link)
        if (node < 0 or node >= self.members.decided) and not link.leaving:
            self.members.outsider_lost(link, reason)
        if node < 0:
            return
        if link.leaving:
            log.logger.info("node %d left", node)
        if self.coordinator is not None:
            member = self.members.forget(node)
            if member and not link.leaving:
                self.log(f"node {node} is lost: {reason}")
            self.coordinator.node_gone(node, link)
            if member:
                self._node_lost(node)
        elif node == 0:
            if not link.leaving:
                self.log(f"the coordinator is lost ({reason}); this node ends")
            self.stop()
        elif node in self.members.nodes:
            if not link.leaving:
                self.log(f"node {node} is out of reach: {reason}")
            self._report_lost(node)

    def _look_for_silence(self) -> None:
        for link in list(self.members.links.values()):
            link.check_silence()
        self.loop.after(PEER_SILENCE_S / 3, self._look_for_silence)

    def _age(self) -> None:
        """Let waits grow older; a time in which this process was stopped does not count."""
        self.coherence.age()
        self.sync.age()
        self.loop.after(self._page_timeout / PAGE_TIMEOUT_PARTS, self._age)

    def _node_lost(self, node: int) -> None:
        self.coherence.node_lost(node)
        self.sync.node_gone(node)
        self.heaps.node_lost(node)


def _addresses() -> tuple[int, int]:
    """Return a range of addresses that an earlier cluster of the same program hardly had.

    Old arrays keep their addresses reserved after their cluster has ended: they must not come to lie in
    the memory of a new one.
    """
    low, high = address_range(os.environ)
    units = (high - low) // 2 // ADDRESS_ALIGNMENT
    return low + secrets.randbelow(max(1, units)) * ADDRESS_ALIGNMENT, high


def _told_first(words: list[int]) -> list[int]:
    """Put what nobody waits for before what its thread may have asked since: slots have no order."""
    told: list[int] = []
    asked: list[int] = []
    for at in range(0, len(words), EVENT_WORDS):
        event = words[at : at + EVENT_WORDS]
        (told if event[2] & OP_NO_REPLY else asked).extend(event)
    return told + asked
