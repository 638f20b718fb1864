"""The manager's event loop: one thread, one epoll, and the workers' board.

Owns waiting and dispatch.  `Board.wait` polls the board's slots and the descriptors together, yielding
the processor, for a short time after the last event, and sleeps afterwards (`ARCHITECTURE.md`, the
fault path).  Callbacks must not block; what they queue on links is flushed after each round.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from dsm._native import Board
from dsm.limits import FAIR_SHARE, SPIN_NS
from dsm.reserve import PAUSE_S, Reserve

IN = select.EPOLLIN
OUT = select.EPOLLOUT
#: How long a message that nobody waits for may stay, for another one to go with it.
_LAZY_NS = 10_000
#: The longest sleep, so that a lost wake-up could only delay and never hang.
_SLEEP_MAX_NS = 1_000_000_000


class Flushable(Protocol):
    """Something that gathers output."""

    def flush(self) -> None:
        """Hand it to the kernel."""


class Loop:
    """Callbacks by descriptor, timers, and one callback for what workers post.

    Parameters
    ----------
    board
        The node's board.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._running = False
        #: Takes the event words of `Board.wait`.
        self.on_posted: Callable[[list[int]], None] = lambda events: None
        #: Called at the end of each round; returns the next time it wants to be called, or None.
        self.on_round: Callable[[int], int | None] = lambda now: None
        #: What is to be flushed at the end of this round, and what may wait a little.
        self.dirty: list[Flushable] = []
        self.lazy: list[Flushable] = []
        self._lazy_due = 0
        #: For each listener.
        self._reserves: dict[int, Reserve] = {}

    def watch(self, fd: int, callback: Callable[[int], None], events: int = IN) -> None:
        """Call `callback(events)` when `fd` is ready."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch `fd` for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; must come before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def pause(self, fd: int, callback: Callable[[int], None], seconds: float) -> None:
        """Watch `fd` again only after a while: it is ready, but nothing can be done about it now."""
        self.forget(fd)
        self.after(seconds, lambda: self.watch(fd, callback))

    def accept(self, listener: socket.socket, again: Callable[[int], None]) -> Iterator[socket.socket]:
        """Yield the connections that wait, non-blocking; at most `FAIR_SHARE`, the rest in the next round.

        Each listener has a `Reserve`.

        Raises
        ------
        OSError
            The system gives no descriptor now; `again` is called in a second.
        """
        door = listener.fileno()
        if door not in self._reserves:
            self._reserves[door] = Reserve()
        reserve = self._reserves[door]
        reserve.hold()
        for _ in range(FAIR_SHARE):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                if reserve.spend():
                    continue
                self.pause(door, again, PAUSE_S)
                raise
            sock.setblocking(False)
            yield sock

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` once, `seconds` from now."""
        self._timer_count += 1
        due = time.monotonic_ns() + int(seconds * 1e9)
        heapq.heappush(self._timers, (due, self._timer_count, callback))

    def stop(self) -> None:
        """End `run` after this round."""
        self._running = False

    def run(self) -> None:
        """Wait and dispatch until `stop`."""
        self._running = True
        wait, callbacks, timers = self.board.wait, self._callbacks, self._timers
        epoll = self._epoll.fileno()
        monotonic_ns = time.monotonic_ns
        deadline: int | None = None
        spin = 0
        while self._running:
            timeout = _SLEEP_MAX_NS
            if deadline is not None or timers:
                now = monotonic_ns()
                if timers:
                    timeout = min(timeout, max(0, timers[0][0] - now))
                if deadline is not None:
                    timeout = min(timeout, max(0, deadline - now))
            posted, ready = wait(epoll, min(spin, timeout), timeout)
            spin = SPIN_NS if posted or ready else 0
            if posted:
                self.on_posted(posted)
            for fd, events in ready:
                callback = callbacks.get(fd)
                if callback is not None:
                    callback(events)
            now = monotonic_ns()
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()
            deadline = self.on_round(now)
            if self.dirty:
                for each in self.dirty:
                    each.flush()
                self.dirty.clear()
            if self.lazy:
                deadline = self._flush_lazy(now, deadline)

    def collect(self) -> None:
        """Handle what workers have posted by now."""
        while posted := self.board.wait(self._epoll.fileno(), 0, 0)[0]:
            self.on_posted(posted)

    def _flush_lazy(self, now: int, deadline: int | None) -> int | None:
        """Flush what has waited long enough; return when to look again."""
        if not self._lazy_due:
            self._lazy_due = now + _LAZY_NS
        elif now >= self._lazy_due:
            self._lazy_due = 0
            for each in self.lazy:
                each.flush()
            self.lazy.clear()
            return deadline
        return self._lazy_due if deadline is None else min(deadline, self._lazy_due)

    def close(self) -> None:
        """Release the descriptors."""
        self._epoll.close()
        for reserve in self._reserves.values():
            reserve.spend()
        self._reserves.clear()
