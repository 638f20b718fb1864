"""The C itself: no warning, and Python sees the functions that shim.h declares."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from dsm import _native

NATIVE = Path(_native.__file__).parent
SOURCES = sorted(path.name for path in NATIVE.glob("*.c") if path.name != "_shim.c")


def test_every_file_compiles_without_a_warning(tmp_path):
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wvla", "-c", "-D_GNU_SOURCE"]
    subprocess.run(["gcc", *flags, *(str(NATIVE / name) for name in SOURCES)], check=True, cwd=tmp_path)


def _declared(text: str) -> set[str]:
    return set(re.findall(r"\b(dsm_\w+)\(", re.sub(r"/\*.*?\*/", "", text, flags=re.S)))


def test_the_declarations_for_python_are_those_of_the_header():
    assert _declared((NATIVE / "shim.cdef").read_text()) == _declared((NATIVE / "shim.h").read_text())


def test_nothing_but_the_module_is_exported():
    [library] = NATIVE.glob("_shim*.so")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    )
    assert [line.split()[2] for line in listed.stdout.splitlines()] in (
        ["PyInit__shim"],
        ["_cffi_pypyinit__shim", "PyInit__shim"],
    )


def test_files_are_small_rooms():
    for path in [*(NATIVE / name for name in SOURCES), *NATIVE.glob("*.h")]:
        lines = path.read_text().splitlines()
        assert len(lines) < 300, path
        assert all(len(line) <= 120 for line in lines), path
