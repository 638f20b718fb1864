"""One daemon thread that waits on descriptors and calls what belongs to them.

Owns the thread and its end.  It does not know what it watches: answers of the manager and errors of
the pager today.  It blocks every signal that could be left to the main thread, so that Ctrl-C wakes
the thread that Python will raise it in.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import traceback
from collections.abc import Callable

from dsm.worker import awaited

#: Signals that stand for a fault of the thread itself: they must not be blocked.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT}


def leave_signals() -> None:
    """In a thread of ours: leave every signal to the others that is not a fault of its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)


class Watcher:
    """Calls `handler()` whenever its descriptor is readable, until it returns False.

    Parameters
    ----------
    handlers
        By descriptor.  The descriptors stay the caller's and must stay open until `stop` returned.
    """

    def __init__(self, handlers: dict[int, Callable[[], bool]]) -> None:
        self._handlers = handlers
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="dsm-watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        leave_signals()
        awaited.note()
        poll = select.poll()
        for descriptor in (self._stop_fd, *self._handlers):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._stop_fd:
                    return
                try:
                    wanted = self._handlers[descriptor]()
                except Exception:
                    traceback.print_exc()
                    continue
                if not wanted:
                    poll.unregister(descriptor)

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        os.eventfd_write(self._stop_fd, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        os.close(self._stop_fd)

    def forget(self) -> None:
        """In a child of fork, where the thread does not exist: close what was inherited."""
        os.close(self._stop_fd)
