"""What tests of real processes share: waiting for conditions, and what must not be left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

#: Processes started during a test carry this in their environment; so do theirs.
TEST_MARK = "DSM_TEST_MARK"
#: The same for the whole session.
SESSION_MARK = "DSM_SESSION_MARK"
#: Seconds within which what is on its way out must be gone.
GONE_S = 5.0


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Return when `condition()` is true; fail when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.005)


def wait_value(look: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> object:
    """Return the first true value of `look()`."""
    found: list[object] = []
    wait_until(lambda: found.append(look()) or found[-1], timeout_s, what or str(look))
    return found[-1]


def alive(pid: int) -> bool:
    """Return whether process `pid` exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def processes_marked(name: str, value: str) -> list[int]:
    """Return the living processes that were started with `name` = `value` in their environment."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0") and alive(int(entry)):
                    found.append(int(entry))
            except OSError:
                continue  # ended meanwhile, or somebody else's
    return found


def managers() -> list[int]:
    """Return the managers that this test has started, real ones or stand-ins."""
    return [pid for pid in processes_marked(TEST_MARK, os.environ[TEST_MARK]) if "--ready-fd" in _words(pid)]


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def describe(pid: int) -> str:
    """Return ``pid: command line`` for a message."""
    return f"{pid}: {' '.join(_words(pid)).strip()[:200] or '(gone)'}"


def abstract_sockets() -> dict[str, str]:
    """Return the local sockets of managers that exist: name to inode."""
    found = {}
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[7].startswith("@dsm-"):
            found[fields[7]] = fields[6]
    return found


def holds_socket(pid: int | str, inodes: set[str]) -> bool:
    """Return whether process `pid` has a descriptor of one of these sockets."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{fd}") in wanted:
                    return True
            except OSError:
                continue
    except OSError:
        pass
    return False


def shared_memory_files() -> set[str]:
    """Return what of ours lies in /dev/shm; nothing ever should."""
    return {entry for entry in os.listdir("/dev/shm") if "dsm" in entry}


def waits_in_futex(pid: int) -> bool:
    """Return whether the main thread of process `pid` sleeps in a fault, or in a call to its manager."""
    try:
        number = Path(f"/proc/{pid}/task/{pid}/syscall").read_text().split()[0]
    except OSError:
        return False
    return number == {"x86_64": "202", "aarch64": "98"}[os.uname().machine]


def state(pid: int) -> str:
    """Return the letter of a process's state: T when it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
