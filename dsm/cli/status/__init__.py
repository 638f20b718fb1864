"""``dsm status``: what the clusters of this machine are doing, and why a job stands still.

Owns the verb.  `ask` finds managers and asks one of each cluster, `verdict` names the culprits, `tables` is
what people read; ``--json`` prints the same values.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import msgspec

from dsm.cli.status.ask import Found, Silent, local_name, look, reason
from dsm.cli.status.tables import render
from dsm.cli.status.verdict import verdict
from dsm.errors import DSMError
from dsm.wire.status import ClusterStatus

_NOBODY = (
    "no dsm cluster runs on this machine (as this user); a job's managers live as long as `dsm run`, "
    "`dsm node` or the program that attached"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="a manager's local name, @dsm-... (default: DSM_NODE, else every manager of this user)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON with the same contents")
    parser.add_argument("--watch", type=float, metavar="S", help="again every S seconds, until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    """Print the status; 1 when there is no cluster."""
    if options.watch is not None and not 0 < options.watch < float("inf"):
        print(f"dsm status: --watch {options.watch}: a positive number of seconds is needed", file=sys.stderr)
        return 2
    said = os.environ.get("DSM_NODE", "")
    address = options.address or (local_name(said) if "@" in said else None)
    try:
        while True:
            status = _once(address, options.json, options.watch is not None)
            if options.watch is None or status:
                return status
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return 0


def _once(address: str | None, as_json: bool, again: bool) -> int:
    try:
        found = look(address)
    except (OSError, DSMError) as error:
        print(f"dsm status: no manager answers at {address}: {reason(error)}", file=sys.stderr)
        return 1
    if not found.clusters and not found.silent:
        print(f"dsm status: {_NOBODY}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(as_values(found)), flush=True)
        return 0
    if again and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    print(as_text(found), flush=True)
    return 0


def as_text(found: Found) -> str:
    """Return what was found, for people."""
    return "\n\n".join([*map(render, found.clusters), *map(about_silent, found.silent)])


def as_values(found: Found) -> dict[str, Any]:
    """Return what was found as plain lists and dictionaries."""
    clusters = [_cluster_values(cluster) for cluster in found.clusters]
    silent = [asdict(each) | {"verdict": [about_silent(each)]} for each in found.silent]
    return {"clusters": clusters, "silent": silent}


def _cluster_values(cluster: ClusterStatus) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(cluster)
    return values | {"verdict": verdict(cluster)}


def about_silent(silent: Silent) -> str:
    """Say what is known of a manager that nobody speaks for."""
    text = f"the manager at {silent.socket} (pid {silent.pid}) cannot be asked: {silent.reason}"
    return text + (f"; `kill -CONT {silent.pid}` lets it go on" if silent.state == "T" else "")
