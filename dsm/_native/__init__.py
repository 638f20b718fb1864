"""The shim, typed: with `diffs` the one Python module that calls the C of this directory.

Owns the translation between Python values and the C functions of shim.h (read there what each one does),
and `check`, which turns their return codes into exceptions.  Knows nothing of the protocol, of arrays, or
of what a call's operation means.

The manager's side is two classes, `Board` and `Tables`; a worker's side is one per process, hence
functions.  What lies on the path of a fault (`Board.wait`, `complete`, `unapplied`, `Tables.raise_`,
`lower`) allocates nothing but its result and checks nothing that C checks.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import dsm._native._shim as _shim
from dsm.limits import SLOTS_PER_WORKER

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: The C functions themselves, for callers that must do with a single call into C.
lib: Any = _shim.lib
_ffi: Any = _shim.ffi
_unpack: Any = _ffi.unpack

#: Levels of a page in a wanted or applied table, and the bits beside them (layout.h).
NONE, READ, WRITE = 0, 1, 3
LEVEL, MARK, PINNED, LOCKED = 0x03, 0x10, 0x40, 0x80

#: What a slot asks.  Calls of `call_begin` start at `OP_CALL`; `OP_DONE` reports finished revocations.
OP_FAULT_READ, OP_FAULT_WRITE, OP_TOUCHED, OP_DONE, OP_CALL = 1, 2, 3, 15, 16
#: Flag of a call that nobody waits for.
OP_NO_REPLY = 0x40000000

#: Words of one event of `Board.wait`: worker, slot, op, object, a, b, c, ip.
EVENT_WORDS = 8
#: Words of one `SlotWait`, and the slots of a worker.
WAIT_WORDS, SLOTS = 8, SLOTS_PER_WORKER
#: Buckets of the latency histogram: bucket i counts faults of 2^i up to 2^(i+1) ns.
BUCKETS = 40
#: Counters of a worker, in the order of the board.
COUNTERS = ("faults_read", "faults_write", "faults_local", "mprotects", "merges", "poisoned", "lease_late_ns")

_NO_MARK = (1 << 64) - 1
_NOTHING: list[Any] = []

_ADVICE = {
    errno.EEXIST: "something else is mapped there in this process",
    errno.ENOMEM: "if there is free memory, raise vm.max_map_count or use larger pages",
    errno.ESRCH: "no worker is started in this process",
    errno.EBUSY: "a worker is started in this process already",
}


def check(code: int, doing: str = "dsm._native") -> int:
    """Return `code`, or raise the `OSError` that a negative errno stands for.

    Raises
    ------
    OSError
        With that errno: EEXIST (the range is taken), ENOMEM (memory or memory maps ran out), EALREADY
        (mapped already), EINVAL (an argument is out of bounds), ESRCH and EBUSY (no worker, or one
        already), ENOENT (no such region or worker), EAGAIN (every slot is in use).
    """
    if code >= 0:
        return code
    text = f"{doing}: {os.strerror(-code)}"
    if -code in _ADVICE:
        text += f"; {_ADVICE[-code]}"
    raise OSError(-code, text)


def words(array: npt.NDArray[np.int64]) -> Any:
    """Return a C-contiguous array of 64-bit numbers as C sees it."""
    return _ffi.from_buffer("uint64_t[]", array)


def node_board_bytes() -> int:
    """Bytes of a node board's file."""
    return int(lib.dsm_node_board_bytes())


def wanted_bytes(pages: int, leased: bool) -> int:
    """Bytes of the file of a region's wanted table, with its leases if it has some."""
    return int(lib.dsm_wanted_bytes(pages, leased))


def worker_board_bytes() -> int:
    """Bytes of a worker board's file."""
    return int(lib.dsm_worker_board_bytes())


# ---- manager's side --------------------------------------------------------------------------------


class SlotWait(NamedTuple):
    """A thread that waits in a slot; `since` is 0, or CLOCK_MONOTONIC in nanoseconds."""

    slot: int
    op: int
    object: int
    a: int
    b: int
    c: int
    thread: int
    since: int


class Board:
    """A node board with its worker boards, seen by the manager.

    Parameters
    ----------
    node_fd, bell_fd
        The board's file (`node_board_bytes`) and the eventfd that workers ring; both stay the caller's.
    max_events, max_ready
        The most that one `wait` returns; what does not fit comes with the next.
    """

    __slots__ = (
        "_board",
        "_buffers",
        "_c_complete",
        "_c_unapplied",
        "_c_wait",
        "_count",
        "_events",
        "_ready",
    )

    def __init__(self, node_fd: int, bell_fd: int, max_events: int = 256, max_ready: int = 63) -> None:
        self._board = lib.dsm_board_new(node_fd, bell_fd)
        if not self._board:
            check(-_ffi.errno or -errno.EINVAL, "map the node board")
        self._events = _ffi.new("uint64_t[]", EVENT_WORDS * max_events)
        self._ready = _ffi.new("uint64_t[]", max_ready)
        self._count = _ffi.new("uint32_t *")
        #: The arguments of every wait between the descriptor and the times.
        self._buffers = (self._events, max_events, self._ready, max_ready, self._count)
        # Bound once: looking them up in the library costs a good part of a call.
        self._c_wait = lib.dsm_board_wait
        self._c_complete = lib.dsm_complete
        self._c_unapplied = lib.dsm_unapplied

    def close(self) -> None:
        """Unmap everything; tables made with this board must not be used afterwards."""
        if self._board:
            lib.dsm_board_free(self._board)
            self._board = _ffi.NULL

    def add(self, worker: int, worker_fd: int, nudge_fd: int) -> None:
        """Attach a worker's board (`worker_board_bytes`) and the eventfd that wakes its service thread."""
        check(lib.dsm_board_add(self._board, worker, worker_fd, nudge_fd), f"attach worker {worker}")

    def remove(self, worker: int) -> None:
        """Forget a worker; its slots and commands are answered no more."""
        check(lib.dsm_board_remove(self._board, worker), f"detach worker {worker}")

    def wait(self, epoll_fd: int, spin_ns: int, timeout_ns: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Wait for posted slots, finished commands and descriptors of `epoll_fd`.

        Returns
        -------
        events
            `EVENT_WORDS` numbers an event: worker, slot, op, object, a, b, c, ip.
        ready
            (descriptor, epoll events) each.  Both lists are empty when the time (`timeout_ns`; -1:
            without end) is over or a signal arrived.  An empty list is always the same one: only read it.
        """
        found = self._c_wait(self._board, epoll_fd, *self._buffers, spin_ns, timeout_ns)
        if found < 0:
            check(found, "wait for workers")
        events: list[int] = _unpack(self._events, EVENT_WORDS * found) if found else _NOTHING
        count = self._count[0]
        if not count:
            return events, _NOTHING
        return events, [(word & 0xFFFFFFFF, word >> 32) for word in _unpack(self._ready, count)]

    def complete(self, worker: int, slot: int, status: int = 0, result: int = 0) -> None:
        """End the wait of a slot; `result` is unsigned, 64 bits."""
        self._c_complete(self._board, worker, slot, status, result)

    def unapplied(self, worker: int, slot: int) -> bool:
        """Whether a completed fault has not been applied by its thread yet."""
        return bool(self._c_unapplied(self._board, worker, slot))

    def statistics(self, worker: int) -> tuple[dict[str, int], list[int]]:
        """Return the counters of one worker by name, and its histogram of fault latencies."""
        values = _ffi.new("uint64_t[]", len(COUNTERS) + BUCKETS)
        check(lib.dsm_worker_statistics(self._board, worker, values, len(values)), f"worker {worker}")
        numbers = _unpack(values, len(values))
        return dict(zip(COUNTERS, numbers, strict=False)), numbers[len(COUNTERS) :]

    def waits(self, worker: int) -> list[SlotWait]:
        """Return what each thread of a worker waits for at this moment."""
        words = _ffi.new("uint64_t[]", WAIT_WORDS * SLOTS)
        count = check(lib.dsm_worker_waits(self._board, worker, words, SLOTS), f"worker {worker}")
        numbers = _unpack(words, WAIT_WORDS * count) if count else []
        return [SlotWait(*numbers[at : at + WAIT_WORDS]) for at in range(0, len(numbers), WAIT_WORDS)]


class Tables:
    """A region's wanted table and the applied tables of its workers, seen by the manager."""

    __slots__ = ("_asked", "_c_lower", "_c_lower_runs", "_c_raise", "_tables", "pages", "region")

    def __init__(self, board: Board, region: int, pages: int, wanted_fd: int, leased: bool = False) -> None:
        self._tables = lib.dsm_tables_new(board._board, region, pages, wanted_fd, leased)
        if not self._tables:
            check(-_ffi.errno or -errno.EINVAL, f"map the wanted table of region {region}")
        self.region = region
        self.pages = pages
        self._asked = _ffi.new("uint64_t[]", 2 * 256)
        self._c_raise = lib.dsm_raise
        self._c_lower = lib.dsm_lower
        self._c_lower_runs = lib.dsm_lower_runs

    def close(self) -> None:
        """Unmap the tables."""
        if self._tables:
            lib.dsm_tables_free(self._tables)
            self._tables = _ffi.NULL

    def add(self, worker: int, applied_fd: int) -> None:
        """Attach a worker's applied table (one byte a page)."""
        check(lib.dsm_tables_add(self._tables, worker, applied_fd), f"worker {worker}, region {self.region}")

    def remove(self, worker: int) -> None:
        """Forget a worker's applied table, if it has one here."""
        lib.dsm_tables_remove(self._tables, worker)

    def raise_(self, page: int, count: int, level: int, mark: int = _NO_MARK) -> None:
        """Raise the wanted level of `count` pages to `level`; mark page `mark`."""
        self._c_raise(self._tables, page, count, level, mark)

    def lease(self, page: int, count: int, end: int) -> None:
        """Let what is raised to READ count until `end`, in nanoseconds of CLOCK_MONOTONIC."""
        lib.dsm_lease(self._tables, page, count, end)

    def lower(self, page: int, count: int, level: int) -> list[tuple[int, int]]:
        """Lower the wanted level and ask the workers that may have more.

        Returns
        -------
        list of (worker, sequence)
            Each has obeyed once its `commands_done` (an event of `OP_DONE`) has reached its sequence.
            Empty: nothing has to be waited for.
        """
        asked = self._c_lower(self._tables, page, count, level, self._asked)
        if asked == 0:
            return []
        check(asked, f"lower region {self.region} page {page} count {count}")
        return self._who(asked)

    def lower_runs(self, runs: npt.NDArray[np.int64], level: int) -> list[tuple[int, int]]:
        """Lower many runs of pages at once: rows (page, count).  Returns what `lower` does."""
        asked = self._c_lower_runs(self._tables, words(runs), len(runs), level, self._asked)
        if asked == 0:
            return []
        check(asked, f"lower {len(runs)} runs of pages of region {self.region}")
        return self._who(asked)

    def _who(self, asked: int) -> list[tuple[int, int]]:
        numbers = _unpack(self._asked, 2 * asked)
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def words_out(shared: memoryview) -> bytearray:
    """Return a copy of frames that others write meanwhile: each aligned word of eight bytes is whole."""
    copy = bytearray(len(shared))
    lib.dsm_words_out(_ffi.from_buffer(copy), _ffi.from_buffer(shared), len(copy))
    return copy


def words_in(shared: memoryview, data: memoryview) -> None:
    """Store as many bytes into frames that others read meanwhile, word by word."""
    lib.dsm_words_in(_ffi.from_buffer(shared), _ffi.from_buffer(data), len(shared))


# ---- worker's side ---------------------------------------------------------------------------------


class PageError(NamedTuple):
    """A fault that ended in an error; `thread` is the kernel's id, as of `threading.get_native_id`."""

    thread: int
    address: int
    page: int
    region: int
    status: int
    #: What came with the status: 1 + the node that is to blame; 0 nobody.
    peer: int


def worker_start(
    *,
    node_fd: int,
    worker_fd: int,
    bell_fd: int,
    nudge_fd: int,
    manager_pidfd: int,
    error_fd: int,
    spin_ns: int,
    map_limit: int,
    error_pause_ns: int,
) -> None:
    """Map the boards, install the SIGSEGV handler, start the service thread.

    The descriptors stay the caller's and must stay open: `node_fd` and `worker_fd` until this returns, the
    others until `worker_stop`, and `error_fd` for as long as arrays may be touched.
    """
    options = _ffi.new("struct dsm_worker_options *")
    options.node_fd = node_fd
    options.worker_fd = worker_fd
    options.bell_fd = bell_fd
    options.nudge_fd = nudge_fd
    options.manager_pidfd = manager_pidfd
    options.error_fd = error_fd
    options.spin_ns = spin_ns
    options.map_limit = map_limit
    options.error_pause_ns = error_pause_ns
    check(lib.dsm_worker_start(options), "start the worker")


def worker_stop() -> None:
    """Close every region and end the service thread; the handler stays."""
    check(lib.dsm_worker_stop(), "stop the worker")


def worker_lost() -> bool:
    """Whether the manager is gone."""
    return bool(lib.dsm_worker_lost())


def worker_forked() -> bool:
    """Whether this is a child of fork that has not started a worker of its own."""
    return bool(lib.dsm_worker_forked())


def worker_statuses(lost: int, closed: int, limit: int) -> None:
    """Set the statuses with which faults and calls end when nobody can be asked."""
    lib.dsm_worker_statuses(lost, closed, limit)


def handler_check() -> bool:
    """Mend our SIGSEGV handler; True when it had been replaced (the other one is chained now)."""
    return check(lib.dsm_handler_check(), "install the SIGSEGV handler") == 1


def region_map(
    region: int,
    address: int,
    pages: int,
    page_shift: int,
    frames_fd: int,
    wanted_fd: int,
    applied_fd: int,
    lease_guard_ns: int = 0,
) -> None:
    """Map a region at `address` with no access; the descriptors may be closed afterwards.

    With `lease_guard_ns` its wanted table has leases; access that outlives one by more is counted as late.
    """
    code = lib.dsm_region_map(
        region, address, pages, page_shift, frames_fd, wanted_fd, applied_fd, lease_guard_ns
    )
    if code < 0:
        check(code, f"map region {region}, {pages << page_shift} bytes at {address:#x}")


def region_close(region: int) -> None:
    """Make a region's addresses an error to touch; they stay reserved."""
    check(lib.dsm_region_close(region), f"close region {region}")


def region_apply(region: int, page: int, count: int, pin: int = -1) -> None:
    """Apply what is wanted now; `pin` holds the maps (1), lets them go (0), leaves that as it is (-1)."""
    code = lib.dsm_region_apply(region, page, count, pin)
    if code < 0:
        check(code, f"apply pages {page} to {page + count} of region {region}")


def region_find(address: int) -> tuple[int, int] | None:
    """Return (region, offset) when `address` lies in one of our regions, open or closed."""
    region, offset = _ffi.new("uint32_t *"), _ffi.new("uint64_t *")
    return (region[0], offset[0]) if lib.dsm_region_find(address, region, offset) else None


def region_closed_end(address: int) -> int:
    """Return where the closed region ends in which `address` lies; 0 when it lies in none."""
    return int(lib.dsm_region_closed_end(address))


def region_mark(address: int) -> int:
    """Return a number that stays while the region there is open and no page of it is poisoned; else -1.

    What was read between two calls that returned the same number, not -1, is what the region held.
    """
    return int(lib.dsm_region_mark(address))


def error_take() -> PageError | None:
    """Return the next fault that ended in an error and has no exception yet."""
    error = _ffi.new("struct dsm_error *")
    if not lib.dsm_error_take(error):
        return None
    return PageError(error.thread, error.address, error.page, error.region, error.status, error.peer)


def error_told(error: PageError) -> None:
    """Let the thread of `error` go on, its exception is pending; poison is silent until `error_done`."""
    lib.dsm_error_told(_ffi.new("struct dsm_error *", error._asdict()))


def error_done(error: PageError) -> None:
    """Let the thread of `error` go on; its page traps again afterwards."""
    code = lib.dsm_error_done(_ffi.new("struct dsm_error *", error._asdict()))
    if code != -errno.ENOENT:  # unknown: a fork has forgotten it
        check(code, "hand over a page error")


def call_begin(op: int, object: int, a: int = 0, b: int = 0, c: int = 0) -> int:
    """Ask the manager through a slot; returns the slot's number.

    Raises
    ------
    BlockingIOError
        Every slot is in use.
    """
    slot: int = lib.dsm_call_begin(op, object, a, b, c)
    return slot if slot >= 0 else check(slot, f"call {op} of object {object}")


def call_post(op: int, object: int, a: int = 0, b: int = 0, c: int = 0) -> bool:
    """Tell the manager something; False when every slot is in use."""
    code = lib.dsm_call_post(op, object, a, b, c)
    return code != -errno.EAGAIN and check(code, f"call {op} of object {object}") == 0


def call_wait(slot: int, timeout_ns: int) -> tuple[int, int] | None:
    """Wait for the answer of a call.

    Returns
    -------
    (status, result), or None when the time (-1: without end) is over or a signal may have arrived: then
    let Python run its handlers, and wait again.
    """
    status, result = _ffi.new("uint32_t *"), _ffi.new("uint64_t *")
    code = lib.dsm_call_wait(slot, timeout_ns, status, result)
    if code == 1:
        return status[0], result[0]
    if code != -errno.EINTR:
        check(code, f"wait for the call in slot {slot}")
    return None


def call_end(slot: int) -> None:
    """Give the slot back; only after `call_wait` returned an answer."""
    lib.dsm_call_end(slot)


# ---- measuring -------------------------------------------------------------------------------------


def probe_fault(count: int) -> list[int]:
    """Nanoseconds of each of `count` times SIGSEGV + mprotect + return; only without a worker."""
    samples = _ffi.new("uint64_t[]", count)
    check(lib.dsm_probe_fault(count, samples), "measure bare faults")
    return list(_unpack(samples, count))


def probe_ask(fd: int, count: int, request: int, reply: int) -> list[int]:
    """Nanoseconds of each of `count` requests over a connected blocking socket."""
    samples = _ffi.new("uint64_t[]", count)
    check(lib.dsm_probe_ask(fd, count, request, reply, samples), "measure requests")
    return list(_unpack(samples, count))


def probe_answer(fd: int, request: int, reply: int) -> int:
    """Answer `probe_ask` until the peer closes; returns the number of answers."""
    return check(lib.dsm_probe_answer(fd, request, reply), "answer requests")
