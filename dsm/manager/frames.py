"""The frames of one region on this node: one memfd, and the manager's map of it.

Owns the memory of pages, the wanted table's memory, filling fresh pages, storing what another node
has changed, and giving memory of discarded ones back.  Frames are always complete before any worker
may see them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dsm import _native
from dsm._native import diffs
from dsm._native.diffs import Buffer
from dsm.coherence.messages import Runs
from dsm.types import Region

#: Discarded frames are returned to the system once so many bytes of them have gathered.
RECLAIM_BYTES = 64 * 1024 * 1024
#: Bytes of a region that is destroyed that are freed at a time: others wait that long.
FREE_BYTES = 16 * 1024 * 1024

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_INVALID_RUN = re.compile(rb"\x00+")


class Frames:
    """Memory for the pages of `region` on this node."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.page_size = region.options.page_size
        #: Workers may read, and write, while the manager stores or sends: copies word by word.
        self.live = region.options.consistency == "bounded"
        with contextlib.ExitStack() as undo:
            self.frames_fd = os.memfd_create(f"dsm-frames-{region.region}", os.MFD_CLOEXEC)
            undo.callback(os.close, self.frames_fd)
            os.ftruncate(self.frames_fd, region.size)
            self.wanted_fd = os.memfd_create(f"dsm-wanted-{region.region}", os.MFD_CLOEXEC)
            undo.callback(os.close, self.wanted_fd)
            os.ftruncate(self.wanted_fd, _native.wanted_bytes(region.pages, self.live))
            self._map = mmap.mmap(self.frames_fd, region.size)
            undo.pop_all()
        self._view = memoryview(self._map)
        #: Where they lie in this process, for the shim; valid until `close`.
        self.address = diffs.address_of(self._view)
        self._target: diffs.Target | None = None
        #: Whether memory may have been allocated that nobody has touched: the system calls that a hole, too.
        self.allocates_ahead = False
        fill = region.options.fill
        #: One page more of the pattern than a page, so that any phase of it can be cut out.
        self._pattern = fill * (self.page_size // len(fill) + 2) if fill else b""
        self._discarded = 0
        #: While it is closed: up to where memory has been freed, and whether there is more to be freed.
        self._freed = 0
        self.freeing = False

    def view(self, page: int, count: int) -> memoryview:
        """Return the frames of these pages, writable."""
        size = self.page_size
        return self._view[page * size : (page + count) * size]

    def write(self, page: int, data: memoryview) -> None:
        """Write frames: `pwrite` into a hole costs 1 µs less a page than a store that faults."""
        at = page * self.page_size
        while (written := os.pwrite(self.frames_fd, data, at)) < len(data):
            data = data[written:]
            at += written

    def copy(self, page: int, count: int) -> memoryview:
        """Return a copy of frames that workers may be writing."""
        return memoryview(_native.words_out(self.view(page, count)))

    def store(self, page: int, data: memoryview) -> None:
        """Write frames that workers may be reading."""
        at = page * self.page_size
        _native.words_in(self._view[at : at + len(data)], data)

    def fill(self, page: int, count: int) -> None:
        """Write the fill pattern into fresh frames; zeros are there already."""
        pattern = self._pattern
        if not pattern:
            return
        size = self.page_size
        item = len(self.region.options.fill)
        for p in range(page, page + count):
            phase = p * size % item
            self._view[p * size : (p + 1) * size] = pattern[phase : phase + size]

    def named(self, payload: Buffer) -> Runs:
        """Return the pages that the payload of a `DIFF` is about.

        Raises
        ------
        WireError
            The payload is not well formed, or names pages outside the region.
        """
        return diffs.named(self.region.pages, self.page_size, payload)

    def apply(self, payload: Buffer, runs: Runs | None = None) -> None:
        """Store what a `DIFF` says of these pages (None: of all), and no other byte; raises as `named`."""
        target = self._target
        if target is None:
            target = diffs.Target(self.address, self.frames_fd, self.region.pages, self.page_size)
            self._target = target
        target.patch(payload, runs)

    def forwarded(self, payload: Buffer, runs: Runs) -> bytearray:
        """Return the part of a `DIFF` that is about these pages, perhaps empty; raises as `named` does."""
        return diffs.select(self.region.pages, self.page_size, payload, runs)

    def discard(self, count: int) -> bool:
        """Note that `count` frames hold nothing any more; True when it is time to `reclaim`."""
        self._discarded += count * self.page_size
        return self._discarded >= RECLAIM_BYTES

    def reclaim(self, states: npt.NDArray[np.uint8]) -> None:
        """Return the memory of every frame whose state is INVALID (0) to the system."""
        self._discarded = 0
        size = self.page_size
        for run in _INVALID_RUN.finditer(states.data):
            low, high = run.start() * size, run.end() * size
            while low < high:
                stop = high
                if not self.allocates_ahead:
                    # Only what is backed: finding the data is cheaper than punching holes in holes.
                    try:
                        low = os.lseek(self.frames_fd, low, os.SEEK_DATA)
                    except OSError:
                        return
                    if low >= high:
                        break
                    stop = min(high, os.lseek(self.frames_fd, low, os.SEEK_HOLE))
                self._punch(low, stop)
                if self._target is not None:
                    self._target.punched(low, stop)
                low = stop

    def close(self) -> bool:
        """Free the memory, to which workers have lost access before.

        False while somebody refers to it; and while there is more of it than the others of this node are to
        wait for: then `freeing` says so.
        """
        if not self._map.closed:
            if self._free_part(self._forget):
                return False
            try:
                self._view.release()
                self._map.close()
            except BufferError:
                return False
            os.ftruncate(self.frames_fd, self.region.size - 1)  # who has yet to map it sees that it is gone
            self._freed = 0
        if self._free_part(self._punch):
            return False
        os.ftruncate(self.frames_fd, 0)
        os.close(self.frames_fd)
        os.close(self.wanted_fd)
        return True

    def _free_part(self, free: Callable[[int, int], None]) -> bool:
        """Do `free(low, high)` with the next part that has memory, if there is more than a part."""
        low, end = self._freed, self.region.size
        if end - low > FREE_BYTES and not self.allocates_ahead:
            try:
                low = os.lseek(self.frames_fd, low, os.SEEK_DATA)
            except OSError:  # there is no more
                low = end
        self.freeing = end - low > FREE_BYTES
        self._freed = low + FREE_BYTES if self.freeing else end
        if self.freeing:
            free(low, self._freed)
        return self.freeing

    def _forget(self, low: int, high: int) -> None:
        """Take frames out of this process's page table: closing the map does it with all at once."""
        _libc.munlock(self.address + low, high - low)
        self._map.madvise(mmap.MADV_DONTNEED, low, high - low)

    def _punch(self, low: int, high: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self.frames_fd, mode, low, high - low):
            error = ctypes.get_errno()
            raise OSError(error, f"punching a hole: {os.strerror(error)}")
