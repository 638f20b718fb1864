"""The cache of one worker as its manager sees it: a memory file that both map.

Owns the file, which batches were sent that the worker has not noted yet, and what it has been told of.
What the worker writes there is believed only within its bounds: it may have written anything over it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Collection

from dsm.errors import UsageError
from dsm.log import logger
from dsm.memory.cache import CACHE_BYTES, FILLED, WORDS, WorkerCache, contents, counters
from dsm.memory.classes import CLASSES
from dsm.memory.rings import RING_WORDS, Ring

#: Bytes of the file: the cache, and behind it the ring of blocks on their way home.
FILE_BYTES = CACHE_BYTES + 8 * RING_WORDS


class Cache:
    """The memory file of one worker's cache, and what was sent to and fro."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("dsm-cache", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, FILE_BYTES)
            self._map = mmap.mmap(self.fd, FILE_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        self.words = memoryview(self._map).cast("Q")
        WorkerCache(self.words[:WORDS])
        self.ring = Ring(self.words[WORDS:])
        #: Batches that it was sent and has not noted yet, by number, and how many there were; and the
        #: number of the last that came from it.
        self.sent: dict[int, tuple[int, ...]] = {}
        self.batches = 0
        self.received = 0
        #: Extents that it knows.
        self.told: set[int] = set()

    def send(self, addresses: tuple[int, ...]) -> int:
        """Note that a batch is sent to it, and return its number."""
        filled = self.words[FILLED]
        self.sent = {number: batch for number, batch in self.sent.items() if number > filled}
        self.batches += 1
        self.sent[self.batches] = addresses
        return self.batches

    def held(self, classes: Collection[int] = range(CLASSES)) -> list[int]:
        """Return the objects of classes that it keeps, and those of any on their way; none when damaged."""
        try:
            return contents(self.words[:WORDS], self.sent, self.received, classes)
        except UsageError as error:
            logger.warning("%s", error)
            return []

    def counted(self) -> tuple[int, int, int, int]:
        """Return its allocations, frees, bytes asked for and bytes of those freed."""
        return counters(self.words[:WORDS])

    def away(self) -> dict[int, list[tuple[int, int]]]:
        """Take out what is on its way home, by node: addresses and bytes."""
        try:
            return self.ring.take()
        except UsageError as error:
            logger.warning("%s", error)
            return {}

    def close(self) -> None:
        """Close the file; the worker's copy stays."""
        os.close(self.fd)
        self.ring = Ring(memoryview(bytes(8 * RING_WORDS)).cast("Q"))
        with contextlib.suppress(BufferError):  # somebody still looks at it: it goes with the last who does
            self.words.release()
            self._map.close()
