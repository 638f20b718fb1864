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

NAMES = ("fault", "scan", "lock", "barrier", "atomic", "hit", "metadata", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dsm bench``."""
    parser.add_argument("row", nargs="?", default="all", choices=NAMES, help="what to measure (default: all)")
    parser.add_argument("--write", action="store_true", help="with fault: only write faults")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as a list of objects")


def run(options: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    from dsm.bench.measure import ROWS
    from dsm.bench.row import Row, format_table

    names = list(ROWS) if options.row == "all" else [n for n in ROWS if n.split()[0] == options.row]
    if options.row == "fault" and options.write:
        names = ["fault --write"]
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
