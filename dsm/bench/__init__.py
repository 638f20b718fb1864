"""``dsm bench``: how fast this is here, as ratios against floors measured in the same run.

Owns the command's options and its output.  Absolute times mean little on shared machines; the ratios
say how much dsm adds to what the machine does at best.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

__all__ = ["add_arguments", "run"]

#: Rows and groups of rows (`dsm.bench.registry`), here so that asking for help imports nothing else.
NAMES = (
    *("basic", "release", "memory", "programs", "all"),
    *("fault", "scan", "lock", "barrier", "atomic", "hit", "metadata"),
    *("jacobi", "sharing", "dirty", "fill"),
    "watched",
    *("blocks", "leases", "clients"),
    *("kmeans", "tsp", "matmul", "sort", "placement"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dsm bench``."""
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="row",
        help=f"what to measure (default: basic): groups of rows {', '.join(NAMES[:5])}; "
        f"rows {', '.join(NAMES[5:])}",
    )
    parser.add_argument("--write", action="store_true", help="with fault: only write faults")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as a list of objects")


def run(options: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    unknown = [name for name in options.rows if name not in NAMES]
    if unknown:
        print(f"dsm bench: there is no row {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    from dsm.bench.registry import GROUPS, ROWS
    from dsm.bench.row import Row, format_table

    asked = options.rows or ["basic"]
    names = list(dict.fromkeys(row for name in asked for row in GROUPS.get(name, [name])))
    if options.write and "fault" in asked:
        names.remove("fault")
    rows: list[Row] = []
    for name in names:
        rows.extend(ROWS[name](_progress))
    _progress("")
    print(format_table(rows))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
        print(f"written to {options.json}")
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
