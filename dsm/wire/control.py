"""Control messages between a worker and the manager of its node, and between managers.

Owns the typed bodies of everything that is not on a fast path: attaching, creating and finding
regions and synchronization objects, statistics.  They travel as MessagePack (msgspec), which
decodes only into the types named here.  Pages, faults and synchronization never come this way.

A request on the local socket is one SOCK_SEQPACKET datagram ``Call``; its answer is one datagram
``Answer`` with the same number, and the descriptors named in the body's docstring as SCM_RIGHTS.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dsm.types import Region, RegionOptions, SyncObject
from dsm.wire import heaps, leasing
from dsm.wire.status import SilentNode


class Attach(msgspec.Struct, frozen=True, tag=True):
    """First message of a worker.  Answer: `Attached` with [node board, worker board, bell, nudge]."""

    pid: int
    #: Rank given by a launcher; None: take the next one in order of attach.
    rank: int | None = None
    #: A child of fork, with the rank of its parent, which holds it.
    forked: bool = False


class Leave(msgspec.Struct, frozen=True, tag=True):
    """This worker is about to end on its own; one whose connection ends without it has died.  No answer."""


class Attached(msgspec.Struct, frozen=True, tag=True):
    """Who this worker is, and of what."""

    node: int
    #: Number of this worker among its node's workers.
    worker: int
    rank: int
    #: Ranks of the job; without a launcher, workers attached so far.
    size: int
    manager_pid: int
    cluster: str
    #: True when `dsm run` (or another launcher) fixed the number of ranks.
    launched: bool


class CreateRegion(msgspec.Struct, frozen=True, tag=True):
    """Create, or find the region of that name.  Answer: `Opened` with [frames, wanted, applied].

    With ``ready=False`` others who open the region wait until `RegionReady`, or the creator's death.
    """

    options: RegionOptions
    ready: bool = True


class OpenRegion(msgspec.Struct, frozen=True, tag=True):
    """Find a region by name or number.  Answer: `Opened` with [frames, wanted, applied]."""

    key: str | int


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The region; to a worker that has it open already, without descriptors: its applied table stays."""

    region: Region
    created: bool


class RegionReady(msgspec.Struct, frozen=True, tag=True):
    """The creator has written the first contents.  Answer: `Done`."""

    region: int


class CloseRegion(msgspec.Struct, frozen=True, tag=True):
    """This worker has unmapped the region.  Answer: `Done`."""

    region: int


class DestroyRegion(msgspec.Struct, frozen=True, tag=True):
    """End a region everywhere.  Answer: `Done`, once no worker can reach its pages any more."""

    key: str | int


class ListRegions(msgspec.Struct, frozen=True, tag=True):
    """Answer: `RegionList`, of named regions with higher numbers than `after`, ascending."""

    after: int = 0


class RegionList(msgspec.Struct, frozen=True, tag=True):
    """Named regions of the cluster that are ready, in the order of their creation."""

    regions: list[Region]
    #: There are others with higher numbers, which did not fit.
    more: bool = False


class OpenSync(msgspec.Struct, frozen=True, tag=True):
    """Create or find a synchronization object.  Answer: `SyncOpened`."""

    kind: str
    name: str
    #: As `SyncObject` says.
    value: int = 0
    bounded: bool = False


class SyncOpened(msgspec.Struct, frozen=True, tag=True):
    """The object, new or found; its home knows it."""

    object: SyncObject


class ListNodes(msgspec.Struct, frozen=True, tag=True):
    """Answer: `NodeList`."""


class NodeList(msgspec.Struct, frozen=True, tag=True):
    """Numbers of the live nodes, ascending."""

    nodes: list[int]


class GetStatistics(msgspec.Struct, frozen=True, tag=True):
    """Answer: `Statistics` of this node."""


class Statistics(msgspec.Struct, frozen=True, tag=True):
    """Counters of one node by name, all its workers together, those that are gone among them."""

    values: dict[str, int]
    #: Faults by latency: entry k counts those of 2^k to 2^(k+1) nanoseconds.
    latency_ns_log2: list[int]


class GetStatus(msgspec.Struct, frozen=True, tag=True):
    """What is the cluster doing?  Also before `Attach`.  Answer: `Status` with [description]."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """A `dsm.wire.status.ClusterStatus`: `nbytes` of MessagePack in the memory file that comes with it."""

    nbytes: int


class GetPages(msgspec.Struct, frozen=True, tag=True):
    """What is known of these pages?  Also before `Attach`.  Answer: `Pages` with [rows].

    Nothing is asked of any node for ``count=0``, which tells what region it is.
    """

    #: Name or number of the region.
    key: str | int
    page: int
    count: int
    #: Nodes to ask; None: all that live.
    nodes: tuple[int, ...] | None = None


class Pages(msgspec.Struct, frozen=True, tag=True):
    """Rows of `dsm.coherence.rows` in the memory file that comes with it: `count` for each of `nodes`.

    `page` and `count` are as asked.
    """

    region: int
    name: str | None
    address: int
    page_size: int
    #: Pages of the region, and its consistency model.
    pages: int
    consistency: str
    page: int
    count: int
    #: Those that answered, ascending; with ``count=0`` those that would be asked.
    nodes: tuple[int, ...]
    #: Those that did not, or do not live.
    silent: tuple[SilentNode, ...] = ()


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked is done."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request was refused; `status` is a `dsm.errors.Status`."""

    status: int
    message: str


Request = (
    Attach | Leave | CreateRegion | OpenRegion | RegionReady | CloseRegion | DestroyRegion | ListRegions
    | OpenSync | ListNodes | GetStatistics | GetStatus | GetPages
    | leasing.Request | heaps.WorkerQuestion
)  # fmt: skip
Reply = (
    Attached | Opened | RegionList | SyncOpened | NodeList | Statistics | Status | Pages | Done | Failed
    | leasing.Reply | heaps.WorkerAnswer
)  # fmt: skip


class Call(msgspec.Struct, frozen=True):
    """One datagram of a worker; `number` is the worker's, not used by another call under way."""

    number: int
    body: Request


class Answer(msgspec.Struct, frozen=True):
    """One datagram of the manager: the answer to the call of that number."""

    number: int
    body: Reply


_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(Call)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def encode(message: Any) -> bytes:
    """Return `message` as MessagePack."""
    return _encoder.encode(message)


def decode_call(data: bytes) -> Call:
    """Return the request in `data`; raises `msgspec.MsgspecError` when it is none."""
    try:
        return _call_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # text that is not UTF-8, absurd nesting
        raise msgspec.DecodeError(str(error)) from None


def number_of(data: bytes) -> int | None:
    """Return the number of a request that `decode_call` refused; None when it has none."""
    try:
        number = msgspec.msgpack.decode(data)["number"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None
    return number if isinstance(number, int) else None


def decode_answer(data: bytes) -> Answer:
    """Return the answer in `data`; raises `msgspec.MsgspecError` when it is none."""
    try:
        return _answer_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
