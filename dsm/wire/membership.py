"""Messages between managers that are neither coherence nor synchronization.

Owns the kinds of the metadata family and their MessagePack bodies: joining, the list of members, and
requests that the coordinator (the node that holds the metadata store) answers.  Pure types.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from dsm.limits import MAX_JOIN_BYTES, MAX_METADATA_BYTES
from dsm.types import Region, SyncObject
from dsm.wire import leasing
from dsm.wire.control import CreateRegion, DestroyRegion, Failed, OpenRegion, OpenSync, RegionReady
from dsm.wire.heaps import AskHeap, DestroyHeap, FindHeap, FoundHeap, HeapTold, OpenHeap
from dsm.wire.status import NodeStatus


class MetaKind(IntEnum):
    """Kinds of the metadata family; `request` of the header numbers requests and their replies."""

    #: New node to coordinator: `Join`.
    JOIN = 1
    #: Coordinator to new node: `Welcome`.
    WELCOME = 2
    #: New node to coordinator: connected to every member.
    READY = 3
    #: Coordinator to members: `Members`.
    MEMBERS = 4
    #: Member to coordinator: `Ask`, answered by REPLY.
    ASK = 5
    #: Coordinator to member: `Told`.
    REPLY = 6
    #: Coordinator to members: `Region`, acknowledged with the same request number.
    REGION_ADD = 7
    #: Coordinator to members: the region in the header, acknowledged once no worker can reach it.
    REGION_DROP = 8
    #: Coordinator to the home of an object: `SyncObject`, acknowledged.
    SYNC_ADD = 9
    #: Member to coordinator: done.
    ACKNOWLEDGE = 10
    #: Node to every other: it ends, on purpose.
    LEAVE = 11
    #: Member to coordinator: the node in the header's region field is out of my reach.
    LOST = 12
    #: Coordinator to members: `Ranks`, acknowledged.
    RANKS = 13
    #: Node to node: what do you know, for `dsm status`?  Answered by STATUS with the same request number.
    ASK_STATUS = 20
    #: The answer: `NodeStatus`.
    STATUS = 21
    #: Node to node: what do you know of these pages?  `AskPages`, answered by PAGES with the same number.
    ASK_PAGES = 22
    #: The answer: `PagesTold`.
    PAGES = 23
    #: Coordinator to members: the heap in the header's region field is destroyed; acknowledged.
    HEAP_DROP = 30
    #: Node to node: about its pool of a heap.  `AskHeap`, answered by HEAP with the same request number.
    ASK_HEAP = 31
    #: The answer: `HeapTold`.
    HEAP = 32


class Member(msgspec.Struct, frozen=True):
    """A live node, as a new one has to know it."""

    node: int
    #: ``host:port`` at which the node accepts other nodes.
    address: str


class Join(msgspec.Struct, frozen=True):
    """A new node asks to be taken in; `address` is where it accepts others, ``host:port``."""

    address: str


class Welcome(msgspec.Struct, frozen=True):
    """The new node's number, and all that a node must know before it serves."""

    node: int
    epoch: int
    cluster: str
    #: Ranks of the job; 0 without a launcher.
    ranks: int
    members: list[Member]
    regions: list[Region]


class Members(msgspec.Struct, frozen=True):
    """The live nodes from now on, ascending; a node that is missing is lost."""

    epoch: int
    nodes: list[int]
    #: Numbers below it are decided: who has one and is not in `nodes` is dead for good.
    decided: int = 0


class TakeRank(msgspec.Struct, frozen=True, tag=True):
    """A worker attached; `rank` is what its launcher says, None without one."""

    rank: int | None
    #: A child of fork: its parent holds the rank.
    forked: bool = False


class RankTaken(msgspec.Struct, frozen=True, tag=True):
    """Rank of the worker, and how many ranks there are."""

    rank: int
    size: int


class WorkerGone(msgspec.Struct, frozen=True, tag=True):
    """A worker with this number on the asking node is gone: what it was creating is given up."""

    worker: int


class Ranks(msgspec.Struct, frozen=True):
    """The ranks of the job that were taken and have no process now: barriers of all ranks are broken."""

    #: By rank, the node where it was.
    missing: dict[int, int]


class Found(msgspec.Struct, frozen=True, tag=True):
    """A region that every node knows."""

    region: Region
    created: bool


class FoundSync(msgspec.Struct, frozen=True, tag=True):
    """A synchronization object that its home knows."""

    object: SyncObject


class FoundRegions(msgspec.Struct, frozen=True, tag=True):
    """The named regions of the cluster that are ready."""

    regions: list[Region]


class ListNamed(msgspec.Struct, frozen=True, tag=True):
    """Which named regions are there?  Answer: `FoundRegions`."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """What was asked is done."""


class AskPages(msgspec.Struct, frozen=True):
    """A range of pages of a region."""

    region: int
    page: int
    count: int


class PagesTold(msgspec.Struct, frozen=True):
    """Rows of `dsm.coherence.rows`, one a page; none when the region is not known here (any more)."""

    rows: bytes


Question = (
    CreateRegion | OpenRegion | RegionReady | DestroyRegion | OpenSync | TakeRank | WorkerGone | ListNamed
    | leasing.Question | OpenHeap | FindHeap | DestroyHeap
)  # fmt: skip
Reply = Found | FoundSync | FoundRegions | FoundHeap | RankTaken | Finished | Failed | leasing.Told


class Ask(msgspec.Struct, frozen=True):
    """A worker's question, on its way to the coordinator."""

    #: The asking worker's number on its node.
    worker: int
    body: Question


class Told(msgspec.Struct, frozen=True):
    """The coordinator's answer to the `Ask` of the same request number."""

    body: Reply


encode = msgspec.msgpack.Encoder().encode
#: The type of each kind's payload; None where there is no payload.
PAYLOADS: dict[int, object] = {
    MetaKind.JOIN: Join,
    MetaKind.WELCOME: Welcome,
    MetaKind.READY: None,
    MetaKind.MEMBERS: Members,
    MetaKind.ASK: Ask,
    MetaKind.REPLY: Told,
    MetaKind.REGION_ADD: Region,
    MetaKind.REGION_DROP: None,
    MetaKind.SYNC_ADD: SyncObject,
    MetaKind.ACKNOWLEDGE: None,
    MetaKind.LEAVE: None,
    MetaKind.LOST: None,
    MetaKind.RANKS: Ranks,
    MetaKind.ASK_STATUS: None,
    MetaKind.STATUS: NodeStatus,
    MetaKind.ASK_PAGES: AskPages,
    MetaKind.PAGES: PagesTold,
    MetaKind.HEAP_DROP: None,
    MetaKind.ASK_HEAP: AskHeap,
    MetaKind.HEAP: HeapTold,
}
#: Most bytes of each kind's payload.  JOIN is heard from nodes that have not joined: an address.
PAYLOAD_LIMITS: dict[int, int] = {
    kind: MAX_JOIN_BYTES if kind == MetaKind.JOIN else 0 if payload is None else MAX_METADATA_BYTES
    for kind, payload in PAYLOADS.items()
}
_decoders = {kind: msgspec.msgpack.Decoder(t) for kind, t in PAYLOADS.items() if t is not None}


def decode(kind: int, payload: memoryview) -> object:
    """Return the body of a metadata message; None where the kind has none.

    Raises
    ------
    msgspec.MsgspecError
        The payload is not of the kind's type.
    """
    decoder = _decoders.get(kind)
    try:
        return None if decoder is None else decoder.decode(payload)
    except (UnicodeDecodeError, RecursionError) as error:  # text that is not UTF-8, absurd nesting
        raise msgspec.DecodeError(str(error)) from None
