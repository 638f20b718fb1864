"""Errors of page faults, raised as exceptions in the thread that faulted.

Owns the way from the shim's queue of errors to Python.  A fault that cannot be served lets its
instruction go on with a poison page, and the shim queues the error.  The class `_PageFault` is made
pending in that thread (`PyThreadState_SetAsyncExc`), so that Python raises it at the thread's next safe
point: after a call, or at a loop's jump; see `Raiser.check` for code that has neither.  Who makes it
pending depends on who holds the interpreter's lock:

* The faulting thread itself (``a[0]``): then nobody else can, and the shim's handler does it there.
* Nobody, or another thread (numpy's loops give the lock up): the shim writes to a descriptor and holds
  the thread, which a daemon thread here lets go when its exception is pending.

When Python raises the class it calls it, in that thread, and gets the exception with its message: the
thread's error is taken from the queue then.  One operation may touch many pages that cannot be served;
it is one error, that of the first page.

A thread that Python does not know (BLAS has some) cannot be told.  When there is only one Python thread,
which then waits for it, that one is.  Otherwise the process ends with SIGBUS and a line that says why:
a result made of poison must not be used.  Only `ClosedError` is raised in every thread instead.

The queue outlives a node: after ``node.close()`` old arrays still raise `ClosedError`.  So there is
one `Raiser` in a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from dsm import _native
from dsm.errors import DSMError, InternalError, PeerError, Status, error_for
from dsm.worker.watcher import Watcher

_HAPPENED = {
    Status.CLOSED: "it was destroyed, or this process closed its node; open or create it again",
    Status.LEASE_EXPIRED: "it ran out, or was released; its memory is gone: lease anew, and renew in time",
    Status.NODE_LOST: "the manager of this node is gone, its pages with it; start the program again",
    Status.PAGE_LOST: "it went away with {peer}, which is gone; other pages can still be used",
    Status.PAGE_TIMEOUT: "asked of {peer}, it did not come in time: who has it is stopped, cut off, or pins "
    "it (see `dsm status`); it is not lost: try again, or raise DSM_PAGE_TIMEOUT",
    Status.LIMIT: "no memory maps left in this process; raise vm.max_map_count or choose a larger page_size",
}

#: How long a thread without the interpreter's lock waits for its exception.  The daemon thread needs that
#: lock, which a third thread may keep during a long call into C.
PAUSE_NS = 1_000_000_000

#: How often a process looks for errors that nobody can announce.
_POLL_S = 0.005

_api = ctypes.pythonapi


def _make_pending(ident: int, cls: type[BaseException]) -> None:
    """Make a class of exceptions pending in a thread, in place of what is."""
    _api.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(cls))


class _NothingError(BaseException):
    """What takes the place of a pending exception that is not wanted."""


def _take_pending_away() -> None:
    """See to it that nothing is pending in the calling thread.

    Another exception takes its place and is raised here.  Where None takes it, CPython 3.11 looks for what is
    pending at every step from then on, and no function that is traced gets beyond its first.  A handler of a
    signal, written in Python, that begins in that instant ends with it; an interrupt is raised all the same.
    """
    interrupted: BaseException | None = None
    try:
        while True:
            try:
                _make_pending(threading.get_ident(), _NothingError)
                for _ in range(100):  # CPython looks when a call ends, and where a loop jumps back
                    pass
            except _NothingError:
                raise
            except BaseException as error:  # of a signal handler, which comes first
                interrupted = error
    except _NothingError:
        if interrupted is not None:
            raise interrupted from None


def python_threads() -> dict[int, int]:
    """Return the threads that Python knows: kernel id → Python's identity."""
    found = {
        thread.native_id: thread.ident
        for thread in threading.enumerate()
        if thread.native_id is not None
        and thread.ident is not None
        # In a child of fork, CPython 3.11 still says its parent's id of the main thread.
        and thread is not threading.main_thread()
    }
    for ident in sys._current_frames().keys() - set(found.values()):  # and those not started by threading
        try:
            clock = time.pthread_getcpuclockid(ident)
        except OSError:
            continue
        found[~(clock >> 3)] = ident  # clock ids contain the kernel's thread id (MAKE_THREAD_CPUCLOCK)
    return found


class _PageFault(DSMError):
    """What is made pending; calling it gives the exception of the calling thread's error instead."""

    raiser: ClassVar[Raiser]

    def __new__(cls, *raised: object) -> Any:
        # CPython 3.11 keeps the class beside the exception, and may call it once more with that.
        return raised[0] if raised and isinstance(raised[0], DSMError) else cls.raiser.collect()


_PageFault.__module__, _PageFault.__qualname__ = DSMError.__module__, DSMError.__qualname__


class Raiser:
    """Takes errors from the shim and raises them where they belong.

    Parameters
    ----------
    label, name_of, is_lease
        Return how messages call a region, its name, and whether it is a lease, by its number.
    """

    def __init__(
        self,
        label: Callable[[int], str],
        name_of: Callable[[int], str | None],
        is_lease: Callable[[int], bool] = lambda number: False,
    ) -> None:
        self._label = label
        self._is_lease = is_lease
        self._name_of = name_of
        #: Held from taking an error until it is handed over.  Reentrant: an exception may become raised in
        #: a thread that holds it.
        self._mutex = threading.RLock()
        #: Errors taken for threads that have not raised them yet, by kernel id.  They are open in the shim:
        #: their threads meet no further error.
        self._taken: dict[int, list[_native.PageError]] = {}
        #: Written by the shim when a thread waits to be told.  Open as long as the process lives.
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _PageFault.raiser = self
        _native.lib.dsm_error_hook(
            _pointer(_api.PyGILState_Check), _pointer(_api.PyThreadState_SetAsyncExc), _object(_PageFault)
        )
        self._watcher = Watcher({self.error_fd: self._deliver})

    def renew(self) -> None:
        """In a child of fork: its own thread, and its own event under the number that is known."""
        self._mutex = threading.RLock()
        self._taken.clear()
        self._watcher.forget()
        fresh = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.dup2(fresh, self.error_fd, inheritable=False)
        os.close(fresh)
        self._watcher = Watcher({self.error_fd: self._deliver})

    def poll(self) -> None:
        """In a child of fork that could not attach: the shim has no descriptor there to write to."""

        def look() -> None:
            while True:
                time.sleep(_POLL_S)
                with self._mutex:
                    self._take_all(threading.get_native_id())

        threading.Thread(target=look, name="dsm-poll", daemon=True).start()

    def check(self) -> None:
        """Raise the error of this thread that has not been raised yet, if there is one."""
        error = self._take_mine()
        if error is not None:
            raise self._exception(error)

    def collect(self) -> DSMError:
        """Return the exception that is being raised in the calling thread."""
        error = self._take_mine()
        if error is None:
            return InternalError("a page could not be served; another exception was raised for it already")
        return self._exception(error)

    def _take_mine(self) -> _native.PageError | None:
        """Take the calling thread's error, so that nothing is pending or queued for it any more."""
        native_id = threading.get_native_id()
        with self._mutex:
            if native_id in self._taken:  # another thread has told this one, or has told it once more
                _take_pending_away()
            self._take_all(native_id)
            mine = self._taken.pop(native_id, [])
            for error in mine:
                _native.error_done(error)
        return mine[0] if mine else None

    def _deliver(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.error_fd)
        with self._mutex:
            self._take_all(threading.get_native_id())
        return True

    def _take_all(self, taker: int) -> None:
        """Take every error; those of other threads than `taker` become pending."""
        while (error := _native.error_take()) is not None:
            for native_id, ident in self._whom_to_tell(error):
                self._taken.setdefault(native_id, []).append(error)
                if native_id != taker:
                    _make_pending(ident, _PageFault)
            _native.error_told(error)
        for ended in self._taken.keys() - python_threads().keys():
            for error in self._taken.pop(ended):
                _native.error_done(error)

    def _whom_to_tell(self, error: _native.PageError) -> list[tuple[int, int]]:
        threads = python_threads()
        if error.thread in threads:
            return [(error.thread, threads[error.thread])]
        own = {thread.ident for thread in threading.enumerate() if thread.name.startswith("dsm-")}
        waiting = [(native_id, ident) for native_id, ident in threads.items() if ident not in own]
        if len(waiting) != 1 and error.status != Status.CLOSED:
            _die(error.thread, self._exception(error))
        return waiting

    def _exception(self, error: _native.PageError) -> DSMError:
        status = error.status
        if status == Status.CLOSED and self._is_lease(error.region):
            status = Status.LEASE_EXPIRED
        known = Status(status) if status in set(Status) else Status.INTERNAL
        happened = _HAPPENED.get(known, f"the fault ended with status {status}")
        peer = error.peer - 1 if error.peer else None
        region = self._label(error.region)
        happened = happened.format(peer="the node that held it" if peer is None else f"node {peer}")
        exception = error_for(status, f"page {error.page} of {region} (at {error.address:#x}): {happened}")
        if isinstance(exception, PeerError):
            exception.region, exception.page, exception.peer = (
                self._name_of(error.region),
                error.page,
                peer,
            )
        return exception


def _pointer(function: Any) -> Any:
    return _native._ffi.cast("void *", ctypes.cast(function, ctypes.c_void_p).value)


def _object(value: object) -> Any:
    return _native._ffi.cast("void *", id(value))


def _die(native_id: int, exception: DSMError) -> None:
    """End the process with SIGBUS: the thread would compute with poison and nobody could tell it."""
    message = f"dsm: {type(exception).__name__} in thread {native_id}, unknown to Python: {exception}\n"
    os.write(2, message.encode())
    ctypes.CDLL(None).signal(int(signal.SIGBUS), None)  # to SIG_DFL; signal.signal is for the main thread
    os.kill(os.getpid(), signal.SIGBUS)
