"""``dsm leases``: the leases of a server: how large, how old, how long they still last."""

from __future__ import annotations

import argparse
import json
import sys
import time

from dsm.cli.leasing.common import add_server, run_verb
from dsm.client import LeaseClient
from dsm.errors import UsageError
from dsm.units import show_bytes, show_milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print one line of JSON: leases, figures")
    parser.add_argument("--watch", type=float, metavar="S", help="again every S seconds, until Ctrl-C")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table; with ``--watch`` in place on a terminal, else one below the other."""

    def act(client: LeaseClient) -> None:
        if options.watch is not None and not 0 < options.watch < float("inf"):
            raise UsageError(f"--watch {options.watch}: a positive number of seconds is needed")
        while True:
            text = _as_json(client) if options.json else _as_text(client)
            if options.watch is not None and sys.stdout.isatty() and not options.json:
                text = "\x1b[H\x1b[2J" + text
            print(text, flush=True)
            if options.watch is None:
                return
            time.sleep(options.watch)

    status = run_verb("leases", options, act)
    return 0 if status == 130 and options.watch is not None else status


def _as_json(client: LeaseClient) -> str:
    leases = [
        {
            "id": str(lease.id),
            "nbytes": lease.nbytes,
            "expires_in": round(lease.expires_in, 3),
            "age": round(lease.age, 3),
            "mapped": lease.mapped,
        }
        for lease in client.leases()
    ]
    return json.dumps({"server": client.address, "leases": leases, "figures": client.figures()})


def _as_text(client: LeaseClient) -> str:
    rows = [("id", "size", "ends in", "age", "memory")]
    rows += [
        (
            str(lease.id),
            show_bytes(lease.nbytes),
            show_milliseconds(lease.expires_in * 1000),
            show_milliseconds(lease.age * 1000),
            "the cluster's" if lease.mapped else "the server's",
        )
        for lease in client.leases()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for identity, *figures_of, memory in rows:
        shown = [f"{text:>{width}}" for text, width in zip(figures_of, widths[1:], strict=False)]
        lines.append("  ".join([f"{identity:<{widths[0]}}", *shown, memory]))
    figures = client.figures()
    used, size = show_bytes(figures["used"]), show_bytes(figures["size"])
    number = len(rows) - 1
    lines.append(f"{number} lease{'' if number == 1 else 's'}; {used} of {size} used at {client.address}")
    return "\n".join(lines)
