"""``dsm doctor``: what this machine allows, and which limits a program will meet here.

Owns the verb and the order of the checks; they lie in `machine`, `bounds` and `settings`.  It changes
nothing; the last check starts a private node for a moment and lets pages fault.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from dsm import limits
from dsm.cli.doctor import bounds, machine, settings
from dsm.cli.doctor.finding import BAD, NOTE, OK, Finding, command_in
from dsm.errors import DSMError

#: What is true on every machine and surprises everywhere.
ADVICE = """\
System calls and absent pages
  A page that is not here is fetched when the *program* touches it.  The kernel does not do that on behalf
  of a system call: f.readinto(a), sock.recv_into(a), os.write(fd, a), a.tofile(f), numpy.save(f, a) fail
  with EFAULT ("Bad address"), or move fewer bytes than asked, when pages of `a` are absent.  Hold them:
      with node.pin(a):              # write=False when the call only reads the memory
          f.readinto(a)
  or go through ordinary memory:  a[:] = numpy.fromfile(f, a.dtype, a.size).reshape(a.shape)
Threads that block SIGSEGV
  A thread that masks SIGSEGV (ZeroMQ's I/O threads, jemalloc's background threads) is killed, and the
  process with it, when it touches an absent page.  Pin what such threads are given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--listen", metavar="HOST:PORT", help="is this free for `dsm node --listen`?")
    parser.add_argument("--json", action="store_true", help="print one line of JSON with the same contents")


def run(options: argparse.Namespace) -> int:
    """Print all findings; return 1 when one of them keeps dsm from working."""
    worst = False
    found = []
    for name, finding in examine(options.listen):
        worst |= finding.verdict == BAD
        if options.json:
            found.append({"check": name, **finding._asdict()})
            continue
        print(f"{finding.verdict:>4}  {name:<10} {finding.text}")
        if finding.mend:
            print(f"{'':17}mend: {finding.mend}")
    if options.json:
        print(json.dumps({"usable": not worst, "findings": found}))
    else:
        print(f"\n{ADVICE}")
    return int(worst)


def examine(listen: str | None = None) -> Iterator[tuple[str, Finding]]:
    """Yield every finding with the name of its check; a setting that dsm refuses is a finding, too."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "kernel": machine.kernel,
        "processors": machine.processors,
        "pager": machine.pager,
        "compiler": machine.compiler,
        "clock": machine.clock,
        "maps": bounds.maps,
        "files": bounds.files,
        "addresses": bounds.addresses,
        "memory": bounds.memory,
        "ports": lambda: settings.ports(listen),
        "secret": settings.secret,
        "log": settings.log,
        "timeout": settings.timeout,
        "leases": settings.leases,
        "node": settings.node,
        "trial": _trial,
    }
    for name, check in checks.items():
        try:
            for finding in check():
                yield name, finding
        except DSMError as error:
            yield name, Finding(BAD, str(error), command_in(str(error)))


def _trial() -> Iterator[Finding]:
    """Start a private node, let a page fault, and let a system call meet an absent page."""
    ours = ("DSM_NODE", "DSM_LOG", "DSM_PAGE_TIMEOUT", "DSM_LEASE_BYTES")
    kept = {name: os.environ.pop(name, None) for name in ours}
    try:
        import dsm

        with dsm.attach() as node:
            array = node.array(None, 3 * limits.OS_PAGE_BYTES, "u1", fill=7)
            array[limits.OS_PAGE_BYTES] = 1
            total = int(array.sum())
            yield from _system_call(node.array(None, limits.OS_PAGE_BYTES, "u1", fill=7))
    except (DSMError, OSError, ImportError) as error:
        yield Finding(
            BAD, f"a private node does not work: {type(error).__name__}: {error}", command_in(str(error))
        )
        return
    finally:
        os.environ.pop("DSM_NODE", None)
        os.environ.update({name: value for name, value in kept.items() if value is not None})
    right = total == 7 * (3 * limits.OS_PAGE_BYTES) - 6
    yield Finding(
        OK if right else BAD,
        "a private node starts, and a page that is touched comes"
        + ("" if right else f", but with wrong contents (sum {total})"),
    )


def _system_call(array: Any) -> Iterator[Finding]:
    with tempfile.TemporaryFile(buffering=0) as file:
        try:
            written = file.write(array)
        except OSError as error:
            yield Finding(NOTE, f"a system call on an absent page ends with: {error.strerror} (see below)")
        else:
            yield Finding(
                NOTE, f"a system call on an absent page moved {written} of {len(array)} bytes (see below)"
            )
