"""``dsm release``: end a lease; its memory can be leased again."""

from __future__ import annotations

import argparse

from dsm.cli.leasing.common import add_server, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("token", metavar="TOKEN", help="what `dsm lease` printed")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Print nothing."""
    return run_verb("release", options, lambda client: client.open(options.token).release())
