"""What ``/proc`` says about processes, their descriptors and local sockets, and about memory.

Owns the one place that takes these files apart.  It follows no process and starts none: what it says was
true at one moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class ProcessState(NamedTuple):
    """What a process does: state letter, processor time, parent."""

    #: R runs, S sleeps, D sleeps in the kernel, T is stopped, t is traced, Z is a zombie; empty: it is gone.
    letter: str
    cpu_s: float
    parent: int


def process_state(pid: int) -> ProcessState:
    """Return the state of a process; an empty letter when there is none of that number."""
    # The name (second field) may hold spaces and parentheses: count from its end.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if not fields:
        return ProcessState("", 0.0, 0)
    return ProcessState(fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[1]))


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    return process_state(pid).letter not in ("", "Z", "X")


def processes() -> Iterator[int]:
    """Yield the numbers of all processes, zombies too."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def processes_marked(name: str, value: str) -> list[int]:
    """Return the living processes that were started with ``name=value`` in their environment."""
    wanted = f"{name}={value}".encode()
    return [pid for pid in processes() if wanted in _read(pid, "environ").split(b"\0") and is_alive(pid)]


def command_line(pid: int) -> list[str]:
    """Return the words that a process was started with; none when it is gone."""
    text = _read(pid, "cmdline").decode("utf-8", "replace")
    return text.removesuffix("\0").split("\0") if text else []


def descriptors(pid: int | str) -> set[str]:
    """Return what the descriptors of a process (a number, or ``self``) refer to, as far as we may know."""
    found: set[str] = set()
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for number in numbers:
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue  # closed meanwhile
    return found


def manager_sockets() -> dict[str, str]:
    """Return the local sockets of managers, ``@dsm-…``: name to inode."""
    found = {}
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) >= 8 and fields[7].startswith("@dsm-"):
                found[fields[7]] = fields[6]
    return found


def mappings() -> Iterator[tuple[int, int, str]]:
    """Yield what lies in this process's addresses: first address, end, name (empty: it has none)."""
    with open("/proc/self/maps", errors="replace") as lines:
        for line in lines:
            span, _, _, _, _, *name = line.split(None, 5)
            low, high = span.split("-")
            yield int(low, 16), int(high, 16), name[0].strip() if name else ""


def memory() -> dict[str, int]:
    """Return the bytes of ``/proc/meminfo`` by name: MemTotal, MemAvailable, SwapTotal, …"""
    with open("/proc/meminfo") as lines:
        words = (line.split() for line in lines)
        return {name.rstrip(":"): int(count) * 1024 for name, count, *unit in words if unit}


def max_map_count() -> int:
    """Return how many memory maps a process may have."""
    with open("/proc/sys/vm/max_map_count") as file:
        return int(file.read())


def _read(pid: int, name: str) -> bytes:
    """Return a file about a process; nothing when it is gone, or somebody else's."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
