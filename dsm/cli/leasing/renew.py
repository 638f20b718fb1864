"""``dsm renew``: let a lease end later, or sooner."""

from __future__ import annotations

import argparse

from dsm.cli.leasing.common import add_server, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("token", metavar="TOKEN", help="what `dsm lease` printed")
    parser.add_argument("duration", metavar="DURATION", help="from now: seconds, or with ms, s, m, h: 60s")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Print nothing."""
    return run_verb("renew", options, lambda client: client.open(options.token).renew(options.duration))
