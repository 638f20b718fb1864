"""Lines of many processes on one output: never mixed, binary safe, and never waiting for a reader.

Owns the launcher's standard output and error.  A `Sink` is one of them: what cannot be written at
once is kept, and its sources are not read any further until it has gone.  A `Relay` is one stream
of one process: it hands over whole lines, with its prefix on a terminal.

Writing never blocks although the descriptor is in blocking mode (changing the mode would change it
for the shell as well): poll says that there is room, and Linux then takes at least PIPE_BUF bytes.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable

from dsm.launch.loop import Loop

#: Bytes written at once: what a pipe takes without blocking once poll has said that it is writable.
_PIECE_BYTES = 4096
#: Bytes waiting in a sink above which its sources are not read.
_BACKLOG_BYTES = 1 << 20
#: A line longer than this is handed over in pieces.
MAX_LINE_BYTES = 1 << 20
#: Bytes of its last output that a relay remembers.
TAIL_BYTES = 1 << 16
#: Seconds after which an unfinished line (a prompt) is shown on a terminal.
_PROMPT_S = 0.1
_READ_BYTES = 1 << 16
#: Reads after which a pipe has been emptied of what was in it: more than its largest capacity.
_DRAIN_READS = 64


class Cursor:
    """Where the next byte of a terminal goes; standard output and error share it there."""

    #: Who wrote the last line, when that line has no end yet.
    source: object = None


class Sink:
    """One output of the launcher; `on_broken` is called once, with the error, when it takes no more."""

    def __init__(self, loop: Loop, fd: int, cursor: Cursor, on_broken: Callable[[OSError], None]) -> None:
        self.fd = fd
        self.is_terminal = os.isatty(fd)
        self._broken = False
        self._on_broken = on_broken
        self._loop = loop
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._waiting = False
        self._paused: list[Relay] = []
        self._cursor = cursor
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    @property
    def full(self) -> bool:
        """True while sources must wait."""
        return self._queued > _BACKLOG_BYTES

    def write(self, source: object, data: bytes, prefix: bytes = b"") -> None:
        """Write `data` of `source`; an unfinished line of another source is ended first."""
        if not data or self._broken:
            return
        going_on = self._cursor.source is source
        if prefix:
            body, last = (data[:-1], b"\n") if data.endswith(b"\n") else (data, b"")
            data = (b"" if going_on else prefix) + body.replace(b"\n", b"\n" + prefix) + last
        if self._cursor.source is not None and not going_on:
            data = b"\n" + data
        self._cursor.source = None if data.endswith(b"\n") else source
        self._queue.append(memoryview(data))
        self._queued += len(data)
        self.flush()

    def flush(self) -> None:
        """Write what can be written without waiting."""
        while self._queue:
            if not self._poll.poll(0):
                self._wait(True)
                return
            piece = self._queue[0][:_PIECE_BYTES]
            try:
                written = os.write(self.fd, piece)
            except BlockingIOError:
                self._wait(True)
                return
            except OSError as error:
                self._broken = True
                self._queue.clear()
                self._queued = 0
                self._on_broken(error)
                break
            self._queued -= written
            if written == len(self._queue[0]):
                self._queue.popleft()
            else:
                self._queue[0] = self._queue[0][written:]
        self._wait(False)
        if not self.full:
            paused, self._paused = self._paused, []
            for relay in paused:
                relay.resume()

    def _wait(self, on: bool) -> None:
        if on != self._waiting:
            self._waiting = on
            if on:
                self._loop.add(self.fd, self.flush, write=True)
            else:
                self._loop.remove(self.fd)

    @property
    def empty(self) -> bool:
        """True when all has been written (or nobody is there to read it)."""
        return not self._queue

    def pause(self, relay: Relay) -> None:
        """Remember `relay`: it goes on when there is room."""
        self._paused.append(relay)


class Relay:
    """One stream of one process, on its way to a sink."""

    def __init__(self, loop: Loop, fd: int, sink: Sink, prefix: bytes) -> None:
        self._loop = loop
        self._fd = fd
        self._sink = sink
        self._prefix = prefix
        self._line = bytearray()
        self._prompt_pending = False
        self._muted = False
        #: The last bytes that came.
        self.tail = bytearray()
        os.set_blocking(fd, False)
        loop.add(fd, self.pump)

    @property
    def ended(self) -> bool:
        """True once the stream is at its end."""
        return self._fd < 0

    def pump(self) -> None:
        """Hand over what has come."""
        if self._sink.full:
            self._loop.remove(self._fd)
            self._sink.pause(self)
            return
        self._read()

    def drain(self) -> None:
        """Hand over what its ended process had written, however slow the reader is."""
        for _ in range(_DRAIN_READS):  # a child of it may go on writing for ever
            if self.ended or not self._read():
                break

    def _read(self) -> bool:
        """Read once; False when nothing was there."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        self.tail += data
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]
        self._line += data
        end = self._line.rfind(b"\n", max(0, len(self._line) - len(data))) + 1
        if not end and len(self._line) > MAX_LINE_BYTES:
            end = len(self._line)
        if end:
            self._hand_over(end)
        if self._line and self._sink.is_terminal and not self._prompt_pending:
            self._prompt_pending = True
            self._loop.call_after(_PROMPT_S, self._show_prompt)
        return True

    def _hand_over(self, end: int) -> None:
        lines = bytes(self._line[:end])
        del self._line[:end]
        if not self._muted:
            self._sink.write(self, lines, self._prefix)

    def _show_prompt(self) -> None:
        self._prompt_pending = False
        if self._line:
            self._hand_over(len(self._line))

    def mute(self) -> None:
        """Read on, so that its process does not block, but show nothing any more."""
        self._muted = True

    def resume(self) -> None:
        """There is room again."""
        if not self.ended:
            self._loop.add(self._fd, self.pump)

    def close(self) -> None:
        """Hand over an unfinished line, and close."""
        if self.ended:
            return
        self._hand_over(len(self._line))
        self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
