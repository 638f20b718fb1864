"""What a job left behind on this machine; nothing ever should.

Owns the looking: processes that carry the job's mark in their environment, sockets and ports they held, files
in /dev/shm.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Every process of a job carries it in its environment, and so do theirs.
MARK = "DSM_CHAOS_MARK"


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """Return the living processes that carry that mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and is_alive(
                    int(entry)
                ):
                    found.append(int(entry))
            except OSError:
                continue  # ended meanwhile, or somebody else's
    return found


def command_line(pid: int) -> str:
    """Return what a process was started as."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return "(gone)"


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
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return sorted(names & {line.split()[-1] for line in lines})
