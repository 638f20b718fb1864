"""Twins and diffs, typed: what of a run of pages has changed, as bytes that can be sent and stored.

Owns the translation between Python values and the C functions of that part of shim.h.  The format of a
payload is written down in diff.h.  Nothing here is done page by page: runs of pages are int64 arrays of
rows (page, count), ascending and not touching.
"""

from __future__ import annotations

import errno
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dsm._native import _ffi, check, lib, words
from dsm.errors import WireError

#: What holds a payload.
Buffer: TypeAlias = bytes | bytearray | memoryview
Runs: TypeAlias = npt.NDArray[np.int64]

#: Bytes that must be free for an entry of a payload: more than any entry has.
ENTRY_MOST: int = lib.dsm_entry_most()
#: Bytes of the smallest one.
_ENTRY_LEAST = 16


def address_of(buffer: memoryview) -> int:
    """Return where a writable buffer lies; its owner must keep it there."""
    return int(_ffi.cast("uintptr_t", _ffi.from_buffer(buffer)))


class TwinTable:
    """Which pages of a region have a twin, in a map at `twins` that is as large as the region.

    Parameters
    ----------
    frames, frames_fd, twins
        Addresses of the maps of a region of `pages` pages, and the frames' file; their owner keeps them.
    """

    __slots__ = ("_arguments", "_pages", "_shift", "_states", "twins")

    def __init__(self, frames: int, frames_fd: int, twins: int, pages: int, page_size: int) -> None:
        self.twins = twins
        self._pages = pages
        self._shift = page_size.bit_length() - 1
        self._states = _ffi.new("uint8_t[]", pages)
        self._arguments = (frames, frames_fd, twins, self._states, pages, self._shift)

    def make(self, page: int, count: int) -> int:
        """Copy frames to their twins; returns how many had the memory of an ended twin.

        Raises
        ------
        FileExistsError
            One of the pages has a twin; nothing was copied.
        """
        reused: int = lib.dsm_twin_make(*self._arguments, page, count)
        return reused if reused >= 0 else check(reused, f"make twins of pages {page}+{count}")

    def has(self, runs: Runs) -> bool:
        """Whether every page of the runs has a twin."""
        code = lib.dsm_twin_check(self._states, self._pages, words(runs), len(runs))
        return code != -errno.ENOENT and check(code, "look for twins") == 0

    def end(self, runs: Runs) -> int:
        """End the twins of these pages, those that there are; returns how many."""
        return check(lib.dsm_twin_end(self._states, self._pages, words(runs), len(runs)), "end twins")

    def release(self) -> None:
        """Return the memory of all ended twins to the system."""
        check(lib.dsm_twin_release(self.twins, self._states, self._pages, self._shift), "release twins")


class Diff:
    """One comparison of frames with their twins, which fills as many buffers as it takes.

    Parameters
    ----------
    frames, twins
        Addresses of the maps of a region of `pages` pages.
    runs
        What to compare.
    keep
        What was compared becomes the twin; otherwise no worker may write these pages meanwhile.
    """

    __slots__ = ("_arguments", "_changed", "_cursor", "_runs", "_words")

    def __init__(self, frames: int, twins: int, pages: int, page_size: int, runs: Runs, keep: bool) -> None:
        # The arrays that C is given the addresses of live as long as this object.
        self._runs = runs
        self._changed: Runs = np.empty(((int(runs[:, 1].sum()) + len(runs) + 1) // 2 + 1, 2), np.int64)
        self._cursor = _ffi.new("uint64_t[3]")
        self._words = words(self._changed)
        shift = page_size.bit_length() - 1
        self._arguments = (frames, twins, pages, shift, words(runs), len(runs), keep, self._cursor)

    def fill(self, buffer: bytearray | memoryview) -> int:
        """Write entries to `buffer`, which has room for `ENTRY_MOST` bytes at least; returns their bytes."""
        out = _ffi.from_buffer("uint8_t[]", buffer)
        used: int = lib.dsm_diff(*self._arguments, out, len(buffer), self._words)
        return check(used, "compare pages with their twins")

    @property
    def done(self) -> bool:
        """Whether everything has been compared."""
        return bool(self._cursor[0] == len(self._runs))

    @property
    def changed(self) -> Runs:
        """The pages compared up to now of which a byte has changed."""
        return self._changed[: self._cursor[2]].copy()


def named(pages: int, page_size: int, payload: Buffer) -> Runs:
    """Return the pages of a region of `pages` pages that a payload is about.

    Raises
    ------
    WireError
        The payload is not well formed, or names pages outside the region.
    """
    runs: Runs = np.empty((len(payload) // _ENTRY_LEAST, 2), np.int64)
    shift = page_size.bit_length() - 1
    out = words(runs)
    count = lib.dsm_patch_runs(pages, shift, _bytes(payload), len(payload), out)
    return runs[: _sound(count)].copy()


class Target:
    """Frames of a region of `pages` pages that changes are stored into.

    Parameters
    ----------
    frames, frames_fd
        The address of a shared map of all of them, and its file; their owner keeps them.
    """

    __slots__ = ("_arguments", "_page_size", "_prepared")

    def __init__(self, frames: int, frames_fd: int, pages: int, page_size: int) -> None:
        #: Where a frame is no hole for certain.
        self._prepared = bytearray(pages)
        self._page_size = page_size
        shift = page_size.bit_length() - 1
        self._arguments = (frames, frames_fd, pages, shift, _ffi.from_buffer("uint8_t[]", self._prepared))

    def patch(self, payload: Buffer, runs: Runs | None = None) -> None:
        """Store what a payload says of these pages (None: of all), and no other byte; raises as `named`."""
        chosen, count = (_ffi.NULL, 0) if runs is None else (words(runs), len(runs))
        _sound(lib.dsm_patch(*self._arguments, _bytes(payload), len(payload), chosen, count))

    def punched(self, low: int, high: int) -> None:
        """These bytes of the file have become a hole."""
        first, end = low // self._page_size, -(-high // self._page_size)
        self._prepared[first:end] = bytes(end - first)


def select(pages: int, page_size: int, payload: Buffer, runs: Runs) -> bytearray:
    """Return a payload of what `payload` says of the pages of `runs`, perhaps empty; raises as `named`."""
    shift = page_size.bit_length() - 1
    out = bytearray(len(payload))
    used = lib.dsm_patch_select(
        pages,
        shift,
        _bytes(payload),
        len(payload),
        words(runs),
        len(runs),
        _ffi.from_buffer("uint8_t[]", out),
    )
    del out[_sound(used) :]
    return out


def _bytes(payload: Buffer) -> object:
    return _ffi.from_buffer("uint8_t[]", payload)


def _sound(code: int) -> int:
    if code == -errno.EBADMSG:
        raise WireError("a diff is not well formed, or is about pages that its region does not have")
    return check(code, "read a diff")
