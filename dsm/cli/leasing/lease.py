"""``dsm lease``: lease memory of a server for a time, and print the token that the other verbs take."""

from __future__ import annotations

import argparse
import json

from dsm.cli.leasing.common import add_server, run_verb
from dsm.client import LeaseClient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("size", metavar="SIZE", help="bytes, or with K, M, G: 64K")
    parser.add_argument("duration", metavar="DURATION", help="seconds, or with ms, s, m, h: 60s")
    parser.add_argument("--json", action="store_true", help="print one line of JSON: token, read_token, ...")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Print the token."""

    def act(client: LeaseClient) -> None:
        lease = client.lease(options.size, options.duration)
        if not options.json:
            print(lease.token)
            return
        print(
            json.dumps(
                {
                    "token": lease.token,
                    "read_token": lease.read_token,
                    "id": str(lease.id),
                    "nbytes": lease.nbytes,
                    "expires_in": round(lease.expires_in, 3),
                }
            )
        )

    return run_verb("lease", options, act)
