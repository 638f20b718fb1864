"""Errors of page faults, raised as exceptions in the thread that faulted.

Owns the way from the shim's queue of errors to Python.  A fault that cannot be served lets its
instruction go on with a poison page; the shim queues the error, writes to a descriptor and holds the
thread for a moment.  A daemon thread here takes the error, makes the exception pending in that
thread (`PyThreadState_SetAsyncExc`) and lets the thread go on.  Python raises it at the thread's
next safe point: after a call, or at a loop's jump; see `Raiser.check` for code that has neither.

A thread that faults inside ``a[0]`` holds the interpreter's lock, so this thread waits for it, which
takes one switch interval, and gets it at that same safe point, before the thread goes on.  Hence the
moment (`pause_ns`) must be longer than a switch interval.

The queue outlives a node: after ``node.close()`` old arrays still raise `ClosedError`.  So there is
one `Raiser` in a process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

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


def pause_ns() -> int:
    """Return how long a poisoned thread waits for its error: well over two switch intervals."""
    return int((3 * sys.getswitchinterval() + 0.005) * 1e9)


def pending_class(error: BaseException) -> type[BaseException]:
    """Return a class whose call gives `error`.

    `PyThreadState_SetAsyncExc` takes a class and calls it when it raises; what is raised is then
    `error` itself, of its own class and with its message.
    """
    cls = type(error)
    return type(cls.__name__, (cls,), {"__new__": lambda _cls, *_args: error, "__module__": cls.__module__})


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
        #: Held from taking an error until its exception is pending.
        self._mutex = threading.Lock()
        #: Written by the shim when there is an error to take.  Open as long as the process lives.
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = Watcher({self.error_fd: self._deliver})

    def renew(self) -> None:
        """In a child of fork: its own thread, and its own event under the number that the shim knows."""
        self._mutex = threading.Lock()
        self._watcher.forget()
        fresh = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.dup2(fresh, self.error_fd, inheritable=False)
        os.close(fresh)
        self._watcher = Watcher({self.error_fd: self._deliver})

    def check(self) -> None:
        """Raise the error of this thread that has not been raised yet, if there is one."""
        native_id, mine = threading.get_native_id(), None
        with self._mutex:
            while (error := _native.error_take()) is not None:
                if error.thread == native_id:
                    mine = mine or self._exception(error)
                    _native.error_done(error)
                else:
                    self._raise_in_thread(error)
        if mine is not None:
            raise mine

    def _deliver(self) -> bool:
        try:
            os.eventfd_read(self.error_fd)
        except BlockingIOError:
            return True
        with self._mutex:
            while (error := _native.error_take()) is not None:
                self._raise_in_thread(error)
        return True

    def _exception(self, error: _native.PageError) -> DSMError:
        known = Status(error.status) if error.status in set(Status) else Status.INTERNAL
        happened = _HAPPENED.get(known, f"the fault ended with status {error.status}")
        return error_for(
            error.status,
            f"page {error.page} of {self._label(error.region)} (at {error.address:#x}): {happened}",
        )

    def _raise_in_thread(self, error: _native.PageError) -> None:
        exception = self._exception(error)
        ident = thread_ident(error.thread)
        if ident is None:
            _die(error.thread, exception)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(ident), ctypes.py_object(pending_class(exception))
        )
        _native.error_done(error)


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
