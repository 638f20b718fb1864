"""The twins of one region on this node: what pages held before workers of the node wrote them.

Owns their memory: one private map as large as the region, made at the first use, so that a region
without twins costs nothing.  A page's twin lies where the page lies in the region, and one byte a page
says whether it has one.  A twin that ended keeps its memory for the next one of its page, up to a bound.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from dsm._native import diffs
from dsm.coherence.messages import Runs
from dsm.errors import InternalError, LimitError
from dsm.limits import MAX_DIFF_BYTES, OS_PAGE_BYTES
from dsm.manager.frames import Frames

#: Bytes of ended twins that keep their memory.
KEPT_BYTES = 64 * 1024 * 1024
#: Payloads up to this size are copied out of a large buffer, which is used again.
SMALL_BYTES = 256 * 1024
#: Absent from `mmap` before Python 3.13; the same number on every machine that the shim runs on.
_MAP_NORESERVE = 0x4000


class Twins:
    """Copies of pages of one region, to be compared with its frames.

    Parameters
    ----------
    frames
        The region's frames; closed after this.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._map: mmap.mmap | None = None
        self._table: diffs.TwinTable | None = None
        #: Bytes of ended twins whose memory is still there, at most; never more than `KEPT_BYTES`.
        self._kept = 0
        #: A buffer that was hardly used.
        self._spare: memoryview | None = None

    def make(self, page: int, count: int) -> None:
        """Copy these frames, which no worker may write, to their twins.

        Raises
        ------
        InternalError
            One of the pages has a twin.
        LimitError
            The system gives no memory for twins.
        """
        table = self._table or self._open()
        try:
            reused = table.make(page, count)
        except FileExistsError:
            raise InternalError(f"{self._which(page, count)} have a twin, and were to get one") from None
        self._kept -= reused * self._frames.page_size

    def diff(self, runs: Runs, keep: bool = False) -> tuple[list[memoryview], Runs]:
        """Compare frames with their twins.

        Parameters
        ----------
        runs
            Rows (page, count), ascending; each page has a twin.
        keep
            Workers may be writing these pages, and what was compared is their new twin.  Otherwise nobody
            writes them, and their twins end.

        Returns
        -------
        payloads
            What has changed, in messages of at most `MAX_DIFF_BYTES`; none of them is empty.
        changed
            The pages of which a byte has changed, as runs.

        Raises
        ------
        InternalError
            One of the pages has no twin.
        """
        frames, table = self._frames, self._table
        if not len(runs):
            return [], runs
        if table is None or not table.has(runs):
            low, high = runs[0, 0], runs[-1].sum()
            raise InternalError(f"{self._which(low, high - low)} are to be compared: one of them has no twin")
        runs = np.ascontiguousarray(runs)
        pages = int(runs[:, 1].sum())
        most = pages * (frames.page_size // OS_PAGE_BYTES) * diffs.ENTRY_MOST
        comparison = diffs.Diff(
            frames.address, table.twins, frames.region.pages, frames.page_size, runs, keep
        )
        payloads = []
        while not comparison.done:
            buffer = self._buffer(min(most, MAX_DIFF_BYTES))
            used = comparison.fill(buffer)
            if used <= SMALL_BYTES < len(buffer):
                self._spare = buffer
                if used:
                    payloads.append(memoryview(bytes(buffer[:used])))
            elif used:
                payloads.append(buffer[:used])
        if not keep:
            self._end(table, runs)
        return payloads, comparison.changed

    def drop(self, runs: Runs) -> None:
        """End the twins of these pages without a comparison; pages without one are passed over."""
        if self._table is not None:
            self._end(self._table, np.ascontiguousarray(runs))

    def close(self) -> None:
        """Give all memory back."""
        self._table = self._spare = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def _buffer(self, size: int) -> memoryview:
        """Return memory for a payload, which lives until the message has left."""
        if size <= SMALL_BYTES:
            return np.empty(size, np.uint8).data
        spare, self._spare = self._spare, None
        if spare is None:
            # In huge pages: faulting 4 MiB in costs 0.5 ms then, and 1.5 ms otherwise.
            memory = mmap.mmap(-1, MAX_DIFF_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            _advise(memory, mmap.MADV_HUGEPAGE)
            spare = memoryview(memory)
        return spare

    def _end(self, table: diffs.TwinTable, runs: Runs) -> None:
        self._kept += table.end(runs) * self._frames.page_size
        if self._kept > KEPT_BYTES:
            table.release()
            self._kept = 0

    def _open(self) -> diffs.TwinTable:
        size = self._frames.region.size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, size, flags)
        except OSError as error:
            raise LimitError(
                f"no {size} bytes of addresses for the twins of region {self._frames.region.region}: "
                f"{error.strerror}; see vm.overcommit_memory, and the limit on address space"
            ) from None
        _advise(self._map, mmap.MADV_NOHUGEPAGE)  # one twin would cost 2 MiB; see twin.c
        address = diffs.address_of(memoryview(self._map))
        frames = self._frames
        frames.allocates_ahead = True
        self._table = diffs.TwinTable(
            frames.address, frames.frames_fd, address, frames.region.pages, frames.page_size
        )
        return self._table

    def _which(self, page: int, count: int) -> str:
        return f"pages {page} to {page + count - 1} of region {self._frames.region.region}"


def _advise(memory: mmap.mmap, advice: int) -> None:
    with contextlib.suppress(OSError):  # a system without huge pages
        memory.madvise(advice)
