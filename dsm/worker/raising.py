"""Errors of page faults, raised as exceptions in the thread that faulted.

Owns the way from the shim's queue of errors to Python.  A fault that cannot be served lets its
instruction go on with a poison page; the shim queues the error, writes to a descriptor and holds the
thread for a moment.  A daemon thread here takes the error, makes the exception pending in that
thread (`PyThreadState_SetAsyncExc`) and lets the thread go on.  Python raises it at the thread's
next safe point: after a call, or at a loop's jump; see `Raiser.check` for code that has neither.

A thread that faults inside ``a[0]`` holds the interpreter's lock, so this thread waits for it, which
takes one switch interval, and gets it at that same safe point, before the thread goes on.  Hence the
moment (`pause_ns`) must be longer than a switch interval.  From getting the lock to making the exception
pending, this thread must not give it up even for a moment, or the other one runs on: no blocking call,
and no call through cffi, which releases the lock around each.

The queue outlives a node: after ``node.close()`` old arrays still raise `ClosedError`.  So there is
one `Raiser` in a process.

One operation may touch many pages that cannot be served: each is an error, the first one is raised.
When it is raised, whatever else is queued for that thread is older, and dropped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dsm import _native
from dsm.errors import DSMError, Status, error_for
from dsm.worker.watcher import Watcher

_HAPPENED = {
    Status.CLOSED: "it was destroyed, or this process closed its node; open or create it again",
    Status.NODE_LOST: "the manager of this node is gone, its pages with it; start the program again",
    Status.PAGE_LOST: "its only copy went away with the node that held it; create the region again",
    Status.PAGE_TIMEOUT: "the node that holds it did not answer in time; it is not lost, try again",
    Status.LIMIT: "no memory maps left in this process; raise vm.max_map_count or choose a larger page_size",
}


def _keeping_lock(name: str) -> Callable[[Any], int]:
    """Return a function of the shim that takes an error, called without giving up the interpreter's lock."""
    ffi = _native._ffi
    address = int(ffi.cast("uintptr_t", ffi.addressof(_native.lib, name)))
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(address)
    return lambda error: function(int(ffi.cast("uintptr_t", error)))


_take = _keeping_lock("dsm_error_take")
_done = _keeping_lock("dsm_error_done")


def take_error() -> _native.PageError | None:
    """Return the next error that has no exception yet, like `_native.error_take`."""
    error = _native._ffi.new("struct dsm_error *")
    if not _take(error):
        return None
    return _native.PageError(error.thread, error.address, error.page, error.region, error.status)


def error_done(error: _native.PageError) -> None:
    """Let the thread of `error` go on, like `_native.error_done`; it needs no lock to do so."""
    _done(_native._ffi.new("struct dsm_error *", error._asdict()))


def pause_ns() -> int:
    """Return how long a poisoned thread waits for its error: many switch intervals."""
    return int(10 * sys.getswitchinterval() * 1e9)


def pending_class(error: BaseException, raised: Callable[[], None]) -> type[BaseException]:
    """Return a class whose call gives `error`, after a call of `raised`.

    `PyThreadState_SetAsyncExc` takes a class and calls it when it raises, in the thread; what is raised
    is then `error` itself, of its own class and with its message.
    """
    cls = type(error)

    def new(_cls: type[BaseException], *_args: object) -> BaseException:
        raised()
        return error

    return type(cls.__name__, (cls,), {"__new__": new, "__module__": cls.__module__})


def _set_pending(ident: int, cls: type[BaseException] | None) -> None:
    """Make an exception pending in a thread; None takes the pending one away."""
    value = None if cls is None else ctypes.py_object(cls)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), value)


def thread_ident(native_id: int) -> int | None:
    """Return Python's identity of the thread with this kernel id; None when Python does not know it."""
    for thread in threading.enumerate():
        if thread.native_id == native_id:
            return thread.ident
    for ident in sys._current_frames():  # threads that the threading module did not start
        try:
            clock = time.pthread_getcpuclockid(ident)
        except OSError:
            continue
        if ~(clock >> 3) == native_id:  # clock ids contain the kernel's thread id (MAKE_THREAD_CPUCLOCK)
            return ident
    return None


class Raiser:
    """Takes errors from the shim and raises them where they belong.

    Parameters
    ----------
    label
        Returns how messages call a region, by its number.
    """

    def __init__(self, label: Callable[[int], str]) -> None:
        self._label = label
        #: Held from taking an error until its exception is pending.  Reentrant: an exception may become
        #: raised in a thread that holds it.
        self._mutex = threading.RLock()
        #: What was made pending and has not been raised yet, by kernel id of the thread.
        self._pending: dict[int, type[BaseException]] = {}
        #: Kernel ids of the threads in which an exception was raised last.
        self._told: deque[int] = deque(maxlen=256)
        #: Written by the shim when there is an error to take.  Open as long as the process lives.
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = Watcher({self.error_fd: self._deliver})

    def renew(self) -> None:
        """In a child of fork: its own thread, and its own event under the number that the shim knows."""
        self._mutex = threading.RLock()
        self._pending.clear()
        self._watcher.forget()
        fresh = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.dup2(fresh, self.error_fd, inheritable=False)
        os.close(fresh)
        self._watcher = Watcher({self.error_fd: self._deliver})

    def check(self) -> None:
        """Raise the error of this thread that has not been raised yet, if there is one."""
        error = self._drain()
        if error is not None:
            raise self._exception(error)

    def _drain(self) -> _native.PageError | None:
        """Take every error; return one of the calling thread's."""
        native_id, mine = threading.get_native_id(), None
        with self._mutex:
            while (error := take_error()) is not None:
                if error.thread == native_id:
                    mine = error
                    error_done(error)
                else:
                    self._raise_in_thread(error)
        return mine

    def _raised(self) -> None:
        """In a thread whose exception is being raised: what else is queued for it belongs to it."""
        with self._mutex:
            self._drain()
            self._pending.pop(threading.get_native_id(), None)
            self._told.append(threading.get_native_id())
            _set_pending(threading.get_ident(), None)

    def _deliver(self) -> bool:
        """Raise what is queued; the event is read afterwards, since that gives up the interpreter's lock."""
        while True:
            with self._mutex:
                while (error := take_error()) is not None:
                    self._raise_in_thread(error)
            try:
                os.eventfd_read(self.error_fd)
            except BlockingIOError:
                return True

    def _exception(self, error: _native.PageError) -> DSMError:
        known = Status(error.status) if error.status in set(Status) else Status.INTERNAL
        happened = _HAPPENED.get(known, f"the fault ended with status {error.status}")
        return error_for(
            error.status,
            f"page {error.page} of {self._label(error.region)} (at {error.address:#x}): {happened}",
        )

    def _raise_in_thread(self, error: _native.PageError) -> None:
        ident = thread_ident(error.thread)
        if ident is None:
            if error.thread not in self._told or os.path.exists(f"/proc/self/task/{error.thread}"):
                _die(error.thread, self._exception(error))
            error_done(error)  # it has raised and ended; this one came from the same operation
            return
        first = self._pending.get(error.thread) or pending_class(self._exception(error), self._raised)
        self._pending[error.thread] = first
        _set_pending(ident, first)
        error_done(error)


def _die(native_id: int, exception: DSMError) -> None:
    """End the process with SIGBUS: the thread would compute with poison and nobody could tell it."""
    message = (
        f"dsm: {type(exception).__name__} in thread {native_id}, which Python does not know: {exception}\n"
    )
    os.write(2, message.encode())
    libc = ctypes.CDLL(None)
    libc.signal(
        int(signal.SIGBUS), ctypes.c_void_p(0)
    )  # SIG_DFL; signal.signal works in the main thread only
    os.kill(os.getpid(), signal.SIGBUS)
