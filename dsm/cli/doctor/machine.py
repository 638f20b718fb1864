"""What the machine is: kernel, processors, the pager, the compiler, the clock."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import platform
import shutil
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from dsm import limits
from dsm.cli.doctor.finding import BAD, NOTE, OK, Finding, read

_BUILD = "pip install --force-reinstall --no-deps ."
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1
_CLOCKS = "/sys/devices/system/clocksource/clocksource0"
#: A reading of the clock that takes longer comes from a slow device.
_SLOW_CLOCK_NS = 500
#: Bare faults that are measured.
_PROBES = 200


def kernel() -> Iterator[Finding]:
    """System, processor and the size of a page."""
    machine = platform.machine()
    known = sys.platform == "linux" and machine in ("x86_64", "aarch64")
    yield Finding(
        OK if known else BAD,
        f"{platform.system()} {platform.release()} on {machine}"
        + ("" if known else ": dsm runs on Linux, on x86-64 and aarch64"),
    )
    if mmap.PAGESIZE != limits.OS_PAGE_BYTES:
        yield Finding(BAD, f"the OS page has {mmap.PAGESIZE} bytes; dsm needs {limits.OS_PAGE_BYTES}")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        yield Finding(BAD, f"pidfd_open does not work ({error}); dsm needs Linux 5.3 or newer")
    try:
        os.close(os.memfd_create("dsm-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        forbidden = read("/proc/sys/vm/memfd_noexec") == "2"
        mend = "sudo sysctl -w vm.memfd_noexec=1" if forbidden else ""
        yield Finding(BAD, f"memfd_create does not work here: {error.strerror}", mend)


def processors() -> Iterator[Finding]:
    """How many there are to use."""
    usable = len(os.sched_getaffinity(0))
    yield Finding(
        OK if usable > 1 else NOTE,
        f"{usable} processors: each node's manager uses one while it serves, and none while it is idle",
    )


def pager() -> Iterator[Finding]:
    """Whether a fault can be caught and mended, and what it costs."""
    try:
        from dsm import _native
    except ImportError as error:
        yield Finding(BAD, f"the shim is not built for this Python: {error}", _BUILD)
        return
    try:
        samples = _native.probe_fault(_PROBES)
    except OSError as error:
        yield Finding(BAD, f"a trapped access cannot be mended: {error}")
    else:
        middle = statistics.median(samples) / 1000
        yield Finding(
            OK, f"signals: an access that traps is caught and mended in {middle:.1f} µs; dsm uses this"
        )
    yield Finding(OK, f"userfaultfd: {userfaultfd()}; dsm does not need it")


def userfaultfd() -> str:
    """Return whether this process may use userfaultfd."""
    number = _USERFAULTFD.get(platform.machine())
    if number is None:
        return "not known on this processor"
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, os.O_CLOEXEC | _UFFD_USER_MODE_ONLY)
    if fd >= 0:
        os.close(fd)
        return "available, for faults of programs"
    reason = ctypes.get_errno()
    if reason == errno.ENOSYS:
        return "this kernel does not have it"
    return f"not available ({os.strerror(reason)})"


def compiler() -> Iterator[Finding]:
    """What building the shim takes; a built one needs none of it."""
    found = shutil.which(os.environ.get("CC", "").split(" ")[0] or "cc") or shutil.which("gcc")
    if not found:
        yield Finding(NOTE, "no C compiler: it is needed to build dsm, not to use it", "sudo apt install gcc")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        yield Finding(
            NOTE, "no Python.h: it is needed to build dsm, not to use it", "sudo apt install python3-dev"
        )
    if found and header.exists():
        yield Finding(OK, f"{Path(found).name} and Python.h are here: dsm can be built")


def clock() -> Iterator[Finding]:
    """Whether time goes on, and how fast it can be read."""
    readings = [time.monotonic_ns() for _ in range(10_000)]
    steps = [later - earlier for earlier, later in itertools.pairwise(readings)]
    if min(steps) < 0:
        yield Finding(BAD, "the monotonic clock goes backwards: deadlines and hold times cannot work")
        return
    cost = statistics.median(steps)
    source = read(f"{_CLOCKS}/current_clocksource")
    better = "tsc" in read(f"{_CLOCKS}/available_clocksource").split() and source != "tsc"
    slow = cost > _SLOW_CLOCK_NS
    yield Finding(
        NOTE if slow else OK,
        f"the monotonic clock ({source or 'of an unknown source'}) is read in {cost:.0f} ns; "
        "clocks of different nodes need not agree",
        f"echo tsc | sudo tee {_CLOCKS}/current_clocksource" if slow and better else "",
    )
