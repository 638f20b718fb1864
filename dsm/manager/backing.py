"""Memory of eager heaps: got from the system at once, but not in one go.

Owns the regions that are being backed.  The system takes up to some seconds for 1 GiB: a third of it to clear
pages, the rest to map each of them, which comes before it is locked.  So the loop does a little of it a
round, and whoever waits for a page or an answer waits for a step at most.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dsm.log import logger
from dsm.manager.frames import Frames

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

#: A step begins no piece after so many nanoseconds.
STEP_NS: Final = 2_000_000
#: Bytes of a piece; a page of the region if that is larger.
PIECE_BYTES: Final = 512 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Job:
    """A region that is being backed."""

    def __init__(self, frames: Frames, then: Callable[[int], None]) -> None:
        self.frames = frames
        self.then = then
        self.at = 0
        self.locked = 0
        self.locks = True

    @property
    def left(self) -> int:
        return self.frames.region.size - self.at


class Backing:
    """Gets memory for whole regions.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._jobs: deque[_Job] = deque()

    @property
    def pending(self) -> int:
        """Bytes that were asked for and are yet to be got."""
        return sum(job.left for job in self._jobs)

    def begin(self, region: int, then: Callable[[int], None]) -> None:
        """Get memory for all of a region, make its pages this node's, and lock it if permitted.

        Parameters
        ----------
        region
            Its number.
        then
            Called once, with the bytes that are locked, when all is done, or the system gives no more, or the
            region is gone.
        """
        frames = self._manager.coherence.frames.get(region)
        if frames is None:
            then(0)
            return
        frames.allocates_ahead = True
        self._jobs.append(_Job(frames, then))
        if len(self._jobs) == 1:
            self._manager.loop.after(0, self._step)

    def _step(self) -> None:
        """Do a little for the region whose turn it is."""
        job = self._jobs.popleft()
        end = time.monotonic_ns() + STEP_NS
        going = self._piece(job)
        while going and time.monotonic_ns() < end:
            going = self._piece(job)
        if going:
            self._jobs.append(job)
        if self._jobs:
            self._manager.loop.after(0, self._step)
        if not going:
            job.then(job.locked)

    def _piece(self, job: _Job) -> bool:
        """Back the next piece; False when that was the last."""
        frames = job.frames
        region = frames.region
        coherence = self._manager.coherence
        if coherence.frames.get(region.region) is not frames:
            job.locked = 0  # it was destroyed, and its memory goes with it
            return False
        size = region.options.page_size
        low, count = job.at, max(1, PIECE_BYTES // size)
        nbytes = min(count * size, job.left)
        try:
            os.posix_fallocate(frames.frames_fd, low, nbytes)
        except OSError as error:  # it comes page by page, then
            logger.warning(
                "region %d of heap %r is backed up to byte %d: %s",
                region.region,
                region.options.heap,
                low,
                error,
            )
            return False
        coherence.claim(region.region, low // size, nbytes // size)
        if job.locks:
            job.locks = not _libc.mlock(frames.address + low, nbytes)
            if job.locks:
                job.locked += nbytes
            else:
                reason = os.strerror(ctypes.get_errno())
                logger.info("region %d is locked in memory up to byte %d: %s", region.region, low, reason)
        job.at += nbytes
        return job.left > 0
