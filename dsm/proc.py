"""What ``/proc`` says about a process.

Owns the one place that takes ``/proc/<pid>/stat`` apart.  It follows no process and starts none.
"""

from __future__ import annotations

import os
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class ProcessState(NamedTuple):
    """State letter (R runs, S sleeps, D sleeps in the kernel, T is stopped, t is traced); processor time."""

    letter: str
    cpu_s: float


def process_state(pid: int) -> ProcessState:
    """Return the state of a process; an empty letter when there is none of that number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name (second field) may hold spaces and parentheses: count from its end.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ProcessState("", 0.0)
    return ProcessState(fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS)
