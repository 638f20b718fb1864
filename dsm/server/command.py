"""``dsm serve``: a lease server in the foreground, until Ctrl-C or SIGTERM.

Owns the verb's options and what it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from types import FrameType

from dsm import log
from dsm.errors import DSMError, UsageError
from dsm.server.server import Server
from dsm.units import bytes_of, show_bytes
from dsm.wire.address import DEFAULT_PORT
from dsm.wire.secret import create_secret_file, load_secret


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--listen",
        default=f":{DEFAULT_PORT}",
        metavar="[HOST]:PORT",
        help=f"where clients connect (:{DEFAULT_PORT}); port 0 takes a free one",
    )
    parser.add_argument("--size", default="2G", metavar="SIZE", help="bytes to lease, or with K, M, G (2G)")
    parser.add_argument(
        "--secret-file",
        metavar="F",
        help="what clients must know; created if it does not exist (default: DSM_SECRET, DSM_SECRET_FILE)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON when it listens")


_EPILOG = """\
Without a secret it serves this machine only.  With one, and without a host in --listen, it serves
everybody who can reach it and knows the secret.  DSM_NODE makes it a worker of that node: then leases
can be mapped by the cluster's workers, and theirs be read and written through it.

example:
  $ dsm serve --size 64M &
  $ id=$(dsm lease 1K 60s)
  $ dsm set $id hello
  $ dsm get $id --length 5
"""


def run(options: argparse.Namespace) -> int:
    """Serve until asked to end; 1 when the server ended by itself."""
    asked = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        log.configure(os.environ)
        secret = _secret(options.secret_file)
        server = Server(options.listen, bytes_of(options.size, "--size"), secret)
        with server:
            print(_as_json(server) if options.json else _as_text(server, options), flush=True)
            threading.Thread(target=_tell, args=(server.ended, asked), daemon=True).start()
            asked.wait()
            if server.error is not None:
                print(f"dsm serve: ended: {server.error}", file=sys.stderr)
                return 1
    except UsageError as error:
        print(f"dsm serve: {error}", file=sys.stderr)
        return 2
    except DSMError as error:
        print(f"dsm serve: {error}", file=sys.stderr)
        return 1
    return 0


def _tell(ended: threading.Event, asked: threading.Event) -> None:
    ended.wait()
    asked.set()


def _secret(path: str | None) -> bytes | None:
    if path is not None:
        path = os.path.expanduser(path)
        if not os.path.exists(path):
            create_secret_file(path)
        return load_secret({"DSM_SECRET_FILE": path})
    if os.environ.get("DSM_SECRET") or os.environ.get("DSM_SECRET_FILE"):
        return load_secret(os.environ)
    return None


def _as_json(server: Server) -> str:
    about = {"address": server.address, "addresses": server.addresses, "size": server.size}
    return json.dumps(about | {"node": os.environ.get("DSM_NODE", ""), "pid": os.getpid()})


def _as_text(server: Server, options: argparse.Namespace) -> str:
    secret = f" --secret-file {options.secret_file}" if options.secret_file else ""
    node = os.environ.get("DSM_NODE", "")
    return (
        f"leasing {show_bytes(server.size)} at {', '.join(server.addresses)}\n"
        f"lease some:             dsm lease 1K 60s --server {server.address}{secret}\n"
        f"map it into a program:  DSM_NODE={node} python program.py\n"
        f"end this server:        Ctrl-C, or kill {os.getpid()}"
    )
