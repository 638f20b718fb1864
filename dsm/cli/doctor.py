"""``dsm doctor``: what this machine allows, and which limits a program will meet here.

Owns the checks and their wording.  It changes nothing; the last check starts a private node for a moment
and lets one page fault.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsm import config, limits
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

OK, NOTE, BAD = "ok", "note", "BAD"
Finding = tuple[str, str]


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``dsm doctor``: none."""


def run(_options: argparse.Namespace) -> int:
    """Print all findings; return 1 when one of them keeps dsm from working."""
    worst = 0
    for name, check in CHECKS.items():
        for verdict, text in _findings(check):
            print(f"{verdict:>4}  {name:<10} {text}")
            worst |= verdict == BAD
    print(f"\n{ADVICE}")
    return int(worst)


def _findings(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what `check` finds; a setting that dsm refuses is a finding, too."""
    try:
        yield from check()
    except DSMError as error:
        yield BAD, str(error)


def _platform() -> Iterator[Finding]:
    machine = platform.machine()
    known = sys.platform == "linux" and machine in ("x86_64", "aarch64")
    yield (
        OK if known else BAD,
        f"{platform.system()} {platform.release()} on {machine}"
        + ("" if known else ": dsm runs on Linux, on x86-64 and aarch64"),
    )
    size = mmap.PAGESIZE
    if size != limits.OS_PAGE_BYTES:
        yield BAD, f"the OS page has {size} bytes; dsm needs {limits.OS_PAGE_BYTES}"


def _maps() -> Iterator[Finding]:
    bound = int(Path("/proc/sys/vm/max_map_count").read_text())
    usable = (bound - limits.VMA_RESERVE) * limits.OS_PAGE_BYTES // 2**20
    yield (
        NOTE,
        f"vm.max_map_count is {bound}: every change of protection between neighbouring pages takes a map. "
        f"Beyond about {usable} MiB touched in alternating pages dsm gives maps back, which costs faults; "
        "larger pages (page_size=) or `sysctl vm.max_map_count=1048576` help",
    )


def _memory() -> Iterator[Finding]:
    low, high = config.address_range(os.environ)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield NOTE, f"ulimit -v is {soft // 2**20} MiB: regions count in full, also where they are untouched"
    yield OK, f"regions lie between {low:#x} and {high:#x} ({(high - low) // 2**40} TiB of addresses)"
    taken = [line for line in Path("/proc/self/maps").read_text().splitlines() if _overlaps(line, low, high)]
    if taken:
        yield (
            BAD,
            f"something lies in that range already: {taken[0]}; choose one with DSM_ADDRESS_LOW and _HIGH",
        )
    try:
        os.close(os.memfd_create("dsm-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        yield BAD, f"memfd_create does not work here: {error.strerror}"
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield (
                OK,
                f"{int(line.split()[1]) // 1024} MiB are free; a node keeps a copy of each page that it uses",
            )


def _overlaps(line: str, low: int, high: int) -> bool:
    first, last = (int(word, 16) for word in line.split(None, 1)[0].split("-"))
    return first < high and last > low


def _files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = OK if soft >= 1024 else NOTE
    yield (
        verdict,
        f"ulimit -n is {soft} (up to {hard}): a manager needs a few for each worker, region and peer",
    )


def _processors() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0))
    yield (
        OK if usable > 1 else NOTE,
        f"{usable} processors: each node's manager uses one while it serves, and none while it is idle",
    )


def _attach() -> Iterator[Finding]:
    os.environ.pop("DSM_NODE", None)
    try:
        import dsm

        with dsm.attach() as node:
            array = node.array(None, 3 * limits.OS_PAGE_BYTES, "u1", fill=7)
            array[limits.OS_PAGE_BYTES] = 1
            total = int(array.sum())
            yield from _system_call(node.array(None, limits.OS_PAGE_BYTES, "u1", fill=7))
    except (DSMError, OSError, ImportError) as error:
        yield BAD, f"a private node does not work: {type(error).__name__}: {error}"
        return
    right = total == 7 * (3 * limits.OS_PAGE_BYTES) - 6
    yield (
        OK if right else BAD,
        "a private node starts, and a page that is touched comes"
        + ("" if right else f", but with wrong contents (sum {total})"),
    )


def _system_call(array: Any) -> Iterator[Finding]:
    with tempfile.TemporaryFile(buffering=0) as file:
        try:
            written = file.write(array)
        except OSError as error:
            yield NOTE, f"a system call on an absent page ends with: {error.strerror} (see below)"
        else:
            yield NOTE, f"a system call on an absent page moved {written} of {len(array)} bytes (see below)"


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "platform": _platform,
    "maps": _maps,
    "memory": _memory,
    "files": _files,
    "processors": _processors,
    "attach": _attach,
}
