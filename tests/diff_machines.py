"""The diffs of the shim: as this machine runs them, and with nothing but what every machine has."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from dsm import _native
from dsm._native import diffs

NATIVE = Path(_native.__file__).parent
PAGE = 4096


def aligned(size):
    memory = np.zeros(size + PAGE, np.uint8)
    return memory[-memory.ctypes.data % PAGE :][:size]


def address(array):
    return diffs.address_of(array.data)


class Shim:
    """The functions as this machine runs them."""

    def diff(self, frames, twins, keep=False):
        pages = frames.size // PAGE
        runs = np.array([[0, pages]], np.int64)
        comparison = diffs.Diff(address(frames), address(twins), pages, PAGE, runs, keep)
        buffer = bytearray(pages * diffs.ENTRY_MOST)
        used = comparison.fill(buffer)
        assert comparison.done
        return bytes(buffer[:used])

    def patch(self, frames, payload):
        diffs.Target(address(frames), -1, frames.size // PAGE, PAGE).patch(payload)


class Plain:
    """The same, without what only some machines have."""

    def __init__(self, directory):
        library = directory / "plain.so"
        flags = [
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-D_GNU_SOURCE",
            "-DDSM_PLAIN",
            "-shared",
            "-fPIC",
        ]
        sources = [str(NATIVE / name) for name in ("diff.c", "patch.c")]
        subprocess.run(["gcc", *flags, "-shared", "-fPIC", *sources, "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.dsm_diff.restype = ctypes.c_int64

    def diff(self, frames, twins, keep=False):
        u64, pages = ctypes.c_uint64, frames.size // PAGE
        room = pages * diffs.ENTRY_MOST
        out, cursor, changed = (ctypes.c_uint8 * room)(), (u64 * 3)(), (u64 * (2 * pages + 2))()
        where = u64(address(frames)), u64(address(twins)), u64(pages), 12
        runs = (u64 * 2)(0, pages), u64(1)
        used = self.library.dsm_diff(*where, *runs, int(keep), cursor, out, u64(room), changed)
        assert cursor[0] == 1
        return bytes(out[:used])

    def patch(self, frames, payload):
        u64, pages = ctypes.c_uint64, frames.size // PAGE
        prepared = (ctypes.c_uint8 * pages)()
        code = self.library.dsm_patch(
            u64(address(frames)), -1, u64(pages), 12, prepared, payload, u64(len(payload)), None, u64(0)
        )
        assert code == 0
