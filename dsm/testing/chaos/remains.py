"""What a job left behind on this machine; nothing ever should.

Owns the looking: processes that carry the job's mark in their environment, sockets and ports they held, files
in /dev/shm.
"""

from __future__ import annotations

import os
from pathlib import Path

from dsm import proc

#: Every process of a job carries it in its environment, and so do theirs.
MARK = "DSM_CHAOS_MARK"


def marked(mark: str) -> list[int]:
    """Return the living processes that carry that mark."""
    return proc.processes_marked(MARK, mark)


def command_line(pid: int) -> str:
    """Return what a process was started as."""
    return " ".join(proc.command_line(pid)) or "(gone)"


def shared_files() -> set[str]:
    """Return the names of ours in shared memory."""
    return {name for name in os.listdir("/dev/shm") if "dsm" in name}


def listening(ports: set[int]) -> list[int]:
    """Return which of these TCP ports somebody listens on."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found & ports)


def sockets(names: set[str]) -> list[str]:
    """Return which of these local sockets exist."""
    return sorted(names & proc.manager_sockets().keys())
