"""Messages about mapped leases: between a worker and its manager, and on to the coordinator and back.

Owns their types; most are the same on both ways (`dsm.wire.control`, `dsm.wire.membership`).  Keys travel
only towards the coordinator, by who uses them: it is told digests when a lease begins, and tells nobody a
key.  Times are what is left, in nanoseconds: clocks of hosts have no common zero.
"""

from __future__ import annotations

import msgspec

from dsm.types import Region


class CreateLease(msgspec.Struct, frozen=True, tag=True):
    """Lease memory.  Answer: `LeaseOpened` with [frames, wanted, applied].

    Id and keys are drawn by who asks; or a lease of a server becomes one of the cluster.  With
    ``ready=False`` others who open it wait until `RegionReady`, or the creator's death.
    """

    id: bytes
    nbytes: int
    duration_ms: int
    write_digest: bytes
    read_digest: bytes
    heap: str | None = None
    ready: bool = True


class OpenLease(msgspec.Struct, frozen=True, tag=True):
    """Open a lease; perhaps a server's, which gives it to the cluster.  Answer: as `CreateLease`."""

    id: bytes
    key: bytes
    #: Ask servers in the asking process, too.
    own: bool = False


class LeaseOpened(msgspec.Struct, frozen=True, tag=True):
    """The lease's region; to a worker that has it open already, without descriptors."""

    region: Region
    remaining_ns: int
    #: The key is the write key.
    writable: bool


class RenewLease(msgspec.Struct, frozen=True, tag=True):
    """Let the lease end that long from now.  Answer: `LeaseTime`."""

    id: bytes
    key: bytes
    duration_ms: int


class AskLease(msgspec.Struct, frozen=True, tag=True):
    """How long does the lease live?  Answer: `LeaseTime`."""

    id: bytes
    key: bytes


class LeaseTime(msgspec.Struct, frozen=True, tag=True):
    """The time that the lease has left."""

    remaining_ns: int


class ReleaseLease(msgspec.Struct, frozen=True, tag=True):
    """End the lease.  Answer: `Done`, once no worker that runs can reach its memory any more."""

    id: bytes
    key: bytes


class ListLeases(msgspec.Struct, frozen=True, tag=True):
    """Answer: `LeaseList`, of leases whose regions have higher numbers than `after`, ascending."""

    after: int = 0


class LeaseRow(msgspec.Struct, frozen=True):
    """A mapped lease, without its keys."""

    id: bytes
    nbytes: int
    remaining_ns: int
    age_ns: int
    #: The node that it was taken on, which keeps its directory.
    node: int
    region: int
    heap: str | None = None


class LeaseList(msgspec.Struct, frozen=True, tag=True):
    """Mapped leases of the cluster, in the order of their regions' numbers."""

    rows: list[LeaseRow]
    #: There are others with higher numbers, which did not fit.
    more: bool = False


class AwaitEnds(msgspec.Struct, frozen=True, tag=True):
    """Worker to its manager: tell me when leases that I have mapped end.  Answer, then: `LeasesEnded`."""


class LeasesEnded(msgspec.Struct, frozen=True, tag=True):
    """These regions were leases, which have ended."""

    regions: list[int]


class ServeLeases(msgspec.Struct, frozen=True, tag=True):
    """The asking worker is a lease server from now on, until it ends.  Answer: `Done`."""


class AwaitDemand(msgspec.Struct, frozen=True, tag=True):
    """A lease server waits for what it is asked.  Answer, then: `Demand`."""


class Demand(msgspec.Struct, frozen=True, tag=True):
    """Somebody opens this lease: if it is yours, create it here.  To be followed by `DemandDone`."""

    number: int
    id: bytes
    key: bytes


class DemandDone(msgspec.Struct, frozen=True, tag=True):
    """A lease server has done what `Demand` said.  Answer: `Done`.

    `status` is a `dsm.errors.Status`: OK, the cluster has it now; UNKNOWN_LEASE, it is not this server's;
    else it is, but why it cannot be opened.
    """

    number: int
    status: int
    message: str = ""


#: What the coordinator is asked.
Question = (
    CreateLease | OpenLease | RenewLease | AskLease | ReleaseLease | ListLeases | ServeLeases | AwaitDemand
    | DemandDone
)  # fmt: skip
#: What it answers, besides what it answers to others.
Told = LeaseOpened | LeaseTime | LeaseList | Demand
#: What a worker asks its manager, and is answered.
Request = Question | AwaitEnds
Reply = Told | LeasesEnded
#: Requests that wait for what may never happen.
POLLS = (AwaitEnds, AwaitDemand)
