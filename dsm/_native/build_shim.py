"""Build the shim: a cffi API-mode extension `dsm._native._shim` of the C files beside this one.

Owns the list of sources and the compiler's flags.  setuptools uses `ffibuilder` (``cffi_modules``); run as a
program it leaves the extension in this directory, for a source tree that is not installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def builder(base: Path) -> FFI:
    """Describe the extension, with paths that begin at `base`."""
    ffi = FFI()
    ffi.cdef((HERE / "shim.cdef").read_text())
    here = base / HERE.relative_to(ROOT)
    # Sorted, so that builds are the same; without what an interrupted build may have left.
    names = sorted(path.name for path in HERE.glob("*.c") if path.name != "_shim.c")
    ffi.set_source(
        "dsm._native._shim",
        '#include "shim.h"',
        sources=[(here / name).as_posix() for name in names],
        depends=[(here / path.name).as_posix() for path in sorted(HERE.glob("*.h"))],
        include_dirs=[here.as_posix()],
        define_macros=[("_GNU_SOURCE", None)],
        extra_compile_args=[
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-fvisibility=hidden",
        ],
        libraries=["pthread"],
    )
    return ffi


#: For setuptools, which runs in the project's root and wants relative paths.
ffibuilder = builder(Path())


def build_in_place() -> None:
    """Compile in a directory of its own and leave nothing here but the extension."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # away from a pyproject.toml that the setuptools at hand may not understand
        built = Path(builder(ROOT).compile(tmpdir=scratch, verbose=False))
        temporary = HERE / (built.name + ".new")
        shutil.copy2(built, temporary)
        temporary.replace(HERE / built.name)  # never in place: a process may have the old one mapped
        os.chdir(ROOT)


if __name__ == "__main__":
    build_in_place()
