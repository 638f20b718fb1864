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

#: What writing to standard output may end with.
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO)


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


def _open_standard_streams() -> None:
    """Give those that are closed (``>&-``) to nobody: the next file that is opened would be written to."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dsm` with these arguments (default: those of the process); return the exit status."""
    _open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb == "--version":
        verb = "version"
    if verb not in VERBS:
        print(f"dsm: there is no verb {verb!r}; the verbs are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(VERBS[verb][0])
    if hasattr(module, "main"):
        return int(module.main(given) or 0)
    parser = argparse.ArgumentParser(prog=f"dsm {verb}", description=VERBS[verb][1])
    module.add_arguments(parser)
    options = parser.parse_intermixed_args(given)  # an option may stand between the words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name need not fit the terminal's encoding
    try:
        status = int(module.run(options) or 0)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        print(f"dsm {verb}: standard output: {error.strerror}", file=sys.stderr)
        return 1
    return status
