"""``dsm node``: one manager in the foreground, so that hosts can be joined by hand.

Owns the verb's options and what it prints.  The manager is a child with a guard, so that it ends with
this process however that ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dsm import log
from dsm.errors import UsageError
from dsm.launch.cluster import END_S
from dsm.launch.job import READY_S
from dsm.launch.loop import Loop, Signals
from dsm.launch.managers import Manager
from dsm.launch.options import add_page_timeout, take_page_timeout
from dsm.manager_process import manager_command, manager_environment
from dsm.wire.secret import create_secret_file, load_secret

_EPILOG = """\
The nodes of a cluster prove to each other that they know its secret: DSM_SECRET, or the file named by
--secret-file or DSM_SECRET_FILE (mode 0600).  The first node (without --join) creates the file when it
does not exist; copy it to the other hosts.  What travels between nodes is authenticated at the start of
a connection but not encrypted: use a network that you trust.

example, on host a and then on host b:
  a$ dsm node --listen a:7000 --secret-file ~/.dsm-secret
  b$ dsm node --listen b:7000 --join a:7000 --secret-file ~/.dsm-secret
"""
_ANY = ("0.0.0.0", "::", "")


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (an IPv6 address goes in brackets)")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsm node",
        description="Run the coherence manager of one node in the foreground, until Ctrl-C.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--listen",
        type=_address,
        required=True,
        metavar="HOST:PORT",
        help="where other nodes reach this one; port 0 takes a free one",
    )
    parser.add_argument(
        "--join",
        type=_address,
        metavar="HOST:PORT",
        help="the first node of the cluster to join (default: be the first of a new one)",
    )
    parser.add_argument("--secret-file", type=Path, metavar="F", help="the file with the cluster's secret")
    add_page_timeout(parser)
    parser.add_argument("--name", metavar="HEX", help="fix the name of the local socket: DSM_NODE=@dsm-HEX")
    return parser


def _secret_file(given: Path | None, joining: bool) -> Path | None:
    """Return the file to use, created if need be; None when DSM_SECRET holds the secret."""
    if given is None and os.environ.get("DSM_SECRET"):
        return None
    path = given or (Path(value) if (value := os.environ.get("DSM_SECRET_FILE")) else None)
    if path is None:
        raise UsageError("nodes need a secret: give --secret-file F (it is created if it does not exist)")
    path = path.expanduser().absolute()
    if not path.exists():
        if joining:
            raise UsageError(
                f"there is no secret file {path}: copy it from the node that you join, mode 0600"
            )
        create_secret_file(str(path))
    load_secret({"DSM_SECRET_FILE": str(path)})  # refuses what the manager would refuse
    return path


def _shown(listen: str) -> str:
    """Return an address that others can use: a wildcard stands for this host's name."""
    host, _, port = listen.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host.strip("[]") in _ANY else listen


def _instructions(manager: Manager, secret: Path | None, first: str | None) -> str:
    """Say how to use the node; who joins asks the `first` node of the cluster, None: this one."""
    option = f" --secret-file {secret}" if secret else ""
    where = f"; the secret is in {secret}" if secret else ""
    return (
        f"node {manager.node} listens on {manager.listen}{where}\n"
        f"attach a program on this host:  DSM_NODE={manager.socket} python program.py\n"
        f"join from another host:         "
        f"dsm node --listen HOST:PORT --join {first or _shown(manager.listen)}{option}\n"
        f"end this node:                  Ctrl-C, or kill {os.getpid()}"
    )


class _Foreground:
    """The manager's life as that of this process."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], secret: Path | None, first: str | None
    ) -> None:
        self._secret = secret
        self._first = first
        self._loop = Loop()
        self._status: int | None = None
        self._signals = Signals(
            self._loop, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda _number: self._end()
        )
        self._manager = Manager(self._loop, command, environment, self._ready, capture=False)
        self._loop.add(self._manager.pidfd, lambda: None)

    def _ready(self, manager: Manager) -> None:
        if manager.error:
            print(f"dsm node: the manager did not start: {manager.error}", file=sys.stderr)
            self._status = 1
            self._end()
        else:
            print(_instructions(manager, self._secret, self._first), flush=True)

    def _end(self) -> None:
        if self._status is None:
            self._status = 0
        elif self._manager.socket:  # asked a second time
            self._manager.signal_group(signal.SIGKILL)
        self._manager.signal_group(signal.SIGTERM)
        self._loop.call_after(END_S, lambda: self._manager.signal_group(signal.SIGKILL))

    def _late(self) -> None:
        if not self._manager.socket and self._status is None:
            print(f"dsm node: the manager was not ready after {READY_S:.0f} s", file=sys.stderr)
            self._status = 1
            self._end()

    def run(self) -> int:
        """Serve until asked to end, or until the manager ends; return the exit status."""
        manager = self._manager
        with self._signals:
            self._loop.call_after(READY_S, self._late)
            self._loop.run_until(manager.look)
        if self._status is None:  # nobody had asked it to
            print(f"dsm node: the manager ended with {manager.describe_end()}", file=sys.stderr)
            self._status = manager.status or 1
        self._loop.remove(manager.pidfd)
        manager.close()
        manager.reap()
        self._loop.close()
        return self._status


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    take_page_timeout(parser, options)
    try:
        log.configure(os.environ)
        secret = _secret_file(options.secret_file, options.join is not None)
    except UsageError as error:
        parser.error(str(error))
    environment = manager_environment(None if secret else os.environ["DSM_SECRET"])
    if secret:
        environment["DSM_SECRET_FILE"] = str(secret)
    line = [*manager_command(), "--listen", options.listen]
    for name in ("join", "name"):
        if getattr(options, name):
            line += [f"--{name}", getattr(options, name)]
    return _Foreground(line, environment, secret, options.join).run()
