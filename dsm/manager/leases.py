"""Mapped leases, at the coordinator: who has which until when, and what memory that takes.

Owns the table of the cluster's leases and the timer that ends them.  A lease is a region of its own: fresh,
zeroed memory, at addresses that are never used again, so that nobody ever meets another lessee's bytes.
Its directory is on the node that took it: a node that is lost takes only its own leases with it, and pages
that lay there alone.  The end of a lease, by time or by release, destroys its region.

What a server leases out it decides about itself, until somebody maps it: see `dsm.manager.demands`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dsm.errors import (
    DSMError,
    FullError,
    NotPermittedError,
    Status,
    TooLargeError,
    UsageError,
    status_of,
)
from dsm.limits import LEASE_RELEASE_WAIT_S, MAX_CONTROL_BYTES, MAX_REGION_BYTES
from dsm.log import logger
from dsm.manager.demands import Demands, Worker
from dsm.memory.leases import LeaseRecord, LeaseTable
from dsm.memory.token import show_id
from dsm.types import Region, RegionOptions
from dsm.units import show_bytes
from dsm.wire import control, leasing
from dsm.wire import membership as meta

Answer = Callable[[meta.Reply], None]
_MS = 1_000_000
#: Bytes of the leases in one answer.
_LIST_BYTES = MAX_CONTROL_BYTES // 2
#: The longest time for which a timer is set: the clock is asked again then.
_TIMER_MAX_S = 3600.0


class Regions:
    """What leases ask of the coordinator (which fills it in)."""

    #: ``create(worker, options, ready, answer)``; raises what refuses it.
    create: Callable[[Worker, RegionOptions, bool, Answer], None]
    #: ``destroy(number, done)``.
    destroy: Callable[[int, Callable[[], None]], None]
    #: ``when_ready(region, answer)``: `Found`, once it can be opened, or `Failed`.
    when_ready: Callable[[Region, Answer], None]
    #: ``is_unready(number)``: its creator has yet to fill it.
    is_unready: Callable[[int], bool]
    #: ``after(seconds, callback)``.
    after: Callable[[float, Callable[[], None]], None]


@dataclass
class _Pending:
    """A lease whose region is being made."""

    worker: Worker
    #: Nobody waits for it any more.
    abandoned: bool = False


class Leases:
    """The mapped leases of a cluster.

    Parameters
    ----------
    regions
        The coordinator.
    max_bytes
        Of all leases together, in whole pages; None: no bound (DSM_LEASE_BYTES).
    space
        Bytes of addresses that the largest region can have.
    clock_ns
        A monotonic clock.
    """

    def __init__(
        self,
        regions: Regions,
        max_bytes: int | None = None,
        space: int = MAX_REGION_BYTES,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._regions = regions
        self._max_bytes = max_bytes
        self._space = min(space, MAX_REGION_BYTES)
        self._clock_ns = clock_ns
        #: Its places are regions.
        self._table = LeaseTable()
        self._pending: dict[bytes, _Pending] = {}
        #: Whose memory a region is.
        self._by_region: dict[int, bytes] = {}
        #: Bytes of all leases, those included that are being made.
        self.used = 0
        #: For when the timer is set; None: it is not.
        self._timer_ns: int | None = None
        self.demands = Demands(regions)

    def __len__(self) -> int:
        return len(self._table)

    # -- questions ---------------------------------------------------------------------------------------

    def ask(self, worker: Worker, body: leasing.Question, answer: Answer) -> None:
        """Answer a worker's question about leases, now or when it can be answered.

        Raises
        ------
        DSMError
            It is refused.
        """
        now_ms = self._now_ms()
        if isinstance(body, leasing.CreateLease):
            self._create(worker, body, answer)
        elif isinstance(body, leasing.OpenLease):
            self._open(worker, body, answer)
        elif isinstance(body, leasing.RenewLease):
            record = self._table.renew(body.id, body.key, now_ms, body.duration_ms, self._begin_ms())
            self._set_timer()
            answer(leasing.LeaseTime(self._remaining_ns(record)))
        elif isinstance(body, leasing.AskLease):
            answer(leasing.LeaseTime(self._remaining_ns(self._table.find(body.id, body.key, now_ms))))
        elif isinstance(body, leasing.ReleaseLease):
            record = self._table.end(body.id, body.key, now_ms)
            logger.info("lease %s is released", show_id(record.id))
            self._free(record, _once(lambda: answer(meta.Finished())))
        elif isinstance(body, leasing.ListLeases):
            answer(self._list(body.after))
        elif isinstance(body, leasing.ServeLeases):
            self.demands.serve(worker)
            answer(meta.Finished())
        elif isinstance(body, leasing.AwaitDemand):
            self.demands.wait(worker, answer)
        else:
            self.demands.done(worker, body)
            answer(meta.Finished())

    def rows(self) -> list[leasing.LeaseRow]:
        """Describe the leases that are alive, in the order of their regions' numbers."""
        now_ms = self._now_ms()
        found: list[leasing.LeaseRow] = []
        for record in sorted(self._table.records(), key=lambda record: record.place.region):
            if record.deadline_ms > now_ms:
                region: Region = record.place
                home = region.options.home
                assert isinstance(home, int), "leases are made with the node that took them as home"
                left, age = self._remaining_ns(record), (self._begin_ms() - record.created_ms) * _MS
                heap = region.options.heap
                found.append(leasing.LeaseRow(record.id, record.nbytes, left, age, home, region.region, heap))
        return found

    def _list(self, after: int) -> leasing.LeaseList:
        rows: list[leasing.LeaseRow] = []
        size = 0
        for row in self.rows():
            if row.region <= after:
                continue
            size += len(meta.encode(row))
            if size > _LIST_BYTES:
                return leasing.LeaseList(rows, more=True)
            rows.append(row)
        return leasing.LeaseList(rows)

    # -- begin -------------------------------------------------------------------------------------------

    def _create(self, worker: Worker, body: leasing.CreateLease, answer: Answer) -> None:
        self._table.check_new(body.id, body.write_digest, body.read_digest, body.nbytes, body.duration_ms)
        if body.id in self._pending:
            raise UsageError(f"a lease with id {show_id(body.id)} is being made already; draw another id")
        options = RegionOptions(body.nbytes, home=worker[0], use="lease", heap=body.heap)
        size = Region(0, options, 0, ()).size
        self._check_room(size)
        pending = self._pending[body.id] = _Pending(worker)
        self.used += size

        def created(reply: meta.Reply) -> None:
            del self._pending[body.id]
            if isinstance(reply, meta.Found) and not pending.abandoned:
                record = self._table.adopt(
                    body.id,
                    body.write_digest,
                    body.read_digest,
                    body.nbytes,
                    reply.region,
                    self._begin_ms(),
                    body.duration_ms,
                )
                self._by_region[reply.region.region] = body.id
                self._set_timer()
                answer(leasing.LeaseOpened(reply.region, self._remaining_ns(record), True))
                return
            self.used -= size
            if isinstance(reply, meta.Found):
                self._regions.destroy(reply.region.region, lambda: None)
                reply = control.Failed(Status.CLOSED, "the worker that asked for the lease is gone")
            answer(reply)

        try:
            self._regions.create(worker, options, body.ready, created)
        except DSMError:
            del self._pending[body.id]
            self.used -= size
            raise

    def _check_room(self, size: int) -> None:
        if size > self._space:
            raise TooLargeError(
                f"a lease of {show_bytes(size)} is larger than all addresses that there are for one, "
                f"{show_bytes(self._space)}; divide it among several leases"
            )
        limit = self._max_bytes
        if limit is None or self.used + size <= limit:
            return
        if size > limit:
            raise TooLargeError(
                f"a lease of {show_bytes(size)} (in whole pages) is larger than DSM_LEASE_BYTES, "
                f"{show_bytes(limit)}; lease less, or start the first node of the cluster with more"
            )
        raise FullError(
            f"a lease of {show_bytes(size)} has no room now: {len(self._table)} leases have "
            f"{show_bytes(self.used)} of {show_bytes(limit)} (DSM_LEASE_BYTES); try again when some are over"
        )

    # -- use ---------------------------------------------------------------------------------------------

    def _open(self, worker: Worker, body: leasing.OpenLease, answer: Answer) -> None:
        if body.id in self._table or self._table.has_ended(body.id):
            self._open_known(body, answer)
            return

        def searched(refusal: control.Failed | None) -> None:
            if refusal is not None and body.id not in self._table:
                answer(refusal)
                return
            try:
                self._open_known(body, answer)
            except DSMError as error:
                answer(_failed(error))

        self.demands.search(worker, body, searched)

    def _open_known(self, body: leasing.OpenLease, answer: Answer) -> None:
        record = self._table.find(body.id, body.key, self._now_ms())

        def ready(reply: meta.Reply) -> None:
            try:
                record = self._table.find(body.id, body.key, self._now_ms())
            except DSMError as error:
                answer(_failed(error))
                return
            if isinstance(reply, meta.Found):
                writable = self._table.may_write(record, body.key)
                reply = leasing.LeaseOpened(reply.region, self._remaining_ns(record), writable)
            answer(reply)

        self._regions.when_ready(record.place, ready)

    # -- end ---------------------------------------------------------------------------------------------

    def _free(self, record: LeaseRecord, done: Callable[[], None]) -> None:
        """Give the memory of an ended lease back; `done()` when no worker reaches it, or soon.

        A worker that is stopped confirms nothing, but it cannot read either: nobody waits for it.
        """
        self._regions.after(LEASE_RELEASE_WAIT_S, done)
        self._regions.destroy(self._ended(record), done)

    def _ended(self, record: LeaseRecord) -> int:
        """Return the region of a lease that has ended, to be destroyed."""
        region: Region = record.place
        self.used -= region.size
        del self._by_region[region.region]
        return region.region

    def _reap(self) -> None:
        """End the leases that have run out."""
        for record in self._table.due(self._now_ms()):
            logger.info("lease %s has run out", show_id(record.id))
            self._regions.destroy(self._ended(record), lambda: None)
        self._set_timer()

    def _set_timer(self) -> None:
        """Be called when the next lease runs out; a timer that comes too early does no harm."""
        deadline_ms = self._table.next_deadline
        if deadline_ms is None:
            return
        now_ns = self._clock_ns()
        due_ns = min(deadline_ms * _MS, now_ns + int(_TIMER_MAX_S * 1e9))
        if self._timer_ns is not None and self._timer_ns <= due_ns:
            return
        self._timer_ns = due_ns

        def fire() -> None:
            if self._timer_ns == due_ns:
                self._timer_ns = None
                self._reap()

        self._regions.after(max(0, due_ns - now_ns) / 1e9, fire)

    def region_gone(self, region: Region) -> None:
        """A region was destroyed, perhaps that of a lease which has not ended."""
        identity = self._by_region.get(region.region)
        if identity is None:
            return
        if self._regions.is_unready(region.region):
            record = self._table.move(identity)  # it never began here
        else:
            record = self._table.lose(identity, self._now_ms())
        self._ended(record)

    def workers_gone(self, gone: Callable[[Worker], bool]) -> None:
        """Processes are gone: their leases stay, but not those that they did not get, nor what they serve."""
        for pending in self._pending.values():
            pending.abandoned = pending.abandoned or gone(pending.worker)
        self.demands.workers_gone(gone)

    # -- time --------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return self._clock_ns() // _MS

    def _begin_ms(self) -> int:
        """Return the time, rounded so that a lease lives as long as was asked at least."""
        return -(-self._clock_ns() // _MS)

    def _remaining_ns(self, record: LeaseRecord) -> int:
        return max(0, record.deadline_ms * _MS - self._clock_ns())


def refuse_region(options: RegionOptions) -> None:
    """Refuse to open or end the region of a lease without its key."""
    if options.use == "lease":
        raise NotPermittedError(
            "the region is a lease: open it with node.open_lease(token), end it with Lease.release()"
        )


def _failed(error: DSMError) -> control.Failed:
    return control.Failed(status_of(error), str(error))


def _once(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does something the first time only."""
    left = [function]

    def call() -> None:
        if left:
            left.pop()()

    return call
