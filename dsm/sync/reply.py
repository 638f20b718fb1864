"""What the synchronization machines say, and how they describe themselves.

Owns the value types of this package.  No behaviour.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import msgspec

from dsm.types import SyncObject

#: Identity of a thread on its node: number of the worker, token of the thread.
Owner: TypeAlias = tuple[int, int]


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The call `ticket` of `node` is over, with a `dsm.errors.Status` and a 64-bit result."""

    node: int
    ticket: int
    status: int = 0
    result: int = 0
    #: Number of the object it is about, whose time travels with it; a condition's replies are its lock's.
    object: int = 0
    #: The lock was granted, and is lent to the node along with it (`dsm.sync.cache`).
    lent: bool = False
    #: No answer (the ticket is 0): the lock that is lent to the node is wanted back.
    recall: bool = False


class Party(msgspec.Struct, frozen=True):
    """A thread that holds or waits, for status pages and error messages."""

    node: int
    worker: int
    token: int
    #: Time of its request, as given by the driver.
    since_ns: int


class Description(msgspec.Struct, frozen=True):
    """State of one synchronization object."""

    object: int
    kind: str
    name: str
    #: Holder of a lock, or who alone holds a rwlock.
    holder: Party | None = None
    #: Who waits, in the order in which they will be served, or have arrived.
    waiting: tuple[Party, ...] = ()
    #: Value of an atomic (signed), parties of a barrier, free units of a semaphore, 1 of an event that is
    #: set, the lock of a condition.
    value: int = 0
    #: A broken barrier; a lock whose last owner died and whose next one has not been told.
    damaged: bool = False
    #: Ranks of the job without which a barrier cannot be complete.
    missing: tuple[int, ...] = ()
    #: Readers of a rwlock; of a bounded semaphore workers that have units (their token is 0).
    holders: tuple[Party, ...] = ()
    #: Of those who wait for a rwlock, how many want to read: they stand first.
    readers: int = 0
    #: The node that a lock is lent to, which knows its holder; -1: none.
    lent: int = -1


class Gone(msgspec.Struct, frozen=True, gc=False):
    """One worker that is gone, or all workers of a node."""

    node: int
    #: None: every worker of the node.
    worker: int | None
    #: It died; otherwise it has closed its node or come to its end.
    died: bool
    #: Why calls end because of this (`dsm.wire.calls.Cause`).
    cause: int
    #: Time, as given by the driver.
    now: int

    def has(self, node: int, worker: int) -> bool:
        """Whether that worker is gone."""
        return node == self.node and self.worker in (None, worker)


class Machine(Protocol):
    """What `SyncHome` needs of an object.

    `request` returns the replies that are due now, in the order in which they are to be sent; a call
    that must wait gets its reply from a later call of any method.  Whatever cannot be done is a reply
    with a status, never an exception: callers are on other nodes.
    """

    #: What this home was told to create.
    described: SyncObject

    def request(self, op: int, node: int, ticket: int, owner: Owner, a: int, b: int, now: int) -> list[Reply]:
        """Handle one operation of a thread."""

    def cancel(self, node: int, ticket: int, now: int) -> list[Reply]:
        """End a waiting call; nothing to say when it does not wait (any more)."""

    def gone(self, gone: Gone) -> list[Reply]:
        """Forget workers."""

    def close(self) -> list[Reply]:
        """End every waiting call with CLOSED."""

    def describe(self) -> Description:
        """Return the state."""
