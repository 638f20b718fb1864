"""The option ``--page-timeout``, which `dsm run` and `dsm node` share.

Managers read it from the environment, where this puts it (`dsm.config.page_timeout`).
"""

from __future__ import annotations

import argparse
import os

from dsm import limits


def add_page_timeout(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--page-timeout",
        type=float,
        metavar="S",
        help=f"seconds that a thread waits for a page, 0 without end ({limits.PAGE_TIMEOUT_S:g})",
    )


def take_page_timeout(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check the option, and put it into the environment that managers inherit."""
    if options.page_timeout is None:
        return
    if not options.page_timeout >= 0:
        parser.error(f"--page-timeout {options.page_timeout}: seconds are needed, 0 for no end")
    os.environ["DSM_PAGE_TIMEOUT"] = str(options.page_timeout)
