"""What the system allows: memory maps, descriptors, addresses, memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

from dsm import config, limits, proc
from dsm.cli.doctor.finding import BAD, NOTE, OK, Finding, mib, read

#: With this many maps no program was seen to come near the limit.
_MANY_MAPS = 1 << 20
#: Descriptors: fewer than the first keep a manager from starting, fewer than the second are soon used up.
_FEW_FILES, _SOME_FILES = 64, 1024
_LITTLE_MEMORY = 256 * 2**20


def maps() -> Iterator[Finding]:
    """vm.max_map_count."""
    text = read("/proc/sys/vm/max_map_count")
    if not text:
        yield Finding(NOTE, "vm.max_map_count cannot be read")
        return
    bound = int(text)
    usable = max(0, bound - limits.VMA_RESERVE) * limits.OS_PAGE_BYTES
    enough = bound >= _MANY_MAPS
    yield Finding(
        OK if enough else NOTE,
        f"vm.max_map_count is {bound}: every change of access between neighbouring pages takes a map. Beyond "
        f"about {mib(usable)} touched in alternating pages dsm gives maps back, which costs faults; larger "
        "pages (page_size=) avoid that, too",
        "" if enough else f"sudo sysctl -w vm.max_map_count={_MANY_MAPS}",
    )


def files() -> Iterator[Finding]:
    """Open files: a manager takes as many as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    verdict = BAD if most < _FEW_FILES else NOTE if most < _SOME_FILES else OK
    yield Finding(
        verdict,
        f"ulimit -n is {soft} (up to {most}): a manager needs three for each region, four for each worker, "
        f"one for each other node: about {max(0, most - 32) // 3} regions",
        "" if verdict == OK else "ulimit -n 65536",
    )
    bytes_, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if bytes_ != resource.RLIM_INFINITY:
        yield Finding(NOTE, f"ulimit -f is {mib(bytes_)}: no region can be larger", "ulimit -f unlimited")


def addresses() -> Iterator[Finding]:
    """The range of addresses for regions."""
    low, high = config.address_range(os.environ)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield Finding(
            NOTE,
            f"ulimit -v is {mib(soft)}: regions count in full, also where they are untouched",
            "ulimit -v unlimited",
        )
    yield Finding(
        OK, f"regions lie between {low:#x} and {high:#x} ({(high - low) / 2**40:g} TiB of addresses)"
    )
    mapped = list(proc.mappings())
    taken = [each for each in mapped if each[0] < high and each[1] > low]
    if taken:
        first, last, name = taken[0]
        what = f"{name or 'memory without a name'} at {first:#x} to {last:#x}"
        yield Finding(
            BAD,
            f"something lies in that range already: {what}",
            f"export DSM_ADDRESS_LOW={free:#x}" if (free := _free(mapped)) < high else "",
        )


def _free(mapped: Iterable[tuple[int, int, str]]) -> int:
    """Return a start below the end of the usual range from which on nothing lies there; else a guess."""
    ends = (last for first, last, _ in mapped if first < limits.ADDRESS_HIGH)
    unit = limits.ADDRESS_ALIGNMENT
    return (max(ends, default=limits.ADDRESS_LOW) + unit - 1) // unit * unit


def memory() -> Iterator[Finding]:
    """What is free, and what bounds it."""
    values = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    free = values.get("MemAvailable", 0)
    yield Finding(
        OK if free >= _LITTLE_MEMORY else NOTE,
        f"{mib(free)} are free; a node keeps a copy of each page that its workers use",
    )
    if read("/proc/sys/vm/overcommit_memory") == "2":
        left = max(0, values.get("CommitLimit", 0) - values.get("Committed_AS", 0))
        yield Finding(
            NOTE,
            f"vm.overcommit_memory is 2: programs get {mib(left)} more, however much is free",
            "sudo sysctl -w vm.overcommit_memory=0",
        )
    bound, used = cgroup_memory()
    if bound:
        yield Finding(
            NOTE,
            f"this control group may use {mib(bound)} of memory and uses {mib(used)}; pages of all its nodes "
            "count (of a container: `docker update --memory SIZE CONTAINER`)",
            "sudo systemctl set-property UNIT MemoryMax=infinity",
        )
    huge = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if "[always]" in huge or "[force]" in huge:
        yield Finding(
            NOTE,
            "the system gives shared memory in huge pages: a node takes 2 MiB for a lonely page of 4 KiB",
            "echo never | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        )


def cgroup_memory(root: str = "/sys/fs/cgroup", of: str = "/proc/self/cgroup") -> tuple[int, int]:
    """Return the smallest memory limit of this process's control groups, and what is used; 0 without one."""
    best = (0, 0)
    for line in read(of).splitlines():
        number, _, path = line.split(":", 2)
        controllers = line.split(":", 2)[1].split(",")
        if number == "0":
            base, names = Path(root), ("memory.max", "memory.current")
        elif "memory" in controllers:
            base, names = Path(root, "memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        here = base / path.lstrip("/")
        for directory in (here, *here.parents):
            if directory != base and base not in directory.parents:
                break
            bound, used = (read(str(directory / name)) for name in names)
            # Version 1 has no word for "unlimited", but a number that no machine has.
            if bound.isdecimal() and int(bound) < 1 << 60 and (not best[0] or int(bound) < best[0]):
                best = (int(bound), int(used) if used.isdecimal() else 0)
    return best
