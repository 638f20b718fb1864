"""One epoll set with timers and signals: everything that a launcher waits for.

Owns the order in which events are handled.  epoll reports descriptors in the order in which they
became ready, and `run_until` keeps it: that is how the first of several dead workers is known.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType


class Loop:
    """Callbacks by descriptor and by time, in the order of events."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def add(self, fd: int, callback: Callable[[], None], *, write: bool = False) -> None:
        """Call `callback` whenever `fd` is readable (writable with `write`)."""
        self._epoll.register(fd, select.EPOLLOUT if write else select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Forget `fd`; before it is closed.  Nothing happens when it is not known."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` once, `seconds` from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), callback))

    def run_until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Handle events until `condition()` holds; False when the time was over before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not condition():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
                if condition():
                    return True
            wakeups = [] if deadline is None else [deadline]
            if self._timers:
                wakeups.append(self._timers[0][0])
            self._poll(max(0.0, min(wakeups) - now) if wakeups else None)
        return True

    def _poll(self, timeout_s: float | None) -> None:
        # All that are ready must fit, or their order would be lost.
        for fd, _ in self._epoll.poll(timeout_s, len(self._callbacks) + 1):
            callback = self._callbacks.get(fd)  # an earlier callback may have removed it
            if callback is not None:
                callback()

    def close(self) -> None:
        """Release the epoll descriptor."""
        self._callbacks.clear()
        self._epoll.close()


class Signals:
    """Turns signals into calls of `handle` from a `Loop`, never in between two statements.

    A signal that was ignored when we were started stays ignored (nohup, background jobs of a script).
    """

    def __init__(self, loop: Loop, numbers: Iterable[int], handle: Callable[[int], None]) -> None:
        self._loop = loop
        self._numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        self._handle = handle
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous: dict[int, object] = {}
        self._previous_wakeup = -1

    def __enter__(self) -> Signals:
        """Install the handlers."""
        self._previous_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            self._previous[number] = signal.signal(number, _recorded)
        self._loop.add(self._read, self._arrived)
        return self

    def _arrived(self) -> None:
        for number in os.read(self._read, 4096):
            if number in self._previous:
                self._handle(number)

    def stop_self(self) -> None:
        """Stop this process as SIGTSTP does by default; returns when it is continued."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _recorded)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back the handlers that were there."""
        self._loop.remove(self._read)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._read)
        os.close(self._write)


def _recorded(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter has written the number to the wake-up descriptor."""
