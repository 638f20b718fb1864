"""The command line ``dsm``: finds the verb and hands over.

Owns the list of verbs.  Each verb is a module that is imported only when it is asked for: the doors know
nothing of each other, and starting costs what the verb needs.  Such a module has either
``main(arguments) -> status``, or ``add_arguments(parser)`` and ``run(options) -> status``.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

#: Verb: its module, what it does.
VERBS = {
    "run": ("dsm.launch.run", "start a program on one or several nodes of this machine"),
    "node": ("dsm.launch.node", "run one node's manager in the foreground, to join hosts by hand"),
    "serve": ("dsm.server.command", "lease memory over TCP to any program: run a lease server"),
    "lease": ("dsm.cli.leasing.lease", "lease memory of a server for a time; prints its token"),
    "get": ("dsm.cli.leasing.get", "read the bytes of a lease"),
    "set": ("dsm.cli.leasing.set", "write bytes into a lease"),
    "renew": ("dsm.cli.leasing.renew", "let a lease end later"),
    "release": ("dsm.cli.leasing.release", "end a lease"),
    "leases": ("dsm.cli.leasing.leases", "show the leases of a server, and how long they last"),
    "bench": ("dsm.bench", "measure faults, scans, locks and barriers against their floors"),
    "status": ("dsm.cli.status", "show the clusters of this machine, and why a job stands still"),
    "pages": ("dsm.cli.pages", "show where the pages of an array are, and who faults on them"),
    "sql": ("dsm.cli.sql", "ask anything about pages, regions, nodes, workers, locks and barriers in SQL"),
    "doctor": ("dsm.cli.doctor", "say what this machine allows, and which limits a program will meet"),
    "report": ("dsm.cli.report", "print what a report of an error needs, without secrets"),
    "version": ("dsm.cli.version", "print the versions of dsm and of what it runs on"),
}

#: Verbs that go on when standard output is closed: they are there for something else than what they print.
_AT_WORK = ("run", "node", "serve")
#: What writing to standard output may end with.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)


class _Parser(argparse.ArgumentParser):
    """A parser whose help is no success when nobody gets it; argparse itself says nothing of that."""

    def print_help(self, file: Any = None) -> None:
        """Print the help to `file`, by default standard output."""
        (file or sys.stdout).write(self.format_help())


def _help() -> str:
    lines = [
        "usage: dsm VERB [options]",
        "",
        "Distributed shared memory for Python: numpy arrays that many processes write in place.",
        "",
        *(f"  {verb:<9} {what}" for verb, (_, what) in VERBS.items()),
        "",
        "dsm VERB --help says more.  A first program:  dsm run -n 4 --nodes 2 program.py",
    ]
    return "\n".join(lines)


def _open_standard_streams() -> bool:
    """Give those that are closed (``>&-``) to nobody: the next file that is opened would be written to.

    Returns whether standard output was closed.
    """
    without_output = False
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            without_output = without_output or descriptor == 1
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
    return without_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dsm` with these arguments (default: those of the process); return the exit status."""
    without_output = _open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given else "--help"
    if verb == "--version":
        verb = "version"
    if without_output and verb not in _AT_WORK:  # whatever is written is refused, as if it were closed still
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), "w")  # noqa: SIM115
    try:
        try:
            return _run(verb, given)
        finally:
            sys.stdout.flush()  # argparse has printed its help and leaves, too
    except OSError as error:
        if error.errno not in _UNWRITABLE or (error.errno == errno.EBADF and not without_output):
            raise
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        name = f"dsm {verb}" if verb in VERBS else "dsm"
        print(f"{name}: standard output: {error.strerror}", file=sys.stderr)
        return 1


def _run(verb: str, given: list[str]) -> int:
    """Do what a verb does; return the exit status."""
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb not in VERBS:
        print(f"dsm: there is no verb {verb!r}; the verbs are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(VERBS[verb][0])
    if hasattr(module, "main"):
        return int(module.main(given) or 0)
    parser = _Parser(prog=f"dsm {verb}", description=VERBS[verb][1])
    module.add_arguments(parser)
    options = parser.parse_intermixed_args(given)  # an option may stand between the words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name need not fit the terminal's encoding
    return int(module.run(options) or 0)
