"""What describes a mapped lease, and what refers to it.

Owns what can be told of a lease without mapping it: `LeaseInfo`, `LeaseRef`, ids and keys as they are passed.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsm.errors import UsageError
from dsm.memory.token import KEY_BYTES, parse_token
from dsm.worker import layouts

if TYPE_CHECKING:
    from dsm.worker.lease import Lease


@dataclass(frozen=True)
class LeaseInfo:
    """A mapped lease, as `Node.leases` lists it; keys are not shown.

    Attributes
    ----------
    id
        As `Lease.id`.
    nbytes
        Its size, as it was asked for.
    expires_in, age
        Seconds that it lasts at least, and since it began to be mapped memory.
    node
        The node that it was taken on: its pages are lost with that one.
    region
        Number of its region.
    heap
        Name of the heap that it counts for, or None.
    """

    id: uuid.UUID
    nbytes: int
    expires_in: float
    age: float
    node: int
    region: int
    heap: str | None


@dataclass(frozen=True)
class LeaseRef:
    """A reference to a lease, with the key that it was opened with; made by `ref`.

    Attributes
    ----------
    cluster
        Identity of the cluster.
    id
        As `Lease.id`.
    key
        The capability; whoever has the reference has it.
    """

    cluster: str
    id: uuid.UUID
    key: bytes = field(repr=False)

    def lease(self) -> Lease:
        """Open the lease in this process, which attaches if it has not yet.

        Raises
        ------
        UsageError
            This process is attached to another cluster.
        LeaseExpiredError
            The lease has ended.
        """
        from dsm.worker.attach import attach_to

        node = attach_to(self.cluster, "the reference is to a lease")
        return node.open_lease(self.id, self.key)


def open_reference(reference: LeaseRef) -> Lease:
    return reference.lease()


def identity_of(what: Any, key: Any) -> tuple[bytes, bytes]:
    """Return id and key of a lease, from a token, or from an id and a key.

    Raises
    ------
    UsageError
        They are neither.
    """
    if key is None:
        if isinstance(what, str):
            return parse_token(what)
        raise UsageError(
            f"{layouts.shown(what)} is no token of a lease; pass Lease.token, or an id and a key"
        )
    if isinstance(what, uuid.UUID):
        identity = what.bytes
    elif isinstance(what, bytes) and len(what) == KEY_BYTES:
        identity = what
    else:
        try:
            identity = uuid.UUID(what).bytes
        except (ValueError, TypeError, AttributeError):
            given = what.partition(".")[0] if isinstance(what, str) else what  # behind the dot may be a key
            raise UsageError(
                f"{layouts.shown(given)} is no id of a lease; pass Lease.id, or a token alone"
            ) from None
    if isinstance(key, str):
        try:
            key = bytes.fromhex(key)
        except ValueError:
            key = b""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise UsageError(f"the key is no key of a lease; pass Lease.key or Lease.read_key, {KEY_BYTES} bytes")
    return identity, key
