"""What nodes say about themselves when somebody asks why a job stands still.

Owns the value types of `dsm status`: each node's part, and the cluster's, which the node that was asked puts
together.  They travel between managers (metadata) and to the command line, and are printed as JSON as they
are.  Times are ages in seconds: clocks of different hosts have no common zero.  Pure types.
"""

from __future__ import annotations

import msgspec

#: Entries of one list of a node's part; what is beyond is counted in `NodeStatus.left_out`.
MAX_ENTRIES = 1000
#: What a process's state letter of ``/proc`` means, as far as it explains why nothing happens.
STOPPED = {"T": "stopped (SIGSTOP)", "t": "stopped by a debugger", "Z": "dead (a zombie)", "X": "dead"}


class Wait(msgspec.Struct, frozen=True):
    """One thread that waits in dsm."""

    #: ``"read"``, ``"write"`` (a fault), ``"prefetch"``, ``"pin"``; the kind of an object, or what is done to
    #: one (``"unlock"``, ``"reset"``); or a question to the coordinator: ``"open"``, ``"destroy"``.
    kind: str
    #: Number of the region or object, and its name as far as this node knows it.
    object: int
    name: str | None
    since_s: float
    #: Kernel id of the thread; that of a process's first thread is the process's.
    thread: int
    #: Pages it waits for; none for an object.
    page: int = 0
    count: int = 0
    #: Owner token of the thread, of an object that threads wait for; 0 for pages.
    token: int = 0
    #: Nodes that were asked for what it waits for: directories of the pages, or the object's home.
    asked: tuple[int, ...] = ()
    #: It waits for its own node, which is releasing or acquiring memory (`NodeStatus.fencing`).
    fenced: bool = False


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker process."""

    worker: int
    #: -1 until the coordinator has given one.
    rank: int
    pid: int
    #: State letter of ``/proc/<pid>/stat``: R runs, S sleeps, T is stopped; empty when it is gone.
    state: str
    #: Processor time, all threads.
    cpu_s: float
    waits: tuple[Wait, ...] = ()


class RegionStatus(msgspec.Struct, frozen=True):
    """A region as one node keeps it."""

    region: int
    name: str | None
    nbytes: int
    pages: int
    page_size: int
    #: Pages of which this node has a copy, and those among them that it alone has; -1: too many to count.
    here: int
    exclusive: int
    #: Pages that went away with a node, among those whose directory is here; -1: too many to count.
    lost: int = 0
    consistency: str = ""


class LeaseStatus(msgspec.Struct, frozen=True):
    """A mapped lease, as the coordinator knows it."""

    #: A UUID.
    id: str
    region: int
    nbytes: int
    expires_in_s: float
    #: The node that it was taken on.
    taken_on: int
    heap: str | None = None


class PinStatus(msgspec.Struct, frozen=True):
    """Pages that a worker holds, or (not granted) has so far of those it waits to hold."""

    worker: int
    region: int
    page: int
    count: int
    write: bool
    since_s: float
    granted: bool = True


class Transaction(msgspec.Struct, frozen=True):
    """Pages on their way to a requester, as their directory node sees it.

    Or pages that the directory looks for since a node died: that node is the requester then.
    """

    region: int
    page: int
    count: int
    write: bool
    requester: int
    #: Nodes that have not done their part: holders that are to give up, the owner that is to send.
    missing: tuple[int, ...]
    #: Requests that wait for this one to end: their nodes, in order.
    queue: tuple[int, ...] = ()


class Demand(msgspec.Struct, frozen=True):
    """Pages that another node wants of this one and has not got yet."""

    region: int
    page: int
    count: int
    write: bool
    requester: int
    #: Workers of this node that have not taken their hands off these pages.
    workers: tuple[int, ...] = ()


class Fencing(msgspec.Struct, frozen=True):
    """A release or acquire of memory that is under way on a node; its workers' calls wait behind it."""

    #: Nodes that have not acknowledged what was written here.
    nodes: tuple[int, ...] = ()
    #: Workers of this node that have not taken their hands off pages.
    workers: tuple[int, ...] = ()
    #: Whether it waits for the end of a pin of this node.
    pinned: bool = False
    #: Objects that were released here, of which their homes hear when this is done.
    released: tuple[int, ...] = ()


class Unready(msgspec.Struct, frozen=True):
    """A region that exists and cannot be opened yet."""

    region: int
    name: str | None
    #: The worker that has yet to write its first contents; -1, -1 when nodes have yet to learn of it.
    node: int = -1
    worker: int = -1


class PartyStatus(msgspec.Struct, frozen=True):
    """A thread that holds or waits."""

    node: int
    worker: int
    token: int
    since_s: float


class ObjectStatus(msgspec.Struct, frozen=True):
    """A synchronization object, by its home."""

    object: int
    kind: str
    name: str
    home: int
    #: Of a lock; of a rwlock who holds it alone.
    holder: PartyStatus | None = None
    #: In the order in which they will be served, or have arrived; of a rwlock first those who want to read.
    waiting: tuple[PartyStatus, ...] = ()
    #: Value of an atomic, parties of a barrier, free units of a semaphore, whether an event is set, number of
    #: a condition's lock.
    value: int = 0
    #: A broken barrier; a lock whose holder died and whose next one has not been told.
    damaged: bool = False
    #: Readers of a rwlock; of a bounded semaphore the workers that have units, with token 0.
    holders: tuple[PartyStatus, ...] = ()
    #: How many of those who wait for a rwlock want to read.
    readers: int = 0
    #: The node that a lock is lent to, which says who holds it and who waits there; -1: none.
    lent: int = -1


class NodeStatus(msgspec.Struct, frozen=True):
    """One node's part."""

    node: int
    cluster: str
    epoch: int
    #: ``host:port`` for other nodes, empty when it accepts none; name of the local socket.
    address: str
    socket: str
    pid: int
    state: str
    uptime_s: float
    cpu_s: float
    #: Ranks of the job; 0 without a launcher.
    ranks: int
    #: Live nodes, as this one knows them.
    members: tuple[int, ...]
    workers: tuple[WorkerStatus, ...] = ()
    regions: tuple[RegionStatus, ...] = ()
    pins: tuple[PinStatus, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    demands: tuple[Demand, ...] = ()
    #: Those whose home is this node.
    objects: tuple[ObjectStatus, ...] = ()
    #: Locks that are lent to this node, as it knows them.
    lent: tuple[ObjectStatus, ...] = ()
    #: Of the coordinator: regions that cannot be opened yet.
    unready: tuple[Unready, ...] = ()
    #: Of the coordinator: mapped leases, soonest end first.
    leases: tuple[LeaseStatus, ...] = ()
    fencing: Fencing | None = None
    #: Entries that found no room in the lists above.
    left_out: int = 0


class SilentNode(msgspec.Struct, frozen=True):
    """A member that did not answer."""

    node: int
    #: The connection to it, ``host:port``: its end, and that of the node that was asked.
    remote: str = ""
    local: str = ""
    #: Its manager, when it was found on this machine.
    pid: int = 0
    state: str = ""
    socket: str = ""


class ClusterStatus(msgspec.Struct, frozen=True):
    """What one node could find out about its cluster."""

    cluster: str
    epoch: int
    #: Ascending.
    nodes: tuple[NodeStatus, ...]
    silent: tuple[SilentNode, ...] = ()


def with_lent(parts: tuple[NodeStatus, ...]) -> tuple[NodeStatus, ...]:
    """Return the parts of all nodes; what homes say of a lock that is lent has what its borrower says."""
    here = {(part.node, it.object): it for part in parts for it in part.lent}
    if not here and not any(it.lent >= 0 for part in parts for it in part.objects):
        return parts
    return tuple(
        msgspec.structs.replace(
            part, objects=tuple(_joined(it, here.get((it.lent, it.object))) for it in part.objects)
        )
        for part in parts
    )


def _joined(it: ObjectStatus, borrower: ObjectStatus | None) -> ObjectStatus:
    if borrower is None:
        return it
    waiting = borrower.waiting + it.waiting
    return msgspec.structs.replace(
        it, holder=borrower.holder, waiting=waiting, damaged=it.damaged or borrower.damaged
    )
