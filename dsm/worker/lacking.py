"""What this process has too little of, in figures: memory maps, addresses, descriptors.

Owns reading the bounds and the words for them.  An errno says only "Cannot allocate memory" or "Too many
open files"; which bound it was is found by looking at how far each of them is used.
"""

from __future__ import annotations

import errno
import resource

from dsm import proc

#: Maps below the bound at which the bound is taken to be the reason.
_NEAR = 64
#: A thread's stack where RLIMIT_STACK does not say.
_STACK_BYTES = 8 << 20
_PAGE = resource.getpagesize()


def descriptors() -> str:
    """Say how many descriptors this process may have, and what to do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"it may have {soft} open files (RLIMIT_NOFILE; at most {hard}), and all are in use; "
        "close some, or raise `ulimit -n`"
    )


def memory(needed: int) -> str:
    """Say why `needed` more bytes cannot be mapped, and what to do."""
    maps, most = sum(1 for _ in proc.mappings()), proc.max_map_count()
    if maps > most - _NEAR:
        return (
            f"this process has {maps} memory maps, of {most} that vm.max_map_count allows; give some back, "
            f"use a larger page_size=, or `sysctl vm.max_map_count={4 * most}`"
        )
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _field("/proc/self/statm", 0) * _PAGE
    if addresses != resource.RLIM_INFINITY and used + needed > addresses:
        return (
            f"it needs {needed} bytes of addresses, and this process uses {used} of the {addresses} that "
            "RLIMIT_AS allows (dsm maps a region twice); make it smaller, or raise `ulimit -v`"
        )
    data, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if data != resource.RLIM_INFINITY:
        used = _field("/proc/self/statm", 5) * _PAGE
        return (
            f"this process uses {used} bytes of private memory, of {data} that RLIMIT_DATA allows; "
            "raise `ulimit -d`"
        )
    available = proc.memory()["MemAvailable"]
    return f"the system gives no {needed} bytes more (MemAvailable is {available}); make it smaller"


def memory_of_machine() -> int:
    """Return the bytes of memory and swap that this machine has."""
    found = proc.memory()
    return found["MemTotal"] + found["SwapTotal"]


def is_lack(error: OSError | MemoryError | RuntimeError) -> bool:
    """Whether an error of the system means that a bound of this process is reached."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
    return isinstance(error, MemoryError) or "new thread" in str(error)


def reason(error: OSError | MemoryError | RuntimeError, needed: int = 0) -> str:
    """Say which bound stands behind `error`."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return descriptors()
    if isinstance(error, RuntimeError):  # a thread, and its stack
        stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
        needed = _STACK_BYTES if stack == resource.RLIM_INFINITY else stack
    return memory(needed)


def _field(path: str, index: int) -> int:
    with open(path) as file:
        return int(file.read().split()[index])
