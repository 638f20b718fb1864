"""The interface behind which all metadata of a cluster lives.

Owns the contract.  `embedded` keeps it in the memory of one node; a store that several nodes share (etcd)
has the same methods.  A store decides and remembers; it tells nobody, and it knows no links or workers.

Every method is atomic: it does all of what it says, or it raises and changes nothing.  Numbers of nodes,
regions and objects are never used again in the life of a cluster.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from dsm.types import HeapOptions, HeapRecord, Region, RegionOptions, SyncObject


class MemberRecord(msgspec.Struct, frozen=True):
    """A live node."""

    node: int
    #: ``host:port`` at which it accepts other nodes; empty when it accepts none.
    address: str
    #: Epoch that began when it was added.
    epoch: int


class MetadataStore(Protocol):
    """Members, regions, synchronization objects and ranks of one cluster."""

    def close(self) -> None:
        """Let go of what the store holds in this process."""

    # -- members -----------------------------------------------------------------------------------------

    def epoch(self) -> int:
        """Return the number of changes of membership so far: 1 once the first node is in."""

    def add_member(self, address: str) -> int:
        """Take in a node and begin an epoch; returns its number.

        Raises
        ------
        LimitError
            As many nodes as a cluster may have were members before.
        """

    def remove_member(self, node: int) -> None:
        """Declare a node dead and begin an epoch; nothing happens when it is no member."""

    def members(self) -> list[MemberRecord]:
        """Return the live nodes, ascending."""

    # -- regions -----------------------------------------------------------------------------------------

    def create_region(
        self, options: RegionOptions, members: tuple[int, ...], ready: bool = True
    ) -> tuple[Region, bool]:
        """Create a region, or find the one of that name.

        Parameters
        ----------
        options
            What the creator wants; without a name a region is always created.
        members
            Live nodes that will keep its directory.
        ready
            False: its creator has yet to write the first contents, and says so by `mark_ready`.

        Returns
        -------
        region : Region
            The new or the existing one.
        created : bool
            Whether it is new.

        Raises
        ------
        UsageError
            An option is not accepted; or the region exists with other options, which are all named.
        LimitError
            No addresses are left.
        UnknownNameError
            It is for a heap that does not exist.
        FullError, TooLargeError
            The heap would have more than its `max_bytes`, now or even if it were empty.
        """

    def find_region(self, key: str | int) -> Region:
        """Return a region by name or number; `UnknownNameError` when there is none."""

    def mark_ready(self, number: int) -> None:
        """Note that the first contents of a region are written."""

    def is_ready(self, number: int) -> bool:
        """Whether the first contents of a region are written."""

    def destroy_region(self, key: str | int) -> Region:
        """Forget a region and return what it was; its name is free again, its addresses are not."""

    def list_regions(self, named_only: bool = True) -> list[Region]:
        """Return the regions in the order of their creation.

        With `named_only`, those that a user can open: named, and ready.
        """

    # -- heaps -------------------------------------------------------------------------------------------

    def open_heap(self, options: HeapOptions, given: tuple[str, ...]) -> tuple[HeapRecord, bool]:
        """Create a heap, or find the one of that name; return it and whether it is new.

        Parameters
        ----------
        options
            What its creator wants.
        given
            Options that a heap which exists must have as in `options`.

        Raises
        ------
        UsageError
            An option is not accepted; or the heap exists with others, which are all named.
        """

    def find_heap(self, key: str | int) -> HeapRecord:
        """Return a heap by name or number; `UnknownNameError` when there is none."""

    def destroy_heap(self, number: int) -> list[Region]:
        """Forget a heap, whose name is free again, and return its regions, which it still has."""

    # -- synchronization objects, ranks ------------------------------------------------------------------

    def open_sync(
        self, kind: str, name: str, value: int, members: tuple[int, ...], bounded: bool = False
    ) -> SyncObject:
        """Create a synchronization object, or find the one of that kind and name.

        Parameters
        ----------
        kind
            That of a `SyncObject`; objects of different kinds may share a name.
        name
            Its name.
        value
            Parties of a barrier; units of a semaphore; number of a condition's lock; initial value of an
            atomic, without effect when it exists.
        members
            Live nodes; the name chooses one of them as home of a new object.  A condition's is its lock's.
        bounded
            Of a semaphore.

        Raises
        ------
        UsageError
            An argument is not accepted, or the object exists with another one: parties, units, lock.
        PageLostError, BrokenBarrierError
            The home of the existing object is no longer a member: its state is lost.
        """

    def list_sync(self) -> list[SyncObject]:
        """Return the synchronization objects in the order of their creation."""

    def take_rank(self, rank: int | None = None) -> tuple[int, int]:
        """Give a worker its rank.

        Parameters
        ----------
        rank
            What its launcher says; None takes the lowest that nobody was given.

        Returns
        -------
        rank, size : int
            Its rank, and the ranks of the job (without a launcher: given so far).

        Raises
        ------
        UsageError
            The launcher started fewer ranks.
        """
