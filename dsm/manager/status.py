"""What this node knows, for `dsm status`: its own part, and the parts of the others, asked for.

Everything here only reads, and nothing is kept for it on the way of a fault: what a thread waits for, and
since when, stands in its slot of the board anyway.  Whoever is asked asks every member, and answers with what
has come when all have answered or their time is over (`dsm.manager.gathering`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dsm._native import OP_FAULT_READ, OP_FAULT_WRITE, SlotWait
from dsm.coherence.messages import Flag, Kind
from dsm.coherence.recovery import Search
from dsm.coherence.region import ModelRegion
from dsm.coherence.states import READABLE, WRITABLE
from dsm.coherence.table import LOST, PageTable
from dsm.limits import MAX_NODES
from dsm.manager.answers import answer_in_file
from dsm.manager.gathering import Gathering
from dsm.manager.link import Link
from dsm.manager.pager import SLOT_BITS
from dsm.manager.session import Session
from dsm.memory.token import show_id
from dsm.proc import process_state
from dsm.sync.reply import Description, Party
from dsm.wire import control
from dsm.wire import membership as meta
from dsm.wire.calls import CONDITION_BITS, WAITING, Op
from dsm.wire.membership import MetaKind
from dsm.wire.status import (
    MAX_ENTRIES,
    ClusterStatus,
    Demand,
    Fencing,
    LeaseStatus,
    NodeStatus,
    ObjectStatus,
    PartyStatus,
    PinStatus,
    RegionStatus,
    SilentNode,
    Transaction,
    Unready,
    Wait,
    WorkerStatus,
    with_lent,
)

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

T = TypeVar("T")

#: Pages whose states are counted, of all regions; not more, for this node serves nobody meanwhile (10 ms).
COUNTED_PAGES = 1 << 22
_CHUNK = 1 << 20

_PAGE_OPS = {
    OP_FAULT_READ: "read",
    OP_FAULT_WRITE: "write",
    int(Op.PREFETCH): "prefetch",
    int(Op.PIN): "pin",
}
_OBJECT_OPS = {
    int(op): kind
    for kind, ops in {
        "lock": (Op.LOCK_ACQUIRE,),
        "rwlock": (Op.RW_READ, Op.RW_WRITE),
        "unlock": (Op.LOCK_RELEASE, Op.RW_RELEASE),
        "semaphore": (Op.SEMAPHORE_ACQUIRE,),
        "semaphore's release": (Op.SEMAPHORE_RELEASE,),
        "event": (Op.EVENT_WAIT,),
        "event's state": (Op.EVENT_SET, Op.EVENT_CLEAR, Op.EVENT_IS_SET),
        "condition": (Op.CONDITION_WAIT,),
        "notification": (Op.CONDITION_NOTIFY,),
        "barrier": (Op.BARRIER_WAIT,),
        "reset": (Op.BARRIER_RESET, Op.BARRIER_ABORT),
        "atomic": (
            Op.ATOMIC_LOAD,
            Op.ATOMIC_STORE,
            Op.ATOMIC_ADD,
            Op.ATOMIC_EXCHANGE,
            Op.ATOMIC_COMPARE_EXCHANGE,
        ),
    }.items()
    for op in ops
}
_WITH_TOKEN = frozenset(map(int, {*WAITING, Op.LOCK_RELEASE, Op.RW_RELEASE, Op.SEMAPHORE_RELEASE}))
_OF_CONDITION = (Op.CONDITION_WAIT, Op.CONDITION_NOTIFY)


class StatusDesk:
    """Answers questions about this node, and about the cluster.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._started = time.monotonic()
        self._gathering: Gathering[NodeStatus] = Gathering(manager, MetaKind.ASK_STATUS)

    def collect(self, then: Callable[[ClusterStatus], None]) -> None:
        """Ask every member; `then(status)` when all have answered, or their time is over."""
        members = self._manager.members

        def gathered(answers: dict[int, NodeStatus], silent: tuple[SilentNode, ...]) -> None:
            parts = sorted([*answers.values(), self.node_status()], key=lambda part: part.node)
            then(ClusterStatus(members.cluster.hex(), members.epoch, with_lent(tuple(parts)), silent))

        self._gathering.ask(members.nodes, gathered)

    def asked(self, link: Link, request: int) -> None:
        """Another node asks for this one's part."""
        payload = meta.encode(self.node_status())
        link.send(self._manager.members.header(MetaKind.STATUS, len(payload), request), payload)

    def told(self, node: int, request: int, part: NodeStatus) -> None:
        """Another node's part has come."""
        if part.node == node:
            self._gathering.told(node, request, part)

    def node_status(self) -> NodeStatus:
        """Return this node's part."""
        manager = self._manager
        members = manager.members
        state, cpu_s, _ = process_state(os.getpid())
        part = _Part(manager)
        return NodeStatus(
            node=members.node,
            cluster=members.cluster.hex(),
            epoch=members.epoch,
            address=members.address,
            socket=manager.sessions.name,
            pid=os.getpid(),
            state=state,
            uptime_s=time.monotonic() - self._started,
            cpu_s=cpu_s,
            ranks=manager.ranks,
            members=tuple(members.nodes),
            workers=part.limited(part.workers()),
            regions=part.limited(part.regions()),
            pins=part.limited(part.pins()),
            transactions=part.limited(part.transactions()),
            demands=part.limited(part.demands()),
            objects=part.limited(part.objects()),
            lent=part.limited(part.lent()),
            unready=part.limited(part.unready()),
            leases=part.limited(part.leases()),
            fencing=part.fencing(),
            left_out=part.left_out,
        )


class _Part:
    """The lists of one node's part, read from what is there at this moment."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._engine = manager.coherence.engine
        self._now = time.monotonic_ns()
        self._obeying = manager.coherence.pager.obeying()
        self._fenced = set() if self._engine.fence.is_idle else manager.sync.calls.fenced()
        self.left_out = 0

    def limited(self, entries: Iterable[T]) -> tuple[T, ...]:
        """Return the first entries, and count the others."""
        entries = list(entries)
        self.left_out += max(0, len(entries) - MAX_ENTRIES)
        return tuple(entries[:MAX_ENTRIES])

    def _age_s(self, since_ns: int) -> float:
        """Return how long ago that was; 0 when it is not known."""
        return max(0, self._now - since_ns) / 1e9 if since_ns else 0.0

    # -- workers -----------------------------------------------------------------------------------------

    def workers(self) -> Iterable[WorkerStatus]:
        """Every worker, with what its threads wait for."""
        for worker, session in sorted(self._manager.sessions.workers.items()):
            state, cpu_s, _ = process_state(session.pid)
            slots = self._manager.board.waits(worker)
            waits = [*(self._wait(worker, slot) for slot in slots), *self._questions(session)]
            known = tuple(wait for wait in waits if wait is not None)
            yield WorkerStatus(worker, session.rank, session.pid, state, cpu_s, known)

    def _questions(self, session: Session) -> Iterable[Wait]:
        """Yield what a worker waits for on its socket: regions that are made, filled or destroyed."""
        for body, since in session.asking.values():
            if isinstance(body, (control.CreateRegion, control.OpenRegion)):
                kind = "open"
                key = body.options.name if isinstance(body, control.CreateRegion) else body.key
            elif isinstance(body, control.DestroyRegion):
                kind, key = "destroy", body.key
            else:
                continue
            number, name = (key, None) if isinstance(key, int) else (0, key)
            # Which thread asks is not known; mostly it is the first.
            yield Wait(kind, number, name, self._age_s(since), session.pid, asked=(0,))

    def unready(self) -> Iterable[Unready]:
        """Regions that this node, the coordinator, lets nobody open yet."""
        coordinator = self._manager.coordinator
        for region, creator in coordinator.unready() if coordinator else ():
            yield Unready(region.region, region.options.name, *(creator or (-1, -1)))

    def leases(self) -> Iterable[LeaseStatus]:
        """Mapped leases of the cluster, when this is the coordinator."""
        coordinator = self._manager.coordinator
        for row in sorted(coordinator.leases.rows(), key=lambda row: row.remaining_ns) if coordinator else ():
            yield LeaseStatus(
                show_id(row.id), row.region, row.nbytes, row.remaining_ns / 1e9, row.node, row.heap
            )

    def _wait(self, worker: int, slot: SlotWait) -> Wait | None:
        """Return what a slot waits for; None for what is answered at once (giving a pin back, cancelling)."""
        since_s = self._age_s(slot.since)
        kind = _PAGE_OPS.get(slot.op)
        if kind is not None:
            count = slot.b if slot.op in (Op.PREFETCH, Op.PIN) else 1
            name: str | None = None
            asked: tuple[int, ...] = ()
            region = self._engine.regions.get(slot.object)
            if region is not None:
                name = self._manager.coherence.frames[slot.object].region.options.name
                asked = _directories(region, slot.a, slot.a + count)
            return Wait(kind, slot.object, name, since_s, slot.thread, page=slot.a, count=count, asked=asked)
        kind = _OBJECT_OPS.get(slot.op)
        if kind is None:
            return None
        number = slot.b % (1 << CONDITION_BITS) if slot.op in _OF_CONDITION else slot.object
        known = self._manager.sync.known.get(number)
        return Wait(
            kind,
            number,
            known.name if known else None,
            since_s,
            slot.thread,
            token=slot.a if slot.op in _WITH_TOKEN else 0,
            asked=(known.home,) if known else (),
            fenced=(worker << SLOT_BITS | slot.slot) in self._fenced,
        )

    def pins(self) -> Iterable[PinStatus]:
        """Pins that are held, and what pins that wait have so far."""
        for worker, session in sorted(self._manager.sessions.workers.items()):
            for (region, page, count, write), since in zip(session.pins, session.pinned_ns, strict=True):
                yield PinStatus(worker, region, page, count, bool(write), self._age_s(since))
        for number, kept in self._engine.regions.items():
            for bulk in kept.bulks.under_way:
                if bulk.pin and bulk.cursor > bulk.page:
                    worker = self._manager.coherence.pager.worker_of(bulk.waiter)
                    held = bulk.cursor - bulk.page
                    since_s = self._age_s(bulk.since)
                    yield PinStatus(worker, number, bulk.page, held, bulk.write, since_s, granted=False)

    # -- pages -------------------------------------------------------------------------------------------

    def regions(self) -> Iterable[RegionStatus]:
        """Every region, with how much of it is here."""
        left = COUNTED_PAGES
        for number, kept in sorted(self._engine.regions.items()):
            region = self._manager.coherence.frames[number].region
            left -= region.pages
            here, exclusive, lost = _count(kept.table) if left >= 0 else (-1, -1, -1)
            yield RegionStatus(
                number,
                region.options.name,
                region.options.nbytes,
                region.pages,
                region.options.page_size,
                here,
                exclusive,
                lost,
                region.options.consistency,
            )

    def transactions(self) -> Iterable[Transaction]:
        """What this node, as a directory, has begun and not ended."""
        for number, region in self._engine.sequential.items():
            for each in dict.fromkeys(region.directory.busy.values()):
                queue = tuple(message.node for message, _, _ in each.queue or ())
                if isinstance(each, Search):
                    missing = tuple(each.left)
                    yield Transaction(number, each.page, each.count, False, each.blame, missing, queue)
                    continue
                asked = each.message
                missing = tuple(n for n in range(MAX_NODES) if each.awaiting >> n & 1)
                if not missing:
                    missing = (asked.node,) if each.source < 0 else (each.source, asked.node)
                write = bool(asked.flags & Flag.WRITE)
                yield Transaction(number, each.page, each.count, write, asked.node, missing, queue)

    def demands(self) -> Iterable[Demand]:
        """What others want of this node and have not got."""
        for number, region in self._engine.sequential.items():
            workers = {
                id(demand): self._obeying.get(token, ()) for token, demand in region.holder.lowering.items()
            }
            for demand in region.holder.demands:
                asked = demand.message
                write = asked.kind == Kind.INVALIDATE or bool(asked.flags & Flag.WRITE)
                hands = workers.get(id(demand), ())
                yield Demand(number, demand.page, demand.count, write, asked.node, hands)

    def fencing(self) -> Fencing | None:
        """Return what the release or acquire under way on this node waits for."""
        fence = self._engine.fence
        if fence.is_idle:
            return None
        regions = fence.regions.values()
        homes = {flush.home for region in regions for flush in region.writer.flushes.values()}
        tokens = [t for r in regions for role in (r.writer, r.acquirer) for t in role.lowering]
        return Fencing(
            nodes=tuple(sorted(homes - {self._engine.node})),
            workers=tuple(sorted({worker for token in tokens for worker in self._obeying.get(token, ())})),
            pinned=any(region.acquirer.waits_for_pins for region in regions),
            released=self._manager.sync.released_here(),
        )

    # -- synchronization objects -------------------------------------------------------------------------

    def objects(self) -> Iterable[ObjectStatus]:
        """Every object that this node decides about."""
        node = self._manager.members.node
        for it in self._manager.sync.home.describe():
            yield self._object(it, node)

    def lent(self) -> Iterable[ObjectStatus]:
        """Every lock that is lent to this node."""
        sync = self._manager.sync
        for it in sync.lending.describe():
            yield self._object(it, sync.known[it.object].home)

    def _object(self, it: Description, home: int) -> ObjectStatus:
        holder = self._party(it.holder) if it.holder else None
        waiting, holders = tuple(map(self._party, it.waiting)), tuple(map(self._party, it.holders))
        return ObjectStatus(
            it.object, it.kind, it.name, home, holder, waiting, it.value, it.damaged, holders, it.readers,
            it.lent,
        )  # fmt: skip

    def _party(self, party: Party) -> PartyStatus:
        return PartyStatus(party.node, party.worker, party.token, self._age_s(party.since_ns))


def answer_status(session: Session, number: int, status: ClusterStatus) -> None:
    """Answer a `GetStatus`."""
    data = meta.encode(status)
    answer_in_file(session, number, control.Status(len(data)), (data,))


def _directories(region: ModelRegion, low: int, high: int) -> tuple[int, ...]:
    """Return the directory nodes that were asked for some of these pages and have not answered."""
    under_way = region.requester.requests.values()
    asked = (r.page for r in under_way if r.page < high and low < r.page + r.count)
    return tuple(sorted({region.placement.directory(page) for page in asked}))


def _count(table: PageTable) -> tuple[int, int, int]:
    """Return how many pages are here, how many of them here alone, and how many the directory knows lost."""
    here = exclusive = lost = 0
    for at in range(0, table.pages, _CHUNK):
        states = table.states[at : at + _CHUNK]
        counts = {state: int(np.count_nonzero(states == state)) for state in READABLE}
        here += sum(counts.values())
        exclusive += sum(counts[state] for state in WRITABLE)
        lost += int(np.count_nonzero(table.owners[at : at + _CHUNK] >= LOST))
    return here, exclusive, lost
