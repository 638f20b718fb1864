"""A node's leases: memory for a time.

Owns the checks of what callers pass, and who draws ids and keys: this process, which tells the cluster
their digests.
"""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Any

from dsm import units
from dsm.errors import TooLargeError, UsageError
from dsm.limits import MAX_REGION_BYTES
from dsm.memory.leases import digest
from dsm.memory.token import ID_BYTES, KEY_BYTES, random_id, show_id
from dsm.wire import leasing
from dsm.worker import layouts
from dsm.worker.lease import Lease
from dsm.worker.leasebook import Held
from dsm.worker.leaseref import LeaseInfo, identity_of
from dsm.worker.node.parts import Part


class Leases(Part):
    """The part of `Node` that leases memory."""

    def lease(self, nbytes: int | str, duration: float | str, *, heap: Any = None) -> Lease:
        """Lease memory of the cluster for a time.

        It is zero, has whole pages of its own, and any worker of the cluster that is given its token can map
        it.  It outlives this process, until its time is over; a node that is lost takes those along that
        were taken on it.

        Parameters
        ----------
        nbytes
            Size: bytes, or text as in ``"64K"``, ``"2G"``.
        duration
            Seconds, or text as in ``"250ms"``, ``"60s"``, ``"5m"``, ``"1h"``.
        heap
            A heap, or its name, for which the lease counts; None: for none.

        Returns
        -------
        Lease
            With its write key and its read key.

        Raises
        ------
        UsageError
            An argument is wrong.
        FullError
            Other leases take the room that there is (DSM_LEASE_BYTES); later there may be room.
        TooLargeError
            It would not fit if there were no other.
        LimitError
            The cluster or this process has no room for another region.

        Examples
        --------
        >>> lease = node.lease("1M", "60s")  # doctest: +SKIP
        >>> lease.array((512, 256), "f8")[:] = 1.0  # doctest: +SKIP
        """
        size = units.bytes_of(nbytes, "nbytes")
        duration_ms = units.milliseconds_of(duration)
        if size < 1:
            raise UsageError("a lease of 0 bytes was asked for; ask for at least 1")
        if size > MAX_REGION_BYTES:
            raise TooLargeError(
                f"a lease of {units.show_bytes(size)} is larger than any can be, "
                f"{units.show_bytes(MAX_REGION_BYTES)}; divide it among several leases"
            )
        identity = random_id(secrets.token_bytes(ID_BYTES))
        write_key, read_key = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
        request = leasing.CreateLease(
            identity, size, duration_ms, digest(write_key), digest(read_key), _heap_name(heap)
        )
        return self._mapped(request, identity, write_key, read_key, leasing.ReleaseLease(identity, write_key))

    def open_lease(self, what: str | uuid.UUID | bytes, key: bytes | str | None = None) -> Lease:
        """Open a lease of the cluster, also one of a lease server.

        Parameters
        ----------
        what
            Its token (`Lease.token` or `Lease.read_token`); or its id, and its key as `key`.
        key
            A key of the lease, as bytes or in hexadecimal digits; None: `what` is a token.

        Returns
        -------
        Lease
            `Lease.writable` when the key is the write key.

        Raises
        ------
        UnknownLeaseError
            No lease has that id, or it ended long ago.
        LeaseExpiredError
            It has ended.
        NotPermittedError
            The key is none of the lease's.
        UsageError
            The arguments are no token, id or key.
        PageTimeoutError
            A lease server that may have it does not answer.
        """
        identity, given = identity_of(what, key)
        return self._open_lease(identity, given, len(self._demands) > 0)

    def _open_lease(self, identity: bytes, key: bytes, own: bool) -> Lease:
        """Open a lease; `own`: the lease servers of this process are asked, too."""
        return self._mapped(leasing.OpenLease(identity, key, own), identity, key, None, None)

    def leases(self) -> list[LeaseInfo]:
        """Return the mapped leases of the cluster, in the order in which they were taken."""
        found: list[LeaseInfo] = []
        while True:
            after = found[-1].region if found else 0
            part, _ = self._connection.session.call(leasing.ListLeases(after), leasing.LeaseList)
            found += [
                LeaseInfo(
                    uuid.UUID(bytes=row.id),
                    row.nbytes,
                    row.remaining_ns / 1e9,
                    row.age_ns / 1e9,
                    row.node,
                    row.region,
                    row.heap,
                )
                for row in part.rows
            ]
            if not part.more:
                return found

    def _mapped(
        self,
        request: leasing.CreateLease | leasing.OpenLease,
        identity: bytes,
        key: bytes,
        read_key: bytes | None,
        undo: leasing.ReleaseLease | None,
    ) -> Lease:
        """Make or open a lease with a key (the write key when `read_key` is given, too) and map it."""
        book = self._leases
        book.begin()
        asked_ns = time.monotonic_ns()
        found: list[Held] = []

        def arrived(opened: leasing.LeaseOpened) -> None:
            held = book.mapped(opened.region.region, show_id(identity), opened.region.address)
            held.told(opened.remaining_ns, asked_ns, held.mark)
            if opened.writable:
                held.write_key = key
            held.read_key = held.read_key or (read_key if opened.writable else key)
            found.append(held)

        opening = leasing.OpenLease(identity, key)
        region, opened = self._regions.lease(request, opening, show_id(identity), arrived, undo)
        if not opened.writable:
            key, read_key = None, key  # type: ignore[assignment]
        return Lease(self, region, found[0], identity, key, read_key)  # type: ignore[arg-type]


def _heap_name(heap: Any) -> str | None:
    name = heap if heap is None or isinstance(heap, str) else getattr(heap, "name", heap)
    return layouts.check_name(name, "the heap")
