"""Cutting a byte stream into messages, without touching a socket.

Owns the receive buffer of one connection between nodes and where the next bytes belong.  Knows headers
(`dsm.wire.header`) and nothing of what messages mean, of sockets or of frames.

The driver repeats three steps::

    count = socket.recv_into(reader.space())      # 0: the peer closed; reader.idle says if at a boundary
    reader.fill(count)
    while event := reader.next():
        if event == MESSAGE:    handle(reader.fields, reader.payload)
        elif event == SINK:     reader.sink(frames_for(reader.fields))
        else:                   installed(reader.fields)             # RECEIVED

`MESSAGE` is a whole message: its payload, if it has one, is a memoryview that is good until the reader
is called again.  `SINK` is the header of a page message (the only coherence message with a payload) that
has not arrived as a whole: the driver names the memory where its payload belongs, the reader copies there
what it already holds, and from then on `space` *is* that memory, so that the kernel writes the rest
straight into the frames.  `RECEIVED` follows once the payload is complete.  While it is under way the
driver may call `sink` again, to send the bytes that are still to come somewhere else (frames that were
voided, a region destroyed).

The buffer is linear.  It starts again at its beginning whenever it is empty, which is after almost every
`recv`; otherwise the fragment at its end (a piece of a header, or of a payload of at most
`INLINE_BYTES`) moves to the front when the room behind it gets short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dsm.errors import InternalError, WireError
from dsm.wire.header import HEADER_BYTES, Family, Fields, check, unpack

#: Bytes of the receive buffer of a connection.
BUFFER_BYTES = 256 * 1024
#: Payloads up to this size wait in the buffer; longer ones that are not pages get memory of their own.
INLINE_BYTES = 64 * 1024
#: Room offered right after a payload that bypassed the buffer.  More would only be copied once more,
#: because bulk transfers come one after the other: this takes the next header and little else.
AFTER_BULK_BYTES = 4 * 1024

#: Events of `FrameReader.next`; 0 means that more bytes are needed.
NEED_MORE: Final = 0
MESSAGE: Final = 1
SINK: Final = 2
RECEIVED: Final = 3

# The order matters: up to _IN_PAYLOAD bytes go to the buffer, up to _OWN they go past it, then nowhere.
_AT_HEADER: Final = 0
_IN_PAYLOAD: Final = 1  # waits until the buffer holds the whole payload
_SINKING: Final = 2  # payload goes to the driver's memory, or is thrown away
_OWN: Final = 3  # payload goes to memory of the reader's own
_OFFERED: Final = 4  # SINK was returned, sink() has not been called
_FAILED: Final = 5

_COHERENCE: Final = int(Family.COHERENCE)
_EMPTY: Final = memoryview(b"")

assert INLINE_BYTES + HEADER_BYTES <= BUFFER_BYTES // 2


class FrameReader:
    """Incremental parser of one connection; see the module's docstring for how it is driven.

    Parameters
    ----------
    buffer_bytes : int, default `BUFFER_BYTES`
        Size of the receive buffer.
    inline_bytes : int, default `INLINE_BYTES`
        Longest payload that waits in it; must leave room for a header.

    Attributes
    ----------
    fields : Fields
        Header of the event that `next` returned.
    payload : memoryview
        Payload of a `MESSAGE`; good until the next call of any method.
    """

    __slots__ = (
        "_after_bulk",
        "_buffer",
        "_capacity",
        "_end",
        "_error",
        "_inline",
        "_length",
        "_own",
        "_placed",
        "_start",
        "_state",
        "_targets",
        "_view",
        "fields",
        "payload",
    )

    def __init__(self, buffer_bytes: int = BUFFER_BYTES, inline_bytes: int = INLINE_BYTES) -> None:
        if inline_bytes + HEADER_BYTES > buffer_bytes:
            raise InternalError(f"a buffer of {buffer_bytes} bytes cannot hold payloads of {inline_bytes}")
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._capacity = buffer_bytes
        self._inline = inline_bytes
        #: Unread bytes are buffer[start:end]; both are 0 when there are none.
        self._start = 0
        self._end = 0
        self._state = _AT_HEADER
        #: Payload bytes of `fields`, and how many of them have been placed outside the buffer.
        self._length = 0
        self._placed = 0
        #: Where the rest of a payload goes, in order; empty: it is thrown away.  Never an empty view.
        self._targets: list[memoryview] = []
        self._own = _EMPTY
        self._after_bulk = False
        self._error: WireError | None = None
        self.fields: Fields = (0,) * 13
        self.payload = _EMPTY

    @property
    def idle(self) -> bool:
        """Whether the stream may end here: no message is incomplete."""
        return self._state == _AT_HEADER and self._start == self._end

    @property
    def missing(self) -> int:
        """Payload bytes of `fields` that have not been placed (`SINK` until `RECEIVED`)."""
        return self._length - self._placed if _SINKING <= self._state <= _OFFERED else 0

    def space(self) -> memoryview:
        """Return the memory that the next bytes of the stream belong in; never empty.

        Call it after `next` returned 0, and `fill` after every use.
        """
        state = self._state
        if state <= _IN_PAYLOAD:
            start = self._start
            end = self._end
            if start == end:
                self._start = self._end = end = 0
            elif start and self._capacity - start < self._inline + HEADER_BYTES:
                # What a fragment may still grow to would not fit behind it.
                self._view[: end - start] = self._view[start:end]
                self._start, self._end = 0, end - start
                end = self._end
            if self._after_bulk:
                self._after_bulk = False
                return self._view[end : end + AFTER_BULK_BYTES]
            if end == self._capacity:
                raise InternalError("space() was called before next() returned 0")
            return self._view[end:]
        if state <= _OWN:
            if self._targets:
                return self._targets[0]
            # Thrown away.  Nothing is buffered here: what was has been counted as placed.
            return self._view[: min(self._length - self._placed, self._capacity)]
        if self._error is not None:
            raise self._error
        raise InternalError("space() was called between SINK and sink()")

    def fill(self, count: int) -> None:
        """Say that `count` bytes have been written to the start of `space()`."""
        state = self._state
        if state <= _IN_PAYLOAD:
            self._end += count
            if self._end > self._capacity:
                raise InternalError(f"fill({count}) goes beyond the space that was offered")
        elif state <= _OWN:
            self._placed += count
            if self._placed > self._length:
                raise InternalError(f"fill({count}) goes beyond the space that was offered")
            targets = self._targets
            if targets:
                rest = targets[0][count:]
                if rest:
                    targets[0] = rest
                else:
                    del targets[0]
        elif count:
            raise self._error or InternalError("fill() was called between SINK and sink()")

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes that were received elsewhere (what was left over after a handshake).

        Raises
        ------
        WireError
            They do not fit into the buffer.
        """
        if self._state > _IN_PAYLOAD or len(data) > self._capacity - self._end:
            raise WireError(f"{len(data)} bytes arrived before they could be read")
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def next(self) -> int:
        """Return the next event, or 0 when more bytes are needed.

        Raises
        ------
        WireError
            The bytes are not messages of this protocol.  The stream cannot be read any further: the same
            error is raised again by every later call.
        """
        state = self._state
        if state == _AT_HEADER:
            start = self._start
            if self._end - start < HEADER_BYTES:
                return NEED_MORE
            self.fields = fields = unpack(self._buffer, start)
            try:
                check(fields)
            except WireError as error:
                self._state = _FAILED
                self._error = error
                raise
            self._start = start + HEADER_BYTES
            length = fields[7]
            if not length:
                self.payload = _EMPTY
                return MESSAGE
            self._length = length
            self._placed = 0
            if fields[2] == _COHERENCE:
                start += HEADER_BYTES
                if self._end - start >= length:
                    self.payload = self._view[start : start + length]
                    self._start = start + length
                    return MESSAGE
                self._state = _OFFERED
                return SINK
            if length > self._inline:
                self._own = memoryview(bytearray(length))
                self._place([self._own])
                self._state = state = _OWN
            else:
                self._state = state = _IN_PAYLOAD
        if state == _IN_PAYLOAD:
            start = self._start
            stop = start + self._length
            if self._end < stop:
                return NEED_MORE
            self.payload = self._view[start:stop]
            self._start = stop
            self._state = _AT_HEADER
            return MESSAGE
        if state <= _OWN:
            if self._placed < self._length:
                return NEED_MORE
            self._state = _AT_HEADER
            if state == _SINKING:
                return RECEIVED
            self.payload, self._own = self._own, _EMPTY
            return MESSAGE
        if self._error is not None:
            raise self._error
        raise InternalError("next() was called between SINK and sink()")

    def sink(self, target: memoryview | Sequence[memoryview] | None) -> None:
        """Name the memory for the payload of the message that `SINK` announced.

        May be called again before `RECEIVED`: bytes that have been placed stay where they are, the rest
        goes to the new place.

        Parameters
        ----------
        target : memoryview, sequence of memoryview, or None
            Writable, contiguous bytes; together exactly the payload's length, from its first byte on.
            None throws the (rest of the) payload away.
        """
        if self._state == _OFFERED:
            self._state = _SINKING
            start = self._start
            length = self._length
            if isinstance(target, memoryview) and len(target) == length <= self._end - start:
                # One page, all of it here: what a single fault brings.
                target[:] = self._view[start : start + length]
                self._start = start + length
                self._placed = length
                return
        elif self._state != _SINKING:
            raise InternalError("sink() was called although no payload is under way")
        if target is None:
            self._place([])
            return
        targets = [target] if isinstance(target, memoryview) else list(target)
        given = sum(map(len, targets))
        if given != self._length:
            raise InternalError(f"sink() was given {given} bytes for a payload of {self._length}")
        skip = self._placed
        while targets and skip >= len(targets[0]):
            skip -= len(targets[0])
            del targets[0]
        if skip:
            targets[0] = targets[0][skip:]
        self._place(targets)

    def _place(self, targets: list[memoryview]) -> None:
        """Let the rest of the payload go to `targets`, beginning with what the buffer holds."""
        start = self._start
        held = min(self._end - start, self._length - self._placed)
        self._placed += held
        # A remainder comes past the buffer, and with it, most likely, a whole series of such messages.
        self._after_bulk = self._placed < self._length
        stop = start + held
        self._start = stop
        if not targets:
            self._targets = []
            return
        view = self._view
        while start < stop:
            target = targets[0]
            size = len(target)
            if size > stop - start:
                target[: stop - start] = view[start:stop]
                targets[0] = target[stop - start :]
                break
            target[:] = view[start : start + size]
            start += size
            del targets[0]
        self._targets = [target for target in targets if len(target)]
