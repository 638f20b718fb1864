"""The bytes that a SET sends, of any memory: also of arrays of a node, whose pages may be elsewhere.

A load in this process brings such a page or raises what is the matter with it; the kernel does neither: it
refuses to read it (EFAULT).
"""

from __future__ import annotations

import errno
import socket

from dsm.client.calls import Buffer

#: Bytes that are copied at once.  `memcpy` goes from the first to the last up to there; of more it reads
#: several pages in turn, which no read-ahead of faults follows.
_PIECE_BYTES = 256 * 1024


def fixed(data: Buffer) -> bytes | memoryview:
    """Return the bytes as they are now; a copy, unless they cannot change."""
    if isinstance(data, bytes) or (isinstance(data, memoryview) and isinstance(data.obj, bytes)):
        return data
    if len(data) <= _PIECE_BYTES:
        return bytes(data)
    view = memoryview(data)
    return b"".join([view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES)])


def send_all(sock: socket.socket, data: Buffer) -> None:
    """Send the bytes, without a copy of those that are here.

    Raises
    ------
    OSError
        The connection broke.
    DSMError
        A page cannot be had; some bytes have been sent.
    """
    rest = memoryview(data)
    while rest:
        try:
            sent = sock.send(rest)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            sent = sock.send(bytes(rest[:_PIECE_BYTES]))
        rest = rest[sent:]
