"""``dsm version``: the versions that a bug report needs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata

from dsm import __version__


def main(arguments: Sequence[str]) -> int:
    """Print one line each for dsm, the interpreter, the libraries and the kernel."""
    if arguments:
        print("usage: dsm version")
        return 0 if arguments[0] in ("-h", "--help") else 2
    print(f"dsm {__version__}")
    for name in ("numpy", "cffi", "msgspec"):
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} (not installed)")
    print(f"Python {platform.python_version()} ({platform.python_implementation()})")
    print(f"{platform.system()} {platform.release()} {platform.machine()}")
    return 0
