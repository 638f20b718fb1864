"""`Node`: the user's handle of the node that this process is attached to.

Owns the public operations and their documentation; each is a few lines that hand the work to the
module that owns it.  It does not know how a process finds its node (`dsm.worker.attach`).
"""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from dsm import limits
from dsm.errors import DSMError, LimitError, UsageError
from dsm.types import CONDITION_LOCK, MAX_UNITS, SyncObject
from dsm.wire import control
from dsm.wire.calls import to_signed
from dsm.worker import calls, lacking, layouts, pagetable, ranges
from dsm.worker.connection import Connection
from dsm.worker.regions import Region, RegionTable
from dsm.worker.statistics import Statistics, statistics_of
from dsm.worker.synchronization import Atomic, Condition, Event, Lock, RWLock, Semaphore, atomics, barriers
from dsm.worker.synchronization.atomics import word
from dsm.worker.synchronization.objects import ObjectTable
from dsm.worker.synchronization.owners import HeldLocks
from dsm.worker.synchronization.semaphores import number_of


class Node:
    """The node of this process; made by `dsm.attach`, closed by `close` or at the end of a ``with`` block.

    Arrays are plain `numpy.ndarray`s over memory that all workers of the cluster share.  An access that
    cannot be served raises in the thread that made it, at its next call or loop iteration:
    `ClosedError`, `NodeLostError`, `PageLostError`, `PageTimeoutError`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False
        self._regions = RegionTable(self, connection.session)
        self._pins = ranges.PinTable()
        self._held = HeldLocks()
        self._objects = ObjectTable(connection.session)

    # ---- who and where --------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of this worker among the job's, from 0; without a launcher in order of attach."""
        return self._connection.attached.rank

    @property
    def size(self) -> int:
        """Workers of the job; without a launcher those that had attached when this one did."""
        return self._connection.attached.size

    @property
    def node_id(self) -> int:
        """Number of this node in the cluster."""
        return self._connection.attached.node

    @property
    def nodes(self) -> tuple[int, ...]:
        """Numbers of the nodes that are alive."""
        reply, _ = self._connection.session.call(control.ListNodes(), control.NodeList)
        return tuple(reply.nodes)

    @property
    def cluster(self) -> str:
        """Identity of the cluster."""
        return self._connection.attached.cluster

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def lost(self) -> bool:
        """Whether the manager of this node has gone; `dsm.attach` then gives a new node."""
        return not self._closed and self._connection.lost

    # ---- arrays and regions ---------------------------------------------------------------------------

    def array(
        self, name: str | None, shape: layouts.ShapeLike, dtype: npt.DTypeLike = "f8", *,
        consistency: str = "sequential", page_size: int = 4096, home: str | int = "first-touch",
        fill: Any = 0, order: str = "C", max_staleness: float | None = None,
    ) -> np.ndarray[Any, Any]:  # fmt: skip
        """Create an array, or open the one of that name: every worker gets the same memory.

        Parameters
        ----------
        name
            1 to 255 bytes, the same in every worker; None for an anonymous array, which lives until it
            is destroyed or its cluster ends (pass it on with `dsm.ref`).
        shape
            An integer or a tuple of integers; ``()`` and zero sizes work.
        dtype
            Any dtype of fixed size without Python objects.
        consistency
            ``"sequential"``: what is right on one machine's threads is right here.  ``"bounded"``: what is
            read may be old by `max_staleness`, and whoever writes is never held up by readers.
        page_size
            Bytes of the unit that moves between nodes: 4096 · 2^k, at most 2 MiB.  Large pages suit large
            sequential data, small pages suit what several nodes write.
        home
            Which node keeps a page's directory entry: ``"first-touch"``, ``"block"``, ``"cyclic"`` or a
            node's number.
        fill
            First value of every item, anything that casts to `dtype` without loss; 0 is zero bytes in
            every dtype, as in `numpy.zeros`.
        order
            ``"C"`` or ``"F"``.
        max_staleness
            Of ``"bounded"``, and required there: seconds by which a value that is read may be old, 0.005 to
            3600.

        Returns
        -------
        numpy.ndarray
            A plain, writable array.

        Raises
        ------
        UsageError
            When an argument is wrong, or the existing array has another shape, dtype or option; the
            message names both.
        LimitError, AddressRangeError
            When there is no room for it in the cluster or in this process.

        Examples
        --------
        >>> a = node.array("grid", (4096, 4096), "f8")  # doctest: +SKIP
        """
        options = layouts.array_options(
            name,
            shape,
            dtype,
            consistency=consistency,
            page_size=page_size,
            home=home,
            fill=fill,
            order=order,
            max_staleness=max_staleness,
        )
        region, _ = self._regions.create(options)
        return region._whole()

    def from_array(
        self, name: str | None, array: npt.ArrayLike, *, consistency: str = "sequential",
        page_size: int = 4096, home: str | int = "first-touch", max_staleness: float | None = None,
    ) -> np.ndarray[Any, Any]:  # fmt: skip
        """Create an array with the contents of another one, or open the one of that name.

        The contents of the first worker win: others wait until it has copied, and get its array; theirs
        must have the same shape and dtype.  If it dies while it copies, the name is free again.

        Parameters
        ----------
        name, consistency, page_size, home, max_staleness
            As in `array`.
        array
            What `numpy.asarray` understands; its shape, dtype and order are kept.

        Returns
        -------
        numpy.ndarray
            A plain, writable array in shared memory.

        Raises
        ------
        UsageError
            As in `array`.
        """
        source = np.asarray(array)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
        options = layouts.array_options(
            name, source.shape, source.dtype, consistency=consistency, page_size=page_size, home=home, fill=0,
            order=order, max_staleness=max_staleness,
        )  # fmt: skip
        region, created = self._regions.create(options, ready=False)
        target = region._whole()
        if created:
            try:
                if region._described.pages > 1:
                    self.prefetch(target, write=True)
                target[...] = source
                self._connection.session.call(control.RegionReady(region.number), control.Done)
            except BaseException:
                self.destroy(region)
                raise
        return target

    def open(self, name: str) -> np.ndarray[Any, Any]:
        """Return the existing array of that name.

        Raises
        ------
        UnknownNameError
            When there is none.
        UsageError
            When it is a region without an array; see `region`.
        """
        if layouts.check_name(name, "the array") is None:
            raise UsageError("an anonymous array has no name to open it by; send dsm.ref(array)")
        return self._regions.open(name)._whole()

    def region(
        self, name: str | None, nbytes: SupportsIndex | None = None, *, consistency: str = "sequential",
        page_size: int = 4096, home: str | int = "first-touch", fill: int | bytes = 0,
        max_staleness: float | None = None,
    ) -> Region:  # fmt: skip
        """Create a region of raw memory, or open the one of that name.

        Parameters
        ----------
        name, consistency, page_size, home, max_staleness
            As in `array`.
        nbytes
            Its size; None opens an existing region, also that of an array.
        fill
            A byte's value, or bytes that are repeated from the start.

        Returns
        -------
        Region
            With `address`, `size`, `buffer`, `array` and `destroy`.

        Raises
        ------
        UsageError
            When an argument is wrong or the existing region has other options.
        UnknownNameError
            When `nbytes` is None and there is no region of that name.
        """
        layouts.check_name(name, "the region")
        if nbytes is None:
            if name is None:
                raise UsageError("an anonymous region needs a size; pass nbytes")
            return self._regions.open(name)
        options = layouts.region_options(
            name, nbytes, consistency=consistency, page_size=page_size, home=home, fill=fill,
            max_staleness=max_staleness,
        )  # fmt: skip
        return self._regions.create(options)[0]

    def destroy(self, what: str | np.ndarray[Any, Any] | Region) -> None:
        """End an array or region for every worker of the cluster.

        Its name can be used again.  Touching its old memory raises `ClosedError`, in every worker.

        Parameters
        ----------
        what
            A name, an array (or a view of one), or a `Region`.

        Raises
        ------
        UnknownNameError
            When there is no region of that name.
        UsageError
            When the array does not lie in an open region.
        """
        if isinstance(what, str):
            self._regions.destroy_named(what)
        elif isinstance(what, Region):
            what._check_open()
            self._regions.destroy(what.number)
        else:
            found = ranges.region_of(what, self._regions) if isinstance(what, np.ndarray) else None
            if found is None:
                raise UsageError(
                    f"destroy() was given a {type(what).__name__} that does not lie in an open dsm region; "
                    "pass a name, an array of node.array(), or a Region"
                )
            self._regions.destroy(found[0].number)

    def arrays(self) -> dict[str, layouts.ArrayInfo]:
        """Return the named arrays of the cluster, by name."""
        regions = [region for region in self._regions.listed() if region.options.layout is not None]
        return {region.options.name: layouts.describe(region) for region in regions if region.options.name}

    # ---- synchronization ------------------------------------------------------------------------------

    def lock(self, name: str, timeout: float | None = None) -> Lock:
        """Return the lock of that name, a context manager.

        Parameters
        ----------
        name
            The same in every worker.
        timeout
            How long a ``with`` block waits for it, in seconds; it raises `WaitTimeoutError` then.

        Returns
        -------
        Lock
            Owned by a thread: release it in the thread that acquired it.
        """
        calls.check_timeout(timeout)
        return Lock(self._objects.get("lock", name), self._held, timeout)

    def barrier(
        self, name: str | None = None, parties: SupportsIndex | None = None, *, timeout: float | None = None
    ) -> int:
        """Wait until all parties have arrived.

        Parameters
        ----------
        name
            Name of the barrier; None for the job's own.
        parties
            How many arrivals complete it; default: all workers of the job.  Required without a launcher,
            since nobody knows there how many workers will come.
        timeout
            Seconds to wait; None waits without end.

        Returns
        -------
        int
            Index of this arrival, from 0.

        Raises
        ------
        UsageError
            When `parties` is missing, or not what others gave.
        WaitTimeoutError
            After `timeout`; the barrier is broken for the others, as `threading.Barrier` is.
        BrokenBarrierError
            When another party gave up, or a worker that had met here before died, or the node that kept
            the barrier.  Once every party has been told they may meet again.  At a barrier of all workers of
            a job: when one of the ranks has ended, until a process attaches with that rank.
        """
        seconds = calls.check_timeout(timeout)
        return barriers.wait_at(*self._barrier(name, parties), seconds)

    def reset_barrier(self, name: str | None = None, parties: SupportsIndex | None = None) -> None:
        """Make a broken barrier usable at once; who waits at it gets `BrokenBarrierError`.

        It does not help a barrier of all workers of a job while one of the ranks has no process.
        """
        barriers.reset(self._barrier(name, parties)[0])

    def _barrier(self, name: str | None, parties: SupportsIndex | None) -> tuple[SyncObject, bool]:
        return barriers.find(self._objects, name, parties, self._connection.attached)

    def atomic(self, name: str, initial: SupportsIndex = 0, relaxed: bool = False) -> Atomic:
        """Return the atomic integer of that name.

        Parameters
        ----------
        name
            The same in every worker.
        initial
            Its first value, a signed 64-bit integer; has no effect when it exists.
        relaxed
            What is done by this handle orders no memory accesses: for counters and statistics of which only
            the value matters.  Under ``consistency="release"`` that saves the work of an acquire or release.
        """
        value = to_signed(word(initial, "initial"))
        return Atomic(self._objects.get("atomic", name, value), bool(relaxed))

    def rwlock(self, name: str) -> RWLock:
        """Return the readers-writer lock of that name: many read, or one writes.

        Parameters
        ----------
        name
            The same in every worker.

        Returns
        -------
        RWLock
            With ``with rw.read():`` and ``with rw.write():``.
        """
        return RWLock(self._objects.get("rwlock", name), self._held, None)

    def semaphore(
        self, name: str, value: SupportsIndex = 1, bounded: bool = False, timeout: float | None = None
    ) -> Semaphore:
        """Return the semaphore of that name, a context manager that takes one unit.

        Parameters
        ----------
        name
            The same in every worker.
        value
            Units in the beginning; the same in every worker.
        bounded
            Never more units than that, and each belongs to the process that takes it (`Semaphore`).
        timeout
            How long a ``with`` block waits for a unit, in seconds; it raises `WaitTimeoutError` then.

        Raises
        ------
        UsageError
            When the semaphore exists with another value, or in the other way.
        """
        calls.check_timeout(timeout)
        units = number_of(value, "value", int(bool(bounded)), MAX_UNITS)
        return Semaphore(self._objects.get("semaphore", name, units, bool(bounded)), timeout)

    def event(self, name: str) -> Event:
        """Return the event of that name, a flag to wait for.

        Parameters
        ----------
        name
            The same in every worker.
        """
        return Event(self._objects.get("event", name))

    def condition(self, name: str, lock: Lock | None = None) -> Condition:
        """Return the condition of that name, a context manager that holds its lock.

        Parameters
        ----------
        name
            The same in every worker.
        lock
            What `lock` returned, the same in every worker; None: a lock of its own.  Several conditions may
            share a lock.

        Raises
        ------
        UsageError
            When the condition exists with another lock.
        """
        layouts.check_name(name, "the condition")
        if lock is not None and not isinstance(lock, Lock):
            raise UsageError(f"lock is a {type(lock).__name__}; pass what node.lock() returned, or None")
        own = lock is None
        lock = self.lock(f"{CONDITION_LOCK}{name}") if lock is None else self.lock(lock.name, lock._timeout)
        return Condition(self._objects.get("condition", name, lock._number), lock, own)

    def acquire(self) -> None:
        """See what other nodes have released: for programs with a synchronization of their own.

        Locks, barriers, conditions, events, semaphores and atomics do this by themselves.  It is for what dsm
        does not see: a pipe, a queue, a file, a socket.  Whatever a worker wrote before it called `release`
        is seen by whoever is told afterwards, by whatever means, and calls `acquire` then.  Sequentially
        consistent arrays need neither.

        Examples
        --------
        >>> a[:] = 1.0; node.release(); pipe.send("done")  # doctest: +SKIP
        >>> pipe.recv(); node.acquire(); a.sum()  # another process  # doctest: +SKIP

        Raises
        ------
        PageTimeoutError
            When the node that keeps the order does not answer in time.
        """
        atomics.acquire(self._objects.fence())

    def release(self) -> None:
        """Show other nodes what this one has written; returns when it is done.

        See `acquire`: who is told after this has returned, and calls `acquire`, sees it.

        Raises
        ------
        PageTimeoutError
            When the node that keeps the order does not answer in time: it may not be done.
        """
        atomics.release(self._objects.fence())

    # ---- pages ----------------------------------------------------------------------------------------

    def prefetch(self, array: np.ndarray[Any, Any] | Region, write: bool = False) -> None:
        """Bring the pages of an array here in bulk; returns when they are here.

        Parameters
        ----------
        array
            An array of a region, a view (all pages between its lowest and highest byte), or a `Region`.
        write
            For writing: no other node keeps them.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is not None:
            ranges.check_fits(pages, self._page_size(pages), "prefetching")
            ranges.prefetch(pages, bool(write))

    def home_of(self, array: np.ndarray[Any, Any] | Region) -> np.ndarray[Any, Any]:
        """Return which node is the home of each page of an array.

        Parameters
        ----------
        array
            As in `prefetch`: all pages between its lowest and highest byte.

        Returns
        -------
        numpy.ndarray
            Node numbers, int16, one for each page; -1 where nobody has touched the page yet, or its home
            does not answer.

        Examples
        --------
        >>> np.bincount(node.home_of(a))  # pages at home on each node  # doctest: +SKIP
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is None:
            return np.empty(0, np.int16)
        table = self.page_table(array)
        homes = np.full(pages.pages, -1, np.int16)
        own = table[table["home"] == table["node"]]
        homes[own["page"] - pages.page] = own["node"]
        return homes

    def rehome(self, array: np.ndarray[Any, Any] | Region) -> int:
        """Make this node the home of the pages of an array, so that writing them here needs no diffs.

        It is about speed alone: homes follow the work by themselves after a few releases.  Releases
        first, as `release` does.

        Parameters
        ----------
        array
            As in `prefetch`; of a region with ``consistency="release"``.

        Returns
        -------
        int
            Of how many of the pages this node is the home now: not of those that another worker of this
            node was writing meanwhile, nor of those that went away with a node.

        Raises
        ------
        UsageError
            When the region has another consistency: there pages have no home that could move.
        PageTimeoutError
            When a home does not answer in time; homes may have moved in part.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is None:
            return 0
        region = self._regions.get(pages.region)
        if region is not None and region.options.consistency != "release":
            raise UsageError(
                f'homes move in regions with consistency="release"; {region.name or "this one"} has '
                f'"{region.options.consistency}"'
            )
        self.release()
        return ranges.rehome(pages)

    def pin(self, array: np.ndarray[Any, Any] | Region, write: bool = True) -> ranges.Pin:
        """Return a context manager that brings the pages of an array here and holds them.

        System calls do not fetch absent pages: ``f.readinto(a)``, ``sock.recv_into(a)``, ``a.tofile(f)``
        and `numpy.save` end with an error (EFAULT) or a short count on them.  Inside ``with node.pin(a):``
        they work.  Other nodes that need the pages wait meanwhile: hold them briefly.  Under
        ``consistency="release"`` the thread that holds a pin can release a lock, but not acquire one, nor
        wait at a barrier.

        Parameters
        ----------
        array
            As in `prefetch`.
        write
            Whether the pages may be written; False lets other nodes go on reading.

        Returns
        -------
        Pin
            The ``with`` statement gives `array`.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is not None:
            ranges.check_fits(pages, self._page_size(pages), "pinning")
        region = None if pages is None else self._regions.get(pages.region)
        keeps_old = region is not None and region.options.consistency == "release"
        return ranges.Pin(self._pins, array, pages, bool(write), keeps_old)

    def _page_size(self, pages: ranges.PageRange) -> int:
        region = self._regions.get(pages.region)
        return limits.OS_PAGE_BYTES if region is None else region.page_size

    # ---- state ----------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return what this node has counted, frozen."""
        reply, _ = self._connection.session.call(control.GetStatistics(), control.Statistics)
        return statistics_of(reply.values, reply.latency_ns_log2)

    def page_table(
        self, array: np.ndarray[Any, Any] | Region, nodes: str | int = "all"
    ) -> np.ndarray[Any, Any]:
        """Return what the nodes know of the pages of an array, a row for each page and node.

        Nothing is fetched and nobody waits for anybody: it is a picture, not of one moment.  A node that
        does not answer within 1.5 s is left out, with a `RuntimeWarning`.

        Parameters
        ----------
        array
            As in `prefetch`: all pages between its lowest and highest byte.
        nodes
            ``"all"``, ``"here"`` (this node) or the number of a live node.

        Returns
        -------
        numpy.ndarray
            Structured, by page and then by node:

            ``node``, ``page``, ``address``, ``size``
                The node that says this; number of the page in its region, its address and bytes.
            ``home``
                Node that decides about the page.
            ``owner``
                Node with the writable copy, or that had it last; -1: none yet, or the home was not
                asked; -2: it went away with a node.
            ``permissions``
                What workers of the node may do without a fault: ``"---"``, ``"r--"`` or ``"rw-"``.
            ``model``, ``state``
                Consistency of the region, and the state of the page on the node (ARCHITECTURE.md).
            ``faults_read``, ``faults_write``
                Faults of the node's workers that its manager was asked about.
            ``dirty``
                Whether the node may have written what no other node has.
            ``version``
                How often the contents, or the right to write them, came to the node or were merged there
                or from there.
            ``copyset``
                How many nodes have, or may have, a copy; -1 when the home was not asked.
            ``lease``
                Seconds for which the node may still read its copy without asking; NaN where there is none.

        Raises
        ------
        UsageError
            When it is no array of an open region, or `nodes` is wrong.
        ClosedError
            When the region is destroyed meanwhile.
        LimitError
            When the table is larger than this machine's memory.

        Examples
        --------
        >>> table = node.page_table(a)  # doctest: +SKIP
        >>> table[table["version"] > 100]["page"]  # doctest: +SKIP
        """
        pages = ranges.pages_of(array, self._regions)
        asked = pagetable.chosen(nodes, self.node_id, self.nodes)
        if pages is None:
            return np.empty(0, pagetable.COLUMNS)
        ranges.check_table(pages, len(asked))
        table, silent = pagetable.gather(self._ask_pages, *pages, asked)
        if silent:
            numbers = ", ".join(str(each.node) for each in silent)
            warnings.warn(
                f"the page table lacks rows of node {numbers}, which did not answer: stopped, or cut off "
                "(see `dsm status`)",
                RuntimeWarning,
                stacklevel=2,
            )
        return table

    def _ask_pages(self, question: control.GetPages) -> tuple[control.Pages, int]:
        answer, received = self._connection.session.call(question, control.Pages)
        return answer, received.take(1)[0]

    def check(self) -> None:
        """Raise the error of this thread's memory accesses that has not been raised yet, if there is one."""
        self._connection.raiser.check()

    def close(self) -> None:
        """Leave the node; its arrays raise `ClosedError` from now on.  Closing twice is allowed."""
        self._close()

    def _close(self, failed: bool = False) -> None:
        """Leave the node; `failed`: because of an error, which is the worker's death to the others."""
        if self._closed:
            return
        self._closed = True
        self._connection.close(failed)
        self._regions.clear()
        self._pins.clear()
        self._held.clear()

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None and not issubclass(kind, SystemExit))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self.lost else f"rank {self.rank} of {self.size}"
        return f"<dsm.Node {self.node_id} at {self._connection.address}: {state}>"

    # ---- a child of fork ------------------------------------------------------------------------------

    def _renew(self, raiser: Any) -> None:
        """In a child of fork: attach as a worker of its own and map every region where it was."""
        old = self._connection
        old.forget()
        calls.forget()
        self._pins.clear()
        self._held.clear()
        self._closed = True
        try:
            self._connection = Connection(old.address, old.asked_rank, raiser, forked=True)
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, DSMError) or not lacking.is_lack(error):
                raise
            raise LimitError(f"{error!r}: {lacking.reason(error)}") from None
        self._closed = False
        self._regions.remap(self._connection.session)
        self._objects = ObjectTable(self._connection.session)
