"""Leases: memory for a time, and who may use it.

Owns the records of an authority's leases: which there are, until when, and the digests of their keys.
Pure: the time comes as an argument (milliseconds of any monotonic clock), ids and keys too.  What becomes
of the memory is the business of who owns the table; `place` is opaque here.

A lease is alive while ``now_ms < deadline_ms``: whoever asks later is told that it has run out, whether
`due` has taken it out yet or not.  Ended leases are remembered for a while, so that a late caller is told
"expired" and not "unknown".  Keys are kept as SHA-256 digests and compared in constant time; an id is no
secret.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from dsm.errors import InternalError, LeaseExpiredError, NotPermittedError, UnknownLeaseError, UsageError
from dsm.memory.token import ID_BYTES, KEY_BYTES, show_id
from dsm.units import MAX_DURATION_MS, show_milliseconds

DIGEST_BYTES = 32
#: Deadlines in the queue that no lease has any more: at most so many, and as many as there are leases.
_STALE = 64


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease as its authority knows it.

    Attributes
    ----------
    id
        16 bytes.
    nbytes
        As they were asked for.
    place
        Where its memory is, in the words of the table's owner.
    created_ms, deadline_ms
        Begin and end; it is alive before `deadline_ms`.
    write_digest, read_digest
        SHA-256 of the keys.
    """

    id: bytes
    nbytes: int
    place: Any
    created_ms: int
    deadline_ms: int
    write_digest: bytes
    read_digest: bytes

    def remaining_ms(self, now_ms: int) -> int:
        """Return the time it has left; 0 when it has run out."""
        return max(0, self.deadline_ms - now_ms)


def digest(key: bytes) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key).digest()


class LeaseTable:
    """The leases of one authority.

    Parameters
    ----------
    max_ended
        How many ended leases are remembered; of older ones nothing is known.
    """

    def __init__(self, max_ended: int = 65536) -> None:
        self._max_ended = max_ended
        self._live: dict[bytes, LeaseRecord] = {}
        #: (deadline, id), soonest first; entries that are no lease's deadline (any more) are skipped.
        self._queue: list[tuple[int, bytes]] = []
        #: Ended leases, oldest first: when, and what happened.
        self._ended: OrderedDict[bytes, tuple[int, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, identity: Hashable) -> bool:
        """Whether the table has a lease of that id which was not taken out."""
        return identity in self._live

    # -- begin -------------------------------------------------------------------------------------------

    def add(
        self,
        identity: bytes,
        write_key: bytes,
        read_key: bytes,
        nbytes: int,
        place: Any,
        now_ms: int,
        duration_ms: int,
    ) -> LeaseRecord:
        """Begin a lease.

        Parameters
        ----------
        identity, write_key, read_key
            16 bytes each, hard to guess.
        nbytes
            What the holder asked for, at least 1.
        place
            Where its memory is.
        now_ms, duration_ms
            It begins now and is alive for `duration_ms`, 1 to `MAX_DURATION_MS`.

        Raises
        ------
        UsageError
            An argument is wrong, or the id is known already; nothing has changed.
        """
        for name, key in (("write_key", write_key), ("read_key", read_key)):
            if not isinstance(key, bytes) or len(key) != KEY_BYTES:
                raise UsageError(f"{name} of a lease must be {KEY_BYTES} bytes")
        return self.adopt(identity, digest(write_key), digest(read_key), nbytes, place, now_ms, duration_ms)

    def adopt(
        self,
        identity: bytes,
        write_digest: bytes,
        read_digest: bytes,
        nbytes: int,
        place: Any,
        now_ms: int,
        duration_ms: int,
    ) -> LeaseRecord:
        """Begin a lease of which only the keys' digests are known: it comes from another authority.

        Raises
        ------
        UsageError
            As `add`.
        """
        self.check_new(identity, write_digest, read_digest, nbytes, duration_ms)
        record = LeaseRecord(identity, nbytes, place, now_ms, now_ms + duration_ms, write_digest, read_digest)
        self._live[identity] = record
        self._push(record)
        return record

    def check_new(
        self, identity: bytes, write_digest: bytes, read_digest: bytes, nbytes: int, duration_ms: int
    ) -> None:
        """Raise `UsageError` unless a lease of that kind could begin."""
        if not isinstance(identity, bytes) or len(identity) != ID_BYTES:
            raise UsageError(f"id of a lease must be {ID_BYTES} bytes")
        if any(
            not isinstance(each, bytes) or len(each) != DIGEST_BYTES for each in (write_digest, read_digest)
        ):
            raise UsageError(f"digests of a lease's keys must be {DIGEST_BYTES} bytes")
        if nbytes < 1:
            raise UsageError(f"a lease of {nbytes} bytes was asked for; ask for at least 1")
        _check_duration(duration_ms)
        if identity in self._live or identity in self._ended:
            raise UsageError(f"a lease with id {show_id(identity)} exists already; draw another id")

    # -- use ---------------------------------------------------------------------------------------------

    def find(self, identity: bytes, key: bytes, now_ms: int, write: bool = False) -> LeaseRecord:
        """Return a lease to who has a key for it.

        Parameters
        ----------
        identity, key
            Of the lease: its write key, or, without `write`, its read key.
        now_ms
            The time.
        write
            Whether the key must allow to write.

        Raises
        ------
        UnknownLeaseError
            No lease has, or had lately, that id.
        LeaseExpiredError
            It has run out, or was released.
        NotPermittedError
            The key is none of the lease's, or the read key where `write` is asked.
        """
        record = self._alive(identity, now_ms)
        if not self.may_write(record, key):
            if not _matches(record.read_digest, key):
                raise NotPermittedError(
                    f"the key is none of lease {show_id(identity)}; use the token that came with it"
                )
            if write:
                raise NotPermittedError(
                    f"the key of lease {show_id(identity)} allows to read only; writing, renewing and "
                    "releasing need its write key (Lease.token, not Lease.read_token)"
                )
        return record

    @staticmethod
    def may_write(record: LeaseRecord, key: bytes) -> bool:
        """Whether this is the lease's write key."""
        return _matches(record.write_digest, key)

    def renew(
        self, identity: bytes, key: bytes, now_ms: int, duration_ms: int, begin_ms: int | None = None
    ) -> LeaseRecord:
        """Let a lease end `duration_ms` from now (or `begin_ms`), be that later or sooner than it would have.

        Raises
        ------
        UnknownLeaseError, LeaseExpiredError, NotPermittedError
            As `find` for writing: what has run out cannot be renewed.
        UsageError
            The duration is not from 1 to `MAX_DURATION_MS`.
        """
        _check_duration(duration_ms)
        deadline_ms = (now_ms if begin_ms is None else begin_ms) + duration_ms
        record = replace(self.find(identity, key, now_ms, write=True), deadline_ms=deadline_ms)
        self._live[identity] = record
        self._push(record)
        return record

    # -- end ---------------------------------------------------------------------------------------------

    def end(self, identity: bytes, key: bytes, now_ms: int) -> LeaseRecord:
        """Release a lease; what was its memory is for the caller to take back.

        Raises
        ------
        UnknownLeaseError, LeaseExpiredError, NotPermittedError
            As `find` for writing.
        """
        record = self.find(identity, key, now_ms, write=True)
        return self._take(record, now_ms, "was released")

    def lose(self, identity: bytes, now_ms: int) -> LeaseRecord:
        """End a lease without its key: its memory is gone.

        Raises
        ------
        UnknownLeaseError, LeaseExpiredError
            There is no such lease, or no more; also one that has run out and was not taken out is given.
        """
        record = self._live.get(identity)
        if record is None:
            raise self._missing(identity, now_ms)
        return self._take(record, now_ms, "was ended, and its memory taken away,")

    def due(self, now_ms: int) -> list[LeaseRecord]:
        """Take out the leases that have run out, soonest first; the caller takes their memory back."""
        found: list[LeaseRecord] = []
        while (deadline := self.next_deadline) is not None and deadline <= now_ms:
            _, identity = heapq.heappop(self._queue)
            found.append(self._take(self._live[identity], deadline, "ran out"))
        return found

    def move(self, identity: bytes) -> LeaseRecord:
        """Take out a lease that another authority has from now on; nothing of it is remembered.

        Raises
        ------
        UnknownLeaseError, LeaseExpiredError
            There is no such lease, or no more.
        """
        record = self._live.pop(identity, None)
        if record is None:
            raise self._missing(identity, None)
        return record

    # -- questions ---------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> int | None:
        """When the next lease runs out; None when there is none."""
        queue, live = self._queue, self._live
        while queue:
            deadline, identity = queue[0]
            record = live.get(identity)
            if record is not None and record.deadline_ms == deadline:
                return deadline
            heapq.heappop(queue)
        return None

    def records(self) -> list[LeaseRecord]:
        """Return the leases that were not taken out, soonest end first."""
        return sorted(self._live.values(), key=lambda record: (record.deadline_ms, record.id))

    def live(self) -> list[LeaseRecord]:
        """Return the same in no order, quickly."""
        return list(self._live.values())

    def forget(self, identity: bytes) -> None:
        """Remember nothing of an ended lease: another authority has it."""
        self._ended.pop(identity, None)

    def has_ended(self, identity: bytes) -> bool:
        """Whether a lease of that id is remembered as ended (one that has run out unnoticed is not yet)."""
        return identity in self._ended

    def check(self) -> None:
        """Raise `InternalError` at the first invariant that does not hold."""
        queued = set(self._queue)
        for identity, record in self._live.items():
            if record.id != identity or (record.deadline_ms, identity) not in queued:
                raise InternalError(f"lease {show_id(identity)} is not in the queue of deadlines")
            if identity in self._ended:
                raise InternalError(f"lease {show_id(identity)} has ended and is alive")
        if len(self._ended) > self._max_ended:
            raise InternalError(f"{len(self._ended)} ended leases are remembered, not {self._max_ended}")
        if len(self._queue) > 2 * len(self._live) + _STALE:
            raise InternalError(f"{len(self._queue)} deadlines are queued for {len(self._live)} leases")

    # -- inside ------------------------------------------------------------------------------------------

    def _alive(self, identity: bytes, now_ms: int) -> LeaseRecord:
        record = self._live.get(identity)
        if record is None:
            raise self._missing(identity, now_ms)
        if record.deadline_ms <= now_ms:
            raise _expired(identity, "ran out", now_ms - record.deadline_ms)
        return record

    def _missing(self, identity: bytes, now_ms: int | None) -> LeaseExpiredError | UnknownLeaseError:
        ended = self._ended.get(identity)
        if ended is None:
            return UnknownLeaseError(
                f"no lease has the id {show_id(identity)} here, nor had it lately; check it, or lease anew"
            )
        when, what = ended
        return _expired(identity, what, None if now_ms is None else now_ms - when)

    def _take(self, record: LeaseRecord, when_ms: int, what: str) -> LeaseRecord:
        del self._live[record.id]
        self._ended[record.id] = when_ms, what
        while len(self._ended) > self._max_ended:
            self._ended.popitem(last=False)
        return record

    def _push(self, record: LeaseRecord) -> None:
        heapq.heappush(self._queue, (record.deadline_ms, record.id))
        if len(self._queue) > 2 * len(self._live) + _STALE:
            self._queue = [(each.deadline_ms, each.id) for each in self._live.values()]
            heapq.heapify(self._queue)


def _matches(expected: bytes, key: bytes) -> bool:
    return isinstance(key, bytes) and hmac.compare_digest(expected, digest(key))


def _check_duration(duration_ms: int) -> None:
    if not 1 <= duration_ms <= MAX_DURATION_MS:
        raise UsageError(
            f"a lease for {duration_ms} ms was asked for; it can be from 1 to {MAX_DURATION_MS} ms"
        )


def _expired(identity: bytes, what: str, ago_ms: int | None) -> LeaseExpiredError:
    ago = "" if ago_ms is None else f" {show_milliseconds(max(0, ago_ms))} ago"
    return LeaseExpiredError(
        f"lease {show_id(identity)} {what}{ago}; its memory is gone: lease anew, and renew in time"
    )
